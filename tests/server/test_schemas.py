from typing import Any

import pytest

from server.errors import InvalidRequestError
from server.schemas import (
    MAX_ROWS,
    ItemsRequest,
    ManyAdaptersRequest,
    OneAdapterRequest,
    TextInput,
    parse_classify_request,
)

ONE = {"adapter": "sst2", "inputs": ["a text"]}
MANY = {"adapters": ["sst2", "mood@3"], "inputs": "a text"}
ITEMS = {"items": [{"adapter": "sst2", "text": "a"}, {"adapter": "nli", "text": "a", "text_pair": "b"}]}


def refusal(body: object) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_classify_request(body)
    return caught.value


@pytest.mark.parametrize(
    ("body", "form"), [(ONE, OneAdapterRequest), (MANY, ManyAdaptersRequest), (ITEMS, ItemsRequest)]
)
def test_each_form_is_told_by_its_keys(body: dict[str, Any], form: type) -> None:
    assert type(parse_classify_request(body)) is form


def test_defaults() -> None:
    request = parse_classify_request(ONE)
    assert (request.top_k, request.truncate, request.min_generation) == (1, True, None)


def test_inputs_are_strings_and_objects_mixed() -> None:
    request = parse_classify_request({"adapter": "a", "inputs": ["x", {"text": "y"}, {"text": "z", "text_pair": "w"}]})
    assert isinstance(request, OneAdapterRequest)
    assert request.inputs == ["x", TextInput(text="y"), TextInput(text="z", text_pair="w")]


def test_one_string_is_accepted_as_inputs() -> None:
    request = parse_classify_request({"adapter": "a", "inputs": "x"})
    assert isinstance(request, OneAdapterRequest)
    assert request.inputs == "x"


@pytest.mark.parametrize("top_k", [1, 10_000, None])
def test_top_k_within_bounds_passes(top_k: int | None) -> None:
    assert parse_classify_request({**ONE, "top_k": top_k}).top_k == top_k


@pytest.mark.parametrize("threshold", [0, 0.0, 0.75, 1, None])
def test_abstain_below_is_a_probability_or_null(threshold: float | None) -> None:
    assert parse_classify_request({**ONE, "abstain_below": threshold}).abstain_below == threshold
    assert parse_classify_request(ONE).abstain_below is None


@pytest.mark.parametrize("text", ["", " ", "x" * 20_001, "\x00"])
def test_values_of_texts_are_not_judged_here(text: str) -> None:
    parse_classify_request({"adapter": "a", "inputs": [text]})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"adapter": "a"},
        {"inputs": ["x"]},
        {"adapters": ["a"]},
        {**ONE, **MANY},
        {**ONE, **ITEMS},
        {**MANY, **ITEMS},
        {"adapter": "a", "items": []},
        {"model": "a", "input": "x"},
    ],
)
def test_anything_but_exactly_one_form_is_refused(body: dict[str, Any]) -> None:
    assert "exactly one" in refusal(body).message


@pytest.mark.parametrize("body", [None, True, 1, 1.5, "text", [], [ONE]])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    refusal(body)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"adapter": 1}, "adapter"),
        ({"adapter": None}, "adapter"),
        ({"adapter": ["a"]}, "adapter"),
        ({"adapter": ""}, "adapter"),
        ({"adapter": "a" * 1000}, "adapter"),
        ({"inputs": []}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": {"text": "x"}}, "inputs"),
        ({"inputs": ["x"] * (MAX_ROWS + 1)}, "inputs"),
        ({"inputs": ["x", 5]}, "inputs.1"),
        ({"inputs": [["x"]]}, "inputs.0"),
        ({"inputs": [None]}, "inputs.0"),
        ({"inputs": [{}]}, "inputs.0.text"),
        ({"inputs": [{"text": None}]}, "inputs.0.text"),
        ({"inputs": [{"text": 1}]}, "inputs.0.text"),
        ({"inputs": [{"text": "x", "text_pair": 1}]}, "inputs.0.text_pair"),
        ({"inputs": [{"text": "x", "pair": "y"}]}, "inputs.0.pair"),
        ({"inputs": ["x" * (2**20 + 1)]}, "inputs.0"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 10_001}, "top_k"),
        ({"top_k": 1.0}, "top_k"),
        ({"top_k": "1"}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"abstain_below": -0.1}, "abstain_below"),
        ({"abstain_below": 1.01}, "abstain_below"),
        ({"abstain_below": "0.5"}, "abstain_below"),
        ({"abstain_below": True}, "abstain_below"),
        ({"abstain_below": [0.5]}, "abstain_below"),
        ({"truncate": 1}, "truncate"),
        ({"truncate": "true"}, "truncate"),
        ({"truncate": None}, "truncate"),
        ({"min_generation": -1}, "min_generation"),
        ({"min_generation": 2**63}, "min_generation"),
        ({"min_generation": 1.5}, "min_generation"),
        ({"mode": "x"}, "mode"),
    ],
)
def test_refusal_names_the_field(change: dict[str, Any], param: str) -> None:
    assert refusal({**ONE, **change}).param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**MANY, "adapters": []}, "adapters"),
        ({**MANY, "adapters": "a"}, "adapters"),
        ({**MANY, "adapters": ["a"] * (MAX_ROWS + 1)}, "adapters"),
        ({**MANY, "adapters": ["a", 1]}, "adapters.1"),
        ({"items": []}, "items"),
        ({"items": {"adapter": "a", "text": "x"}}, "items"),
        ({"items": ["x"]}, "items.0"),
        ({"items": [{"text": "x"}]}, "items.0.adapter"),
        ({"items": [{"adapter": "a"}]}, "items.0.text"),
        ({"items": [{"adapter": "a", "text": "x", "top_k": 1}]}, "items.0.top_k"),
        ({"items": [{"adapter": "a", "text": "x"}] * (MAX_ROWS + 1)}, "items"),
    ],
)
def test_refusal_names_the_field_in_the_other_forms(body: dict[str, Any], param: str) -> None:
    assert refusal(body).param == param


def test_several_problems_are_listed_but_not_all() -> None:
    error = refusal({"adapter": "a", "inputs": [1] * 100, "top_k": 0})
    problems = error.details["errors"]
    assert isinstance(problems, list)
    assert len(problems) == 8
    assert {"top_k", "inputs.0", "inputs.1"} < {problem["param"] for problem in problems}


def test_refusal_echoes_no_value_and_little_of_a_key() -> None:
    error = refusal({**ONE, "secret-key-" * 100: "secret-value", "top_k": "secret-value"})
    told = f"{error.message} {error.param} {error.details}"
    assert "secret-value" not in told
    assert len(told) < 600
