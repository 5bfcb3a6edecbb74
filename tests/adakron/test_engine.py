import random
import threading

import numpy as np
import pytest
import torch

from adakron import AdaKronConfig, Adapter, Engine, Example, Row, RowError
from adakron.encoding import MAX_TEXT_CHARS
from adakron.engine import BATCH_TOKENS
from adakron.errors import BankFullError, BaseMismatchError, GoldenMismatchError, NonFiniteError, UnknownAdapterError
from adakron.kernels.compiler import native_library
from adakron.kernels.eager import EagerWork
from adakron.rows import Result
from tests.reference import Reference
from tests.tiny import FAMILIES, WORDS, tiny_adapter, tiny_backbone

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def zoo(backbone) -> dict[str, Adapter]:
    """Adapters of every kind: widths, factors, orders, first layers, poolings, heads, problem types, pairs."""
    poolings = ["cls", "mean"] + (["pooler"] if backbone.pooler is not None else [])
    methods = [AdaKronConfig(12, 4), AdaKronConfig(12, 4, "a1_a2"), AdaKronConfig(20, 4, first_layer=1)]
    kinds = ["single_label_classification", "multi_label_classification", "single_label_classification", "regression"]
    zoo = {}
    for n in range(12):
        labels = [2, 9, 40, 1][n % 4]
        zoo[f"a{n}"] = tiny_adapter(
            backbone,
            [f"l{j}" for j in range(labels)],
            seed=n,
            adakron=methods[n % 3],
            problem_type=kinds[n % 4],
            pooling=poolings[n % len(poolings)],
            head="roberta" if n % 5 == 4 else "linear",
            text_fields=("text", "text_pair") if n % 6 == 3 else ("text",),
        )
    return zoo


def rows_for(zoo: dict[str, Adapter], count: int, seed: int = 0) -> list[Row]:
    rnd = random.Random(seed)

    def text() -> str:
        return " ".join(rnd.choices(WORDS, k=rnd.randint(1, 36)))

    names = [rnd.choice(list(zoo)) for _ in range(count)]
    return [Row(n, text(), text() if zoo[n].config.takes_pair else None) for n in names]


def logits_of(answers) -> list[np.ndarray]:
    assert all(isinstance(answer, Result) for answer in answers), answers
    return [answer.logits for answer in answers]


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    bound = tolerance * max(1.0, np.abs(expected).max())
    assert np.abs(found - expected).max() <= bound
    if len(expected) > 1:
        second, first = np.sort(expected)[-2:]
        if first - second > 2 * bound:
            assert found.argmax() == expected.argmax()


@pytest.fixture(scope="module", params=[(family, kernels) for family in FAMILIES for kernels in ("auto", "eager")])
def world(request):
    family, kernels = request.param
    backbone = tiny_backbone(family)
    reference = Reference(backbone)
    adapters = zoo(backbone)
    engine = Engine(backbone, CPU, torch.float32, kernels=kernels)
    for name, adapter in adapters.items():
        engine.add(name, adapter)
    return engine, adapters, reference


def small_engine(**options):
    backbone = tiny_backbone()
    return Engine(backbone, CPU, torch.float32, **options), backbone


def placement_of(lease):
    return lease.resident.tenant.placement


def test_a_mixed_batch_equals_the_transformers_model_row_by_row(world):
    engine, adapters, reference = world
    rows = rows_for(adapters, 60)
    for row, found in zip(rows, logits_of(engine.classify(rows)), strict=True):
        assert_close(found, reference.logits(adapters[row.adapter], row), TOLERANCE[torch.float32])


def test_a_row_in_any_batch_equals_the_row_alone(world):
    engine, adapters, _ = world
    rows = rows_for(adapters, 40, seed=1)
    alone = [logits_of(engine.classify([row]))[0] for row in rows]
    shuffled = list(range(40))
    random.Random(2).shuffle(shuffled)
    for order in (list(range(40)), shuffled):
        together = logits_of(engine.classify([rows[n] for n in order]))
        for n, found in zip(order, together, strict=True):
            assert_close(found, alone[n], TOLERANCE[torch.float32])


def test_a_text_through_many_adapters_that_start_late_equals_each_of_them_alone(world):
    engine, adapters, reference = world
    texts = [" ".join(WORDS[:n]) for n in (3, 3, 17)]
    rows = [Row(name, text) for name, adapter in adapters.items() for text in texts if not adapter.config.takes_pair]
    assert any(adapter.config.first_layer for adapter in adapters.values())
    for row, found in zip(rows, logits_of(engine.classify(rows)), strict=True):
        assert_close(found, reference.logits(adapters[row.adapter], row), TOLERANCE[torch.float32])


