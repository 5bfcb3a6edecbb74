"""JSON from strangers: parsed strictly, and read with exact types, never converted.

Every refusal is a ConfigError that names the key. Knows nothing of what the documents mean.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from adakron.errors import ConfigError


def require(condition: bool, key: str, expected: str, found: object) -> None:
    """Raises ConfigError for `key`, with at most 80 characters of what was found, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key}: expected {expected}; found {str(found)[:80]!r}", key=key)


def is_int(value: object) -> bool:
    """Whether it is an integer; to isinstance a bool would be one, and no number of layers is True."""
    return type(value) is int


def parse_json_object(text: str | bytes, what: str, max_digits: int = 64) -> dict[str, Any]:
    """Strict JSON: UTF-8, one object, no duplicate key at any level, no NaN or Infinity, no endless number, no half
    of a surrogate pair.

    Raises ConfigError that says which rule was broken; `what` names the document.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{what}: the key {key[:80]!r} stands twice", key=_shown(key))
            seen[key] = value
        return seen

    def constant(name: str) -> Any:
        raise ConfigError(f"{what}: {name} is not JSON")

    def bounded(parse: type[int] | type[float]) -> Any:
        def parsed(digits: str) -> int | float:
            if len(digits) > max_digits:
                raise ConfigError(f"{what}: a number of {len(digits)} digits")
            value = parse(digits) if digits != "-0" else -0.0  # no integer has that sign: safetensors refuses it
            if not math.isfinite(value):
                raise ConfigError(f"{what}: {digits} is too large a number")
            return value

        return parsed

    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            decoded,
            object_pairs_hook=unique,
            parse_constant=constant,
            parse_int=bounded(int),
            parse_float=bounded(float),
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair could be neither stored nor sent
    except (UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{what}: not JSON in UTF-8 ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{what}: expected an object; found {type(value).__name__}")
    return value


def is_text(value: object, most: int) -> bool:
    """Whether it is a printable string of 1 to `most` characters, not all blank."""
    return isinstance(value, str) and 1 <= len(value) <= most and value.isprintable() and bool(value.strip())


def exact_keys(raw: Mapping[str, Any], expected: Sequence[str], where: str) -> None:
    """Raises ConfigError naming the first unknown or missing key; `where` is written before it."""
    unknown = sorted(set(raw) - set(expected))
    if unknown:
        name = f"{where}{_shown(unknown[0])}"
        raise ConfigError(f"{name}: unknown key", key=name)
    missing = [key for key in expected if key not in raw]
    if missing:
        raise ConfigError(f"{where}{missing[0]}: missing key", key=f"{where}{missing[0]}")


def sub_object(raw: Mapping[str, Any], key: str, expected: Sequence[str]) -> dict[str, Any]:
    """raw[key], an object of exactly the expected keys. Raises ConfigError."""
    value = raw[key]
    require(isinstance(value, dict), key, "an object", value)
    exact_keys(value, expected, f"{key}.")
    return cast(dict[str, Any], value)


def strings(value: object, key: str) -> list[str]:
    """`value` itself, a list of strings. Raises ConfigError for `key`."""
    require(isinstance(value, list) and all(isinstance(v, str) for v in value), key, "a list of strings", value)
    return cast(list[str], value)


def number(value: object, key: str) -> float:
    """`value`, an integer or a float but no bool, as a float. Raises ConfigError for `key`."""
    require(type(value) in (int, float), key, "a number", value)
    return float(cast(float, value))


def numbers(value: object, key: str) -> list[float]:
    """`value`, a list of numbers, as floats. Raises ConfigError for `key`."""
    require(isinstance(value, list), key, "a list of numbers", value)
    return [number(item, key) for item in cast(list[object], value)]


def _shown(key: str) -> str:
    """A key out of a file, short and without control characters: it goes into messages and logs."""
    return repr(key[:80])[1:-1]
