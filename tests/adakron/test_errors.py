"""The tree of errors is the one its docstring draws, and an error survives the trip between processes."""

import copy
import pickle
import re

import pytest

from adakron import errors
from adakron.errors import AdaKronError, ConfigError, FormatError, UnknownAdapterError

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AdaKronError)]


def drawn_tree() -> dict[str, str | None]:
    """Class -> parent, read from the drawing in the module's docstring."""
    stack: list[tuple[int, str]] = []
    parents: dict[str, str | None] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([\s│├└─]*)([A-Z]\w+Error)\b", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        parents[name] = stack[-1][1] if stack else None
        stack.append((depth, name))
    return parents


def test_docstring_draws_every_class_under_its_parent() -> None:
    real = {cls.__name__: cls.__base__.__name__ if cls is not AdaKronError else None for cls in CLASSES}
    assert drawn_tree() == real


def test_codes_are_upper_snake_and_different() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", code) for code in codes)


@pytest.mark.parametrize("cls", CLASSES)
def test_hint_is_none_unless_given(cls: type[AdaKronError]) -> None:
    assert cls("what happened").hint is None
    assert cls("what happened", hint="do this").hint == "do this"


@pytest.mark.parametrize("cls", CLASSES)
def test_message_names_what_happened(cls: type[AdaKronError]) -> None:
    assert "what happened" in str(cls("what happened"))


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, FormatError)])
def test_format_error_keeps_tensor_expected_and_found(cls: type[FormatError]) -> None:
    error = cls("m", tensor="head.bias", expected="[2]", found="[3]")
    assert (error.tensor, error.expected, error.found) == ("head.bias", "[2]", "[3]")


def test_config_error_keeps_its_key() -> None:
    assert ConfigError("m", key="order").key == "order"


@pytest.mark.parametrize("cls", CLASSES)
def test_copy_says_the_same(cls: type[AdaKronError]) -> None:
    error = cls("a", hint="b")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), str(twin), vars(twin)) == (cls, str(error), vars(error))


def test_unknown_adapter_error_names_the_adapter() -> None:
    error = UnknownAdapterError("sst2")
    assert str(error) == "no adapter 'sst2' on this engine"
    assert error.key == "sst2"