def test_rows_without_adapter_get_the_mean_of_the_backbones_hidden_states(world):
    engine, adapters, reference = world
    rows = [Row(text=" ".join(WORDS[:n])) for n in (1, 7, 20)]
    mixed = engine.classify([*rows_for(adapters, 5), *rows])[5:]
    for row, answer in zip(rows, mixed, strict=True):
        with torch.no_grad():
            expected = reference._pooled("mean", row, 40).numpy()
        np.testing.assert_allclose(answer.embedding, expected, atol=2e-5)
        assert answer.label is None


def test_the_path_is_packed_where_the_family_allows_it(world):
    engine, _, _ = world
    assert engine.info().path == ("padded" if engine.info().family == "deberta-v2" else "packed")


def test_bfloat16_stays_within_its_stated_bound_of_the_same_row_alone():
    backbone = tiny_backbone(hidden=64)
    adapters = {f"a{n}": tiny_adapter(backbone, seed=n, scale=0.1) for n in range(5)}
    engine = Engine(backbone, CPU, torch.bfloat16)
    for name, adapter in adapters.items():
        engine.add(name, adapter)
    rows = rows_for(adapters, 40)
    for row, found in zip(rows, logits_of(engine.classify(rows)), strict=True):
        assert_close(found, logits_of(engine.classify([row]))[0], TOLERANCE[torch.bfloat16])


