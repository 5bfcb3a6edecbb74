from collections import Counter
from random import Random

import pytest

from loadtests.targets import Target
from loadtests.texts import made_up_texts
from loadtests.workload import BATCH_ROWS, PROBES, Call, Workload

TEXTS = made_up_texts(5, 50)


def target(name: str, takes_pair: bool = False) -> Target:
    return Target(name, 1, "0" * 64, frozenset({"a", "b"}), "single_label_classification", takes_pair)


SINGLES = [target(f"s{number}") for number in range(4)]
PAIRS = [target(f"p{number}", True) for number in range(3)]


def workload() -> Workload:
    return Workload([*SINGLES, *PAIRS], TEXTS)


def fits(call: Call) -> bool:
    return all((ask.text_pair is not None) is ask.adapter.startswith("p") for ask in call.asks)


def test_single_asks_one_text_of_an_adapter_for_single_texts() -> None:
    call = workload().single(Random(1))
    assert len(call.asks) == call.adapters == 1
    assert call.body == {"adapter": call.asks[0].adapter, "inputs": [call.asks[0].text]}
    assert fits(call)


def test_pair_asks_one_pair_of_an_adapter_for_pairs() -> None:
    call = workload().pair(Random(1))
    (ask,) = call.asks
    assert call.body == {"adapter": ask.adapter, "inputs": [{"text": ask.text, "text_pair": ask.text_pair}]}
    assert ask.adapter in {"p0", "p1", "p2"}


def test_batch_asks_many_rows_of_one_adapter() -> None:
    calls = [workload().batch(Random(seed)) for seed in range(60)]
    assert all(BATCH_ROWS[0] <= len(call.asks) <= BATCH_ROWS[1] for call in calls)
    assert all(call.adapters == 1 and len(call.body["inputs"]) == len(call.asks) for call in calls)
    assert all(map(fits, calls))
    assert {call.body["adapter"][0] for call in calls} == {"s", "p"}


def test_mixed_asks_many_adapters_in_the_items_form() -> None:
    call = workload().mixed(Random(1))
    assert call.body.keys() == {"items"}
    assert call.adapters > 3
    assert [item["adapter"] for item in call.body["items"]] == [ask.adapter for ask in call.asks]
    assert [item.get("text_pair") for item in call.body["items"]] == [ask.text_pair for ask in call.asks]
    assert fits(call)


def test_popular_adapters_come_first_in_the_list() -> None:
    load, rng = workload(), Random(1)
    drawn = Counter(load.single(rng).body["adapter"] for _ in range(8000))
    assert drawn["s0"] / drawn["s3"] == pytest.approx(4, rel=0.15)


def test_adapters_that_change_get_their_share_while_there_are_any() -> None:
    live: list[str] = []
    load, rng = Workload(SINGLES, TEXTS, lambda: live), Random(1)
    assert all(load.single(rng).body["adapter"].startswith("s") for _ in range(300))
    live.append("load/x")
    drawn = Counter(load.single(rng).body["adapter"] for _ in range(3000))
    assert drawn["load/x"] / 3000 == pytest.approx(0.1, rel=0.2)


def test_a_fifth_of_the_texts_are_probes_with_the_text_that_was_recorded() -> None:
    load, rng = workload(), Random(1)
    recorded = {(call.asks[0].adapter, call.asks[0].probe): call.asks[0] for call in load.probes()}
    asks = [ask for _ in range(300) for ask in load.mixed(rng).asks]
    probes = [ask for ask in asks if ask.probe is not None]
    assert len(probes) / len(asks) == pytest.approx(0.2, rel=0.15)
    assert all(recorded[ask.adapter, ask.probe] == ask for ask in probes)


def test_probes_ask_every_adapter_alone_for_all_its_scores() -> None:
    calls = workload().probes()
    assert Counter(call.body["adapter"] for call in calls) == {t.name: PROBES for t in [*SINGLES, *PAIRS]}
    assert all(call.body["top_k"] is None and len(call.asks) == 1 for call in calls)


def test_without_pair_adapters_there_are_no_pairs() -> None:
    load, rng = Workload(SINGLES, TEXTS), Random(1)
    assert not load.has_pairs
    assert all(ask.text_pair is None for _ in range(50) for ask in load.mixed(rng).asks)


def test_without_adapters_for_single_texts_there_is_no_workload() -> None:
    with pytest.raises(ValueError, match="found none"):
        Workload(PAIRS, TEXTS)
