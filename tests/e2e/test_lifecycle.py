"""Adapters on a real cluster of two replicas: registered, replaced, rolled back, deleted, all of it under load."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.e2e.cluster import Server, Signature

Make = Callable[..., Signature]


@contextmanager
def load(server: Server, adapter: str, workers: int = 3) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Calls to one adapter from several connections meanwhile; (status, body) of each in the order of the answers."""
    answers: list[tuple[int, dict[str, Any]]] = []
    stop = threading.Event()

    def call() -> None:
        with server.client() as client:
            while not stop.is_set():
                reply = client.post("/v1/classify", json={"adapter": adapter, "inputs": ["a text", "another one"]})
                answers.append((reply.status_code, reply.json()))

    threads = [threading.Thread(target=call) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_registered_adapter_answers_on_every_connection_at_once(server: Server, make: Make) -> None:
    mine = make(1)
    created = server.put("e2e/first", mine.adapter)
    assert (created.status_code, created.json()["lagging"]) == (201, [])
    for _ in range(20):
        reply = server.classify("e2e/first", ["a text"])
        assert reply.status_code == 200
        body = reply.json()
        assert (body["adapter"], body["version"], body["sha256"]) == ("e2e/first", 1, mine.adapter.sha256)
        assert mine.made(body["results"][0])


def test_both_replicas_take_calls_and_hold_the_adapter(server: Server, make: Make) -> None:
    server.put("e2e/both", make(2).adapter)
    seen = {server.info()["replica"] for _ in range(40)}
    assert len(seen) == 2
    with server.client() as client:
        assert set(client.get("/v1/adapters/e2e/both").json()["resident"]) == seen


def test_mixed_items_and_fan_out_answer_each_with_its_own_adapter(server: Server, make: Make) -> None:
    marks = {f"e2e/mix{mark}": make(mark) for mark in (3, 4, 5)}
    for name, mine in marks.items():
        assert server.put(name, mine.adapter).status_code == 201
    items = [{"adapter": name, "text": f"text {n}"} for n in range(8) for name in marks]
    with server.client() as client:
        mixed = client.post("/v1/classify", json={"items": items}).json()["results"]
        assert [result["adapter"] for result in mixed] == [item["adapter"] for item in items]
        assert all(marks[result["adapter"]].made(result) for result in mixed)
        spread = client.post("/v1/classify", json={"adapters": list(marks), "inputs": ["x", "y"]}).json()["results"]
    assert [part["adapter"] for part in spread] == list(marks)
    assert all(marks[part["adapter"]].made(result) for part in spread for result in part["results"])


def test_bad_text_is_an_error_in_its_place(server: Server, make: Make) -> None:
    server.put("e2e/places", make(6).adapter)
    body = server.classify("e2e/places", ["good", "   ", "good too"]).json()
    assert body["errors"] == 1
    assert ["error" in result for result in body["results"]] == [False, True, False]


def test_registering_under_load_disturbs_nobody(server: Server, make: Make) -> None:
    busy = make(7)
    server.put("e2e/busy", busy.adapter)
    with load(server, "e2e/busy") as answers:
        for mark in (8, 9, 10):
            mine = make(mark)
            assert server.put(f"e2e/while{mark}", mine.adapter).status_code == 201
            for _ in range(4):
                assert mine.made(server.classify(f"e2e/while{mark}", ["x"]).json()["results"][0])
    assert len(answers) > 20
    assert {status for status, _ in answers} == {200}
    assert all(busy.made(result) for _, body in answers for result in body["results"])


def test_replacing_under_load_gives_the_old_or_the_new_and_never_neither(server: Server, make: Make) -> None:
    versions = {number: make(10 + number) for number in range(1, 6)}
    server.put("e2e/swap", versions[1].adapter)
    with load(server, "e2e/swap") as answers:
        for number in range(2, 6):
            assert server.put("e2e/swap", versions[number].adapter).json()["version"] == number
            activated_at = len(answers)
            assert server.classify("e2e/swap", ["x"]).json()["version"] == number
            time.sleep(0.2)
            # Calls that were on their way when the reply came may still show the version before.
            assert {body["version"] for _, body in answers[activated_at + 6 :]} <= {number}
    assert {status for status, _ in answers} == {200}
    for _, body in answers:
        mine = versions[body["version"]]
        assert body["sha256"] == mine.adapter.sha256
        assert all(mine.made(result) for result in body["results"])


def test_roll_back_is_served_at_once_and_pins_hold(server: Server, make: Make) -> None:
    old, new = make(16), make(17)
    server.put("e2e/back", old.adapter)
    server.put("e2e/back", new.adapter)
    assert new.made(server.classify("e2e/back", ["x"]).json()["results"][0])
    with server.client() as client:
        reply = client.post("/v1/adapters/e2e/back/activate", json={"version": 1})
    assert (reply.status_code, reply.json()["lagging"]) == (200, [])
    for _ in range(10):
        assert old.made(server.classify("e2e/back", ["x"]).json()["results"][0])
        assert new.made(server.classify("e2e/back@2", ["x"]).json()["results"][0])


def test_deleted_adapter_is_gone_everywhere_and_its_blob_too(server: Server, make: Make) -> None:
    mine = make(18, labels=("kept", "gone"))  # bytes that no other name has, or deleting this one would free nothing
    server.put("e2e/gone", mine.adapter)
    blob = server.state_dir / "blobs" / mine.adapter.sha256[:2] / mine.adapter.sha256
    assert blob.exists()
    with load(server, "e2e/gone") as answers:
        time.sleep(0.2)
        with server.client() as client:
            reply = client.delete("/v1/adapters/e2e/gone")
    assert reply.status_code == 200
    assert reply.json()["freed_bytes"]["disk"] == mine.adapter.size_bytes
    assert reply.json()["freed_bytes"]["device"] > 0
    assert {status for status, _ in answers} <= {200, 404}
    assert not blob.exists()
    for _ in range(6):
        assert server.classify("e2e/gone").status_code == 404


def test_refused_upload_leaves_name_store_and_service_alone(server: Server, make: Make) -> None:
    mine = make(19)
    server.put("e2e/keep", mine.adapter)
    blobs = sorted(path.name for path in (server.state_dir / "blobs").rglob("*"))
    with server.client() as client:
        damaged = mine.adapter.to_bytes()[:-4] + b"\x00\x00\xc0\x7f"
        reply = client.put("/v1/adapters/e2e/keep", content=damaged)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "NON_FINITE_TENSOR")
    assert sorted(path.name for path in (server.state_dir / "blobs").rglob("*")) == blobs
    assert mine.made(server.classify("e2e/keep", ["x"]).json()["results"][0])