def test_batches_are_cut_by_tokens_and_answers_keep_their_order():
    engine, backbone = small_engine()
    engine.add("a", tiny_adapter(backbone, max_length=40))
    rows = [Row("a", input_ids=[5 + (n + t) % 50 for t in range(40)]) for n in range(BATCH_TOKENS // 40 + 9)]
    answers = logits_of(engine.classify(rows))
    for n in (0, len(rows) // 2, len(rows) - 1):
        assert_close(answers[n], logits_of(engine.classify([rows[n]]))[0], 1e-5)


def test_a_nan_for_one_adapters_row_is_that_rows_error_alone():
    engine, backbone = small_engine()
    healthy, sick = tiny_adapter(backbone, seed=1), tiny_adapter(backbone, seed=2)
    engine.add("healthy", healthy)
    engine.add("sick", sick)
    rows = [Row("healthy", "the day"), Row("sick", "the day"), Row("healthy", "water and more of it")]
    before = logits_of(engine.classify([rows[0], rows[2]]))
    placement = placement_of(engine.lease("sick"))
    engine.bank.sites[placement.site].tensors["up_bias"][placement.site_slot] = float("nan")
    first, error, last = engine.classify(rows)
    assert isinstance(error, RowError)
    assert error.code == "ADAPTER_NUMERIC_ERROR"
    assert_close(first.logits, before[0], 1e-5)
    assert_close(last.logits, before[1], 1e-5)


@pytest.mark.parametrize(
    ("row", "code", "param"),
    [
        (Row("one", None), "BLANK_TEXT", "text"),
        (Row("one", " \n\t"), "BLANK_TEXT", "text"),
        (Row("one", "a", "b"), "UNEXPECTED_PAIR", "text_pair"),
        (Row("two", "a"), "MISSING_PAIR", "text_pair"),
        (Row("two", "a", ""), "BLANK_TEXT", "text_pair"),
        (Row("one", "a" * (MAX_TEXT_CHARS + 1)), "TEXT_TOO_LARGE", "text"),
        (Row("one", "half \ud800"), "INVALID_TEXT", "text"),
        (Row("one", "the " * 60, truncate=False), "TOO_LONG", "text"),
        (Row("one", input_ids=[10**6]), "INVALID_TEXT", "input_ids"),
        (Row("one", input_ids=[]), "INVALID_TEXT", "input_ids"),
        (Row("one", input_ids=[5] * 33), "TOO_LONG", "input_ids"),
        (Row("nobody", "a"), "ADAPTER_NOT_FOUND", "adapter"),
    ],
)
def test_a_bad_row_is_an_error_in_its_place(row, code, param):
    engine, backbone = small_engine()
    engine.add("one", tiny_adapter(backbone))
    engine.add("two", tiny_adapter(backbone, text_fields=("text", "text_pair")))
    good, error, other = engine.classify([Row("one", "the day"), row, Row("two", "water", "number")])
    assert isinstance(error, RowError)
    assert (error.code, error.param) == (code, param)
    assert isinstance(good, Result)
    assert isinstance(other, Result)


def test_a_text_of_the_longest_allowed_size_is_answered_and_marked_truncated():
    engine, backbone = small_engine()
    engine.add("one", tiny_adapter(backbone))
    [answer] = engine.classify([Row("one", "a " * (MAX_TEXT_CHARS // 2))])
    assert answer.truncated
    assert answer.n_tokens == 32


def test_scores_are_softmax_sigmoid_or_nothing():
    engine, backbone = small_engine()
    for name, kind, labels in (
        ("s", "single_label_classification", 3),
        ("m", "multi_label_classification", 3),
        ("r", "regression", 1),
    ):
        engine.add(name, tiny_adapter(backbone, [f"l{n}" for n in range(labels)], problem_type=kind))
    single, multi, regression = engine.classify([Row(name, "the day") for name in "smr"])
    exponentials = np.exp(single.logits - single.logits.max())
    np.testing.assert_allclose(single.scores, exponentials / exponentials.sum(), rtol=1e-5)
    np.testing.assert_allclose(multi.scores, 1 / (1 + np.exp(-multi.logits)), rtol=1e-5)
    assert not len(regression.scores)
    assert regression.value == float(regression.logits[0])
    assert single.top(None)[0] == (single.label, single.score)
    assert [s for _, s in single.top(None)] == sorted(single.scores.tolist(), reverse=True)
    assert set(multi.labels) == {
        name for name, score in zip(multi.label_names, multi.scores, strict=True) if score >= 0.5
    }


def test_softmax_survives_huge_logits():
    engine, backbone = small_engine()
    adapter = tiny_adapter(backbone)
    tensors = {n: t * (0 if n == "head.weight" else 1) for n, t in adapter.tensors.items()}
    tensors["head.bias"] = torch.tensor([1e4, -1e4])
    engine.add("a", Adapter.build(adapter.config, tensors))
    [answer] = engine.classify([Row("a", "the day")])
    assert answer.scores.tolist() == [1.0, 0.0]


def test_replacing_an_adapter_keeps_leased_rows_on_the_former_one():
    engine, backbone = small_engine()
    old, new = tiny_adapter(backbone, seed=1), tiny_adapter(backbone, seed=2)
    engine.add("a", old)
    row = Row("a", "the day")
    before = logits_of(engine.classify([row]))[0]
    lease = engine.lease("a")
    [encoded] = engine.encode([row], [lease])
    engine.add("a", new)
    engine.add("b", tiny_adapter(backbone, seed=3))
    after = logits_of(engine.classify([row]))[0]
    [held] = engine.run([encoded])
    assert np.array_equal(held.logits, before)
    assert not np.allclose(after, before, atol=1e-3)
    placement = placement_of(lease)
    slot = placement.site_slot
    shelf = engine.bank.sites[placement.site]
    assert shelf.tensors["up"][slot].any()
    lease.release()
    lease.release()
    assert not shelf.tensors["up"][slot].any()


def test_removing_frees_at_once_without_users_and_later_with():
    engine, backbone = small_engine()
    engine.add("a", tiny_adapter(backbone))
    engine.add("b", tiny_adapter(backbone, seed=1))
    assert engine.remove("a").wait(0).device_bytes > 0
    assert "a" not in engine
    lease = engine.lease("b")
    site = placement_of(lease).site
    departure = engine.remove("b")
    assert departure.wait(0).device_bytes == 0
    with pytest.raises(UnknownAdapterError):
        engine.lease("b")
    free = len(engine.bank.sites[site].free)
    lease.release()
    assert departure.wait(0).device_bytes > 0
    assert len(engine.bank.sites[site].free) == free + 1
    with pytest.raises(UnknownAdapterError):
        engine.remove("b")


def test_classify_gives_every_lease_back_even_when_it_fails(monkeypatch):
    engine, backbone = small_engine()
    engine.add("a", tiny_adapter(backbone))
    monkeypatch.setattr(engine, "run", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.classify([Row("a", "the day"), Row("nobody", "x")])
    assert engine.lease("a").resident.users == 1


def test_an_adapter_for_another_backbone_is_refused():
    engine, _ = small_engine()
    with pytest.raises(BaseMismatchError, match="weights"):
        engine.add("a", tiny_adapter(tiny_backbone(seed=9)))
    assert engine.keys() == ()


def test_pooler_pooling_is_refused_where_there_is_no_pooler():
    backbone = tiny_backbone("electra")
    with pytest.raises(BaseMismatchError, match="pooler"):
        Engine(backbone, CPU, torch.float32).add("a", tiny_adapter(backbone, pooling="pooler"))


def test_a_bank_over_budget_refuses():
    engine, backbone = small_engine(device_budget_bytes=100_000)
    adapters = [tiny_adapter(backbone, seed=n) for n in range(30)]
    with pytest.raises(BankFullError):
        [engine.add(f"a{n}", adapter) for n, adapter in enumerate(adapters)]
    assert engine.info().adapter_bytes <= 100_000


class TestCheck:
    def test_golden_examples_must_be_reproduced(self):
        engine, backbone = small_engine()
        plain = tiny_adapter(backbone)
        engine.add("plain", plain)
        logits = tuple(map(float, logits_of(engine.classify([Row("plain", "the day")]))[0]))
        good = Adapter.build(plain.config, plain.tensors, [Example("the day", None, logits)])
        assert engine.check(good).examples == 1
        bad = Adapter.build(plain.config, plain.tensors, [Example("the day", None, (logits[0] + 0.05, logits[1]))])
        with pytest.raises(GoldenMismatchError, match="golden example 0"):
            engine.check(bad)

    def test_a_swapped_factor_order_is_caught_by_the_golden_examples(self):
        engine, backbone = small_engine()
        right = tiny_adapter(backbone, adakron=AdaKronConfig(12, 4, "a2_a1"))
        engine.add("right", right)
        logits = tuple(map(float, logits_of(engine.classify([Row("right", "the day")]))[0]))
        other = tiny_adapter(backbone, adakron=AdaKronConfig(12, 4, "a1_a2"))
        with pytest.raises(GoldenMismatchError):
            engine.check(Adapter.build(other.config, right.tensors, [Example("the day", None, logits)]))

    def test_values_that_overflow_are_refused(self):
        engine, backbone = small_engine()
        adapter = tiny_adapter(backbone)
        tensors = {name: tensor * (1e38 if "up.weight" in name else 1) for name, tensor in adapter.tensors.items()}
        with pytest.raises(NonFiniteError):
            engine.check(Adapter.build(adapter.config, tensors))

    @pytest.mark.parametrize(("scale", "no_effect"), [(0.0, True), (0.4, False)])
    def test_an_adapter_without_effect_is_legal_and_reported(self, scale, no_effect):
        engine, backbone = small_engine()
        assert engine.check(tiny_adapter(backbone, scale=scale)).no_effect is no_effect

    def test_later_checks_are_judged_as_the_first_is(self):
        engine, backbone = small_engine()
        asked = [(0.0, "mean"), (0.4, "mean"), (0.0, "cls"), (0.4, "cls"), (0.0, "mean")]
        found = [engine.check(tiny_adapter(backbone, scale=scale, pooling=pooling)) for scale, pooling in asked]
        assert [one.no_effect for one in found] == [True, False, True, False, True]

    def test_nothing_of_a_checked_adapter_stays(self):
        engine, backbone = small_engine()
        engine.check(tiny_adapter(backbone))
        [shelf] = engine.bank.sites.values()
        assert engine.keys() == ()
        assert not any(tensor.any() for tensor in shelf.tensors.values())


def test_adding_and_removing_during_traffic_never_gives_another_adapters_answer():
    engine, backbone = small_engine()
    adapters = {f"a{n}": tiny_adapter(backbone, seed=n) for n in range(6)}
    row_text = "water and the day"
    expected = {}
    for name, adapter in adapters.items():
        engine.add(name, adapter)
        expected[name] = logits_of(engine.classify([Row(name, row_text)]))[0]
    stop = threading.Event()

    def churn():
        n = 0
        while not stop.is_set():
            engine.add(f"churn{n % 20}", tiny_adapter(backbone, seed=1000 + n))
            if n >= 10:
                engine.remove(f"churn{(n - 10) % 20}")
            n += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(60):
            rows = [Row(name, row_text) for name in adapters]
            for row, found in zip(rows, logits_of(engine.classify(rows)), strict=True):
                assert_close(found, expected[row.adapter], 1e-5)
    finally:
        stop.set()
        thread.join()


def test_auto_dtype_and_unknown_device_are_decided_at_load():
    engine = Engine.load(dtype="float32", device="cpu")
    info = engine.info()
    assert (info.dtype, info.device, info.path) == ("float32", "cpu", "packed")
    assert (info.hidden_size, info.num_layers, info.max_length) == (384, 6, 512)
    assert Engine.load(dtype="auto", device="cpu").info().dtype in ("float32", "bfloat16")


def test_layers_below_the_first_adapter_are_computed_once_for_a_text(monkeypatch):
    engine, backbone = small_engine(kernels="eager")
    for n, first_layer in enumerate((1, 2, 2, 0)):
        engine.add(f"a{n}", tiny_adapter(backbone, seed=n, adakron=AdaKronConfig(12, 4, first_layer=first_layer)))
    tokens = []
    attend = EagerWork.attend

    def counted(work, qkv):
        tokens.append(len(qkv))
        return attend(work, qkv)

    monkeypatch.setattr(EagerWork, "attend", counted)
    logits_of(engine.classify([Row(f"a{n}", "the hot word") for n in range(4)]))
    # Of 5 tokens each: in layer 0 a3 alone and the other three together, in layer 1 a1 and a2 together, then all apart.
    assert tokens == [10, 15, 20]


def test_the_kernels_are_compiled_where_there_is_a_compiler_and_eager_if_asked():
    engine, backbone = small_engine()
    assert engine.info().kernels == ("eager" if native_library() is None else "native")
    assert Engine(backbone, CPU, torch.float32, kernels="eager").info().kernels == "eager"
