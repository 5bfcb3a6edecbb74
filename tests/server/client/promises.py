"""Whether a reply keeps what a TypedDict promises: every key is there, with a value of its type; others may be too."""

import types
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict


def holds(kind: Any, value: Any) -> bool:
    """`kind` is made of TypedDicts, list, dict, unions, and plain classes."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        return isinstance(value, dict) and all(_holds_key(hint, value, name) for name, hint in hints.items())
    if origin in (Union, types.UnionType):
        return any(holds(argument, value) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(holds(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(holds(arguments[1], item) for item in value.values())
    return type(value) is kind


def _holds_key(hint: Any, value: dict[str, Any], name: str) -> bool:
    if get_origin(hint) is NotRequired:
        return name not in value or holds(get_args(hint)[0], value[name])
    return name in value and holds(hint, value[name])