def test_adapter_of_another_backbone_is_refused_by_a_replica(server: Server, info: dict[str, Any]) -> None:
    from tests.e2e.cluster import signature

    fingerprint = info["engine"]["fingerprint"] | {"weights_sha256": "0" * 64}
    other = {**info, "engine": {**info["engine"], "fingerprint": fingerprint}}
    reply = server.put("e2e/misfit", signature(other, 20).adapter)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "BASE_MISMATCH")
    assert reply.json()["error"]["hint"]


def test_two_writers_on_one_etag_one_wins(server: Server, make: Make) -> None:
    etag = server.put("e2e/race", make(21).adapter).headers["etag"]
    statuses: list[int] = []

    def write(mark: int) -> None:
        statuses.append(server.put("e2e/race", make(mark).adapter, headers={"if-match": etag}).status_code)

    threads = [threading.Thread(target=write, args=(mark,)) for mark in (22, 23)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 412]


def test_min_generation_reads_ones_own_write(server: Server, make: Make) -> None:
    generation = server.put("e2e/own", make(24).adapter).json()["generation"]
    for _ in range(6):
        assert server.classify("e2e/own", min_generation=generation).status_code == 200
    behind = server.classify("e2e/own", min_generation=generation + 10_000)
    assert (behind.status_code, behind.json()["error"]["code"]) == (503, "NOT_READY")
    assert behind.headers["retry-after"]
