from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from adakron import AdaKronConfig, Adapter, Backbone, Engine, RowError
from loadtests import engine_systems
from loadtests.engine_rivals import Pipelines, SplitLoop, _from_zero
from loadtests.engine_systems import (
    LABEL_COUNTS,
    BareBackbone,
    EngineSystem,
    Floor,
    PaddedEngine,
    adapter_template,
    encode,
    logits_of,
    random_adapters,
    register,
)
from loadtests.engine_trace import Batch
from tests.tiny import FAMILIES, tiny_adapter, tiny_backbone

CPU, F32 = torch.device("cpu"), torch.float32
# Rows of different lengths, those of one adapter too; adapter 1 has no row, and 5 takes the weights of 2.
BATCH = Batch(((2, 5, 9, 3), (2, 7, 3), (2, 11, 12, 13, 14, 3), (2, 30, 31, 3), (2, 8, 6, 7, 15, 3)), (2, 0, 5, 0, 2))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def adapters(backbone: Backbone) -> list[Adapter]:
    return [tiny_adapter(backbone, ("a", "b", "c"), seed=seed, pooling="mean") for seed in range(3)]


@pytest.fixture(scope="module")
def engine(backbone: Backbone) -> Engine:
    return Engine(backbone, CPU, F32)


@pytest.fixture(scope="module")
def keys(engine: Engine, adapters: list[Adapter]) -> list[str]:
    return register(engine, adapters, 6, "adapter")


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def largest_difference(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


def test_the_engine_answers_each_row_with_its_own_adapter(engine: Engine, keys: list[str], held: ExitStack) -> None:
    mixed = EngineSystem(engine, keys).prepare(BATCH, held)()
    alone = [
        EngineSystem(engine, keys).prepare(Batch((ids,), (number,)), held)()[0]
        for ids, number in zip(BATCH.ids, BATCH.adapters, strict=True)
    ]
    assert largest_difference(mixed, alone) < 1e-5


def test_leases_are_held_until_the_contest_is_over(engine: Engine, keys: list[str]) -> None:
    with ExitStack() as stack:
        EngineSystem(engine, keys).prepare(BATCH, stack)
        with engine.lease(keys[2]) as lease:
            assert lease.resident.users == 3
    with engine.lease(keys[2]) as lease:
        assert lease.resident.users == 1


def test_the_padded_engine_gives_the_logits_of_the_packed_one(
    engine: Engine, keys: list[str], backbone: Backbone, held: ExitStack
) -> None:
    packed = EngineSystem(engine, keys).prepare(BATCH, held)
    expected = packed()
    padded = PaddedEngine(engine, keys, backbone).prepare(BATCH, held)
    assert largest_difference(padded(), expected) < 1e-5
    assert engine._encoder.path == "packed"
    assert largest_difference(packed(), expected) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_split_and_loop_gives_the_logits_of_the_engine(family: str, held: ExitStack) -> None:
    backbone = tiny_backbone(family)
    adapters = [tiny_adapter(backbone, ("a", "b", "c"), seed=seed, pooling="mean") for seed in range(3)]
    engine = Engine(backbone, CPU, F32)
    expected = EngineSystem(engine, register(engine, adapters, 6, "x")).prepare(BATCH, held)()
    found = SplitLoop(backbone, adapters, F32, CPU).prepare(BATCH, held)()
    assert largest_difference(found, expected) < 1e-5


def test_the_bare_backbone_has_one_head_over_the_mean_of_its_states(backbone: Backbone, held: ExitStack) -> None:
    bare = BareBackbone(Engine(backbone, CPU, F32), num_labels=3)
    scores = bare.prepare(BATCH, held)()
    with torch.inference_mode():
        states = [backbone.model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0) for ids in BATCH.ids]
        expected = bare._head(torch.stack(states)).softmax(-1).numpy()
    assert scores.shape == (5, 3)
    assert np.abs(scores - expected).max() < 1e-5


def test_rows_without_keys_are_rows_of_the_backbone(engine: Engine, held: ExitStack) -> None:
    answers = EngineSystem(engine, None).prepare(BATCH, held)()
    assert [len(logits) for logits in answers] == [0] * 5


