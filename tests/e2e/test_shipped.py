"""The shipped adapters on a real cluster: one mixed call says what single calls say."""

import pytest

from adakron import Adapter
from tests.e2e.cluster import PROJECT, Server

NAMES = sorted(path.parent.name for path in (PROJECT / "adapters").glob("*/adapter_model.safetensors"))
TEXTS = (
    "I was charged twice for the same coffee",
    "Book a table for four at a quiet place near the harbour",
    "What a dull, lifeless evening this film made of a good story",
    "My passport expires before the trip, what now?",
    "Play something slow from the seventies",
    "They moved the match again and nobody told us",
    "Will it snow in the mountains on Sunday?",
    "She smiled all the way home after the exam",
    "How do I change the code of my card",
    "The tower was finished in the year in which the old bridge fell, and stood for two centuries",
)
# The encoder may run in bfloat16, where a row's logits may differ by 2 % of the largest between batches.
SCORE_TOLERANCE = 0.03
VALUE_TOLERANCE = 0.15
MOST_ROWS = 70  # each is a call of its own besides


@pytest.fixture(scope="module")
def shipped(cluster: Server) -> dict[str, bool]:
    """Name -> whether it takes pairs, of all shipped adapters, registered."""
    cluster.ensure_running()
    takes_pair = {}
    for name in NAMES:
        adapter = Adapter.from_folder(PROJECT / "adapters" / name)
        assert cluster.put(name, adapter).status_code in (200, 201)
        takes_pair[name] = adapter.config.takes_pair
    return takes_pair


def test_rows_for_every_adapter_in_one_call_equal_a_call_each(cluster: Server, shipped: dict[str, bool]) -> None:
    texts = TEXTS[: MOST_ROWS // len(shipped)]
    assert len(texts) > 2
    items = [
        {"adapter": name, "text": text} | ({"text_pair": TEXTS[number - 1]} if shipped[name] else {})
        for number, text in enumerate(texts)
        for name in shipped
    ]
    with cluster.client() as client:
        mixed = client.post("/v1/classify", json={"items": items}).json()
        assert "errors" not in mixed
        for item, together in zip(items, mixed["results"], strict=True):
            row = {key: value for key, value in item.items() if key != "adapter"}
            reply = client.post("/v1/classify", json={"adapter": item["adapter"], "inputs": [row]}).json()
            [alone] = reply["results"]
            assert together["adapter"] == reply["adapter"] == item["adapter"]
            assert together["sha256"] == reply["sha256"]
            if "value" in alone:
                assert together["value"] == pytest.approx(alone["value"], abs=VALUE_TOLERANCE)
            else:
                assert together["score"] == pytest.approx(alone["score"], abs=SCORE_TOLERANCE)
                assert together["label"] == alone["label"] or alone["score"] < 0.5 + SCORE_TOLERANCE
