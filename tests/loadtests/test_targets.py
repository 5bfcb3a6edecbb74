import json

import httpx
import pytest

from loadtests.targets import Target, list_targets
from tests.loadtests.fake_server import FIXED, FakeServer


def client_of(handler: httpx.MockTransport) -> httpx.Client:
    return httpx.Client(transport=handler, base_url="http://server")


def test_all_pages_are_read() -> None:
    fake = FakeServer()

    def answer(request: httpx.Request) -> httpx.Response:
        query = {key: request.url.params.get_list(key) for key in request.url.params}
        status, body = fake.handle(request.method, request.url.path, query, request.content)
        return httpx.Response(status, json=body)

    targets = list_targets(client_of(httpx.MockTransport(answer)))
    assert [target.name for target in targets] == sorted(FIXED)
    nli = next(target for target in targets if target.name == "nli")
    assert (nli.version, nli.labels, nli.takes_pair) == (1, frozenset({"no", "maybe", "yes"}), True)


def entry(**changes: object) -> dict[str, object]:
    known = {"name": "a", "version": 2, "sha256": "f" * 64, "labels": ["x", "y"], "num_labels": 2}
    return {**known, "problem_type": "single_label_classification", "takes_pair": False, **changes}


def test_adapters_without_an_active_version_are_left_out() -> None:
    page = {"adapters": [entry(), entry(name="staged", version=None, sha256=None)], "next": None}
    targets = list_targets(client_of(httpx.MockTransport(lambda _: httpx.Response(200, json=page))))
    assert targets == [Target("a", 2, "f" * 64, frozenset("xy"), "single_label_classification", False)]


def test_labels_that_the_list_cuts_off_are_fetched_from_the_adapter() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/adapters/acme/many":
            return httpx.Response(200, json={"config": {"id2label": {"0": "x", "1": "y", "2": "z"}}})
        page = {"adapters": [entry(name="acme/many", num_labels=3)], "next": None}
        return httpx.Response(200, content=json.dumps(page))

    (target,) = list_targets(client_of(httpx.MockTransport(answer)))
    assert target.labels == frozenset("xyz")


def test_a_list_that_fails_raises() -> None:
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        list_targets(client_of(httpx.MockTransport(lambda _: httpx.Response(503))))
