"""AdaKron: Kronecker bottleneck adapters for encoders, and a runtime that serves thousands of them on one backbone.

Dimensions, used in every docstring and shape comment:

    B rows    T tokens    D hidden size    K factor (4)    Q = r / K    R bottleneck r    S slots    L labels

A name is imported when it is first used, so that whoever needs no model does not wait for torch and transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adakron.artefact import Adapter, Example
    from adakron.attachment import attach, detach
    from adakron.backbone import Backbone
    from adakron.config import AdaKronConfig, AdapterConfig
    from adakron.engine import Engine
    from adakron.module import AdaKron, MAdaKron
    from adakron.rows import Result, Row, RowError
else:  # hidden from type checkers, to whom a module with __getattr__ has every attribute

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


# No module has the name of what it offers: once imported, it would stand in its place.
_MODULES = {
    "AdaKron": "module",
    "AdaKronConfig": "config",
    "Adapter": "artefact",
    "AdapterConfig": "config",
    "Backbone": "backbone",
    "Engine": "engine",
    "Example": "artefact",
    "MAdaKron": "module",
    "Result": "rows",
    "Row": "rows",
    "RowError": "rows",
    "attach": "attachment",
    "detach": "attachment",
}
__all__ = [
    "AdaKron",
    "AdaKronConfig",
    "Adapter",
    "AdapterConfig",
    "Backbone",
    "Engine",
    "Example",
    "MAdaKron",
    "Result",
    "Row",
    "RowError",
    "attach",
    "detach",
]
__version__ = "0.1.0"
