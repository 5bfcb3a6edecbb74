"""AdaKron: Kronecker bottleneck adapters for encoders, and a runtime that serves thousands of them on one backbone.

Dimensions, used in every docstring and shape comment:

    B rows    T tokens    D hidden size    K factor (4)    Q = r / K    R bottleneck r    S slots    L labels
"""

from adakron.artefact import Adapter, Example
from adakron.attach import attach, detach
from adakron.backbone import Backbone
from adakron.config import AdaKronConfig, AdapterConfig
from adakron.engine import Engine, Result, Row, RowError
from adakron.module import AdaKron, MAdaKron

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