def test_the_floor_runs_every_linear_map_of_every_layer_once(
    backbone: Backbone, held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    def recording(weight: torch.Tensor, bias: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def linear(x: torch.Tensor) -> None:
            assert x.shape == (BATCH.n_tokens, weight.shape[1])
            assert bias.shape == weight.shape[:1]
            shapes.append(tuple(weight.shape))

        return linear

    monkeypatch.setattr(engine_systems, "make_linear", recording)
    run = Floor(backbone, F32, CPU).prepare(BATCH, held)
    assert shapes == []
    run()
    assert shapes == [(60, 20), (20, 20), (28, 20), (20, 28)] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_floor_knows_every_family(family: str, held: ExitStack) -> None:
    Floor(tiny_backbone(family), F32, CPU).prepare(BATCH, held)()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_pipelines_answer_every_row_of_every_task(backbone: Backbone, held: ExitStack) -> None:
    pipelines = Pipelines(backbone, 3, F32, CPU)
    answers = pipelines.prepare(BATCH, held)()
    assert [len(rows) for rows in answers] == [2, 2, 1]
    assert all(set(row) == {"label", "score"} for rows in answers for row in rows)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_pipelines_share_the_encoder_and_not_the_head(backbone: Backbone) -> None:
    first, second = (pipeline.model for pipeline in Pipelines(backbone, 2, F32, CPU)._pipelines)
    assert first.bert is second.bert
    assert first.classifier is not second.classifier
    expected = backbone.model.get_parameter("embeddings.word_embeddings.weight")
    assert torch.equal(first.bert.embeddings.word_embeddings.weight, expected)


def test_adapters_of_a_batch_are_numbered_by_their_first_row() -> None:
    assert _from_zero(BATCH) == [0, 1, 2, 1, 0]


def test_random_adapters_have_every_label_count(backbone: Backbone) -> None:
    adapters = random_adapters(adapter_template(backbone, AdaKronConfig(bottleneck=12)))
    assert {adapter.config.num_labels for adapter in adapters} == set(LABEL_COUNTS)
    assert len({adapter.sha256 for adapter in adapters}) == len(adapters)


def test_every_registered_adapter_has_slots_of_its_own(engine: Engine, keys: list[str]) -> None:
    placements = []
    for key in keys:
        with engine.lease(key) as lease:
            tenant = lease.resident.tenant
            assert tenant is not None
            placements.append(tenant.placement)
    assert len(set(placements)) == 6


def test_a_row_that_the_engine_refuses_stops_the_benchmark(engine: Engine, held: ExitStack) -> None:
    with pytest.raises(ValueError, match="refuses a row"):
        encode(engine, Batch(((10**6,),), (0,)), [None], held)


def test_a_row_without_an_answer_stops_the_benchmark() -> None:
    with pytest.raises(ValueError, match="ADAPTER_NUMERIC_ERROR"):
        logits_of(RowError("ADAPTER_NUMERIC_ERROR", "NaN"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
class TestPeft:
    """Marked slow for the import of peft alone."""

    @pytest.fixture(scope="class")
    def system(self, backbone: Backbone) -> Any:
        pytest.importorskip("peft")
        from loadtests.engine_rivals import PeftMixedBatch

        return PeftMixedBatch(backbone, 3, F32, CPU)

    def test_each_row_has_its_own_adapter(self, system: Any, held: ExitStack) -> None:
        for number, scale in enumerate((0.0, 1.0, 8.0)):
            for name, parameter in system.model.named_parameters():
                if f"adapter_{number}." in name:
                    parameter.data.mul_(scale)
        states: list[torch.Tensor] = []
        system.model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
        same_text = Batch((BATCH.ids[0],) * 4, (0, 1, 2, 1))
        system.prepare(same_text, held)()
        first, second, third, again = states[0]
        assert torch.allclose(second, again, atol=1e-6)
        assert not torch.allclose(first, second, atol=1e-3)
        assert not torch.allclose(second, third, atol=1e-3)

    def test_a_copied_adapter_is_what_peft_adds_itself(self, system: Any) -> None:
        from peft import LoraConfig
        from peft.tuners.lora import LoraLayer

        system.model.add_adapter("added", LoraConfig(task_type="FEATURE_EXTRACTION"))
        layer = next(layer for layer in system.model.modules() if isinstance(layer, LoraLayer))
        for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
            held = getattr(layer, attribute, None)
            if isinstance(held, dict | torch.nn.ModuleDict | torch.nn.ParameterDict):
                assert ("added" in held) == ("adapter_2" in held), attribute
        assert layer.lora_A["added"].weight.shape == layer.lora_A["adapter_2"].weight.shape
