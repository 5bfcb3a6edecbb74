from typing import Any

import pytest

from server.errors import AdapterNotFoundError, ConflictError, VersionNotFoundError
from server.openapi import json_answer, merged, native_errors, problem_errors, schemas_of
from server.schemas import ItemsRequest, OneAdapterRequest


def test_errors_of_one_status_are_examples_of_one_response() -> None:
    responses = native_errors(AdapterNotFoundError("a"), VersionNotFoundError("b"), ConflictError("c"))
    assert set(responses) == {404, 409}
    examples = responses[404]["content"]["application/json"]["examples"]
    assert set(examples) == {"ADAPTER_NOT_FOUND", "VERSION_NOT_FOUND"}


def test_problems_carry_their_media_type() -> None:
    assert set(problem_errors("/readyz", ConflictError("c"))[409]["content"]) == {"application/problem+json"}


def test_examples_of_answers_are_kept_by_name() -> None:
    assert json_answer("good", {"one": {"a": 1}})["content"]["application/json"]["examples"] == {
        "one": {"value": {"a": 1}}
    }


def test_schemas_come_with_all_they_refer_to() -> None:
    schemas = schemas_of(OneAdapterRequest, ItemsRequest)
    assert {"OneAdapterRequest", "ItemsRequest", "Item", "TextInput"} <= set(schemas)


def document(path: str, **schemas: Any) -> dict[str, Any]:
    return {"openapi": "3.1.0", "paths": {path: {"get": {}}}, "components": {"schemas": schemas}}


def test_merged_has_the_paths_and_schemas_of_both() -> None:
    whole = merged(document("/a", A={}), document("/b", B={}), {"C": {}})
    assert set(whole["paths"]) == {"/a", "/b"}
    assert set(whole["components"]["schemas"]) == {"A", "B", "C"}


def test_one_schema_under_one_name_in_both_is_no_conflict() -> None:
    assert merged(document("/a", A={"x": 1}), document("/b", A={"x": 1}), {})["components"]["schemas"] == {
        "A": {"x": 1}
    }


def test_two_schemas_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="schema A"):
        merged(document("/a", A={"x": 1}), document("/b", A={"x": 2}), {})


def test_two_descriptions_of_one_path_are_refused() -> None:
    other = document("/a")
    other["paths"]["/a"] = {"put": {}}
    with pytest.raises(ValueError, match="path /a"):
        merged(document("/a"), other, {})
