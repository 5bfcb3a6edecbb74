from collections.abc import Iterator

import pytest

from adakron.errors import AdaKronError
from server import errors
from server.error_replies import STATUS_OF
from server.errors import ServerError, quoted, type_of


def descendants(kind: type[Exception]) -> Iterator[type[Exception]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


OWN = list(descendants(ServerError))
RUNTIME = list(descendants(AdaKronError))


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_every_server_error_states_its_status_and_code(kind: type[ServerError]) -> None:
    assert "status" in vars(kind)
    assert "code" in vars(kind)


@pytest.mark.parametrize("kind", RUNTIME, ids=lambda kind: kind.__name__)
def test_every_error_of_the_runtime_has_a_status(kind: type[AdaKronError]) -> None:
    assert kind in STATUS_OF


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in OWN]
    assert sorted(codes) == sorted(set(codes))


def test_server_errors_are_503_504_507_or_the_clients() -> None:
    statuses = {kind.status for kind in OWN} | set(STATUS_OF.values())
    assert {status for status in statuses if status >= 500} == {503, 504, 507}


def test_every_status_has_a_type_of_its_own() -> None:
    statuses = {kind.status for kind in OWN} | {500}
    assert len({type_of(status) for status in statuses}) == len(statuses)


def test_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {
        (parts[1], int(parts[2]))
        for line in (errors.__doc__ or "").splitlines()
        if len(parts := line.split()) > 2 and parts[0] in ("├──", "└──")
    }
    assert drawn == {(kind.__name__, kind.status) for kind in OWN}


def test_input_error_carries_the_rows_code() -> None:
    error = errors.InputError("blank", code="BLANK_TEXT")
    assert (error.code, error.status, error.type) == ("BLANK_TEXT", 422, "InvalidRequestError")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a", "'a'"), ("é\n", r"'\xe9\n'"), ("\ud800", r"'\ud800'"), ("a" * 65, "'" + "a" * 64 + "...'")],
)
def test_quoted_escapes_and_cuts(text: str, shown: str) -> None:
    assert quoted(text) == shown


def test_quoted_is_short_even_where_escaping_makes_it_longer() -> None:
    assert len(quoted("\U0001f600" * 1000)) < 72
