"""Checkpoints of the authors' code: what becomes of them answers as they do, and what cannot be kept is refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from adakron import Backbone, Engine, Row
from adakron.errors import AdaKronError
from adakron.importing.authors import convert
from tests.adakron.importing.written import logits, make
from tests.tiny import tiny_backbone

LABELS = ("no", "perhaps", "yes")
TEXT = "the water came over that little place"


@pytest.fixture(scope="module", params=["bert", "roberta"])
def backbone(request) -> Backbone:
    return tiny_backbone(request.param, layers=2)


@pytest.fixture(scope="module")
def bert() -> Backbone:
    return tiny_backbone("bert", layers=2)


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("code", ["GLUE", "NLG"])
def test_engine_answers_as_the_authors_formula_in_plain_loops(code: str, experts: int, backbone: Backbone) -> None:
    state = make(backbone, code, experts=experts)
    made = convert(state, backbone, LABELS)
    config = made.adapter.config
    assert (made.code, made.experts, config.order) == (code, experts, "a2_a1" if code == "GLUE" else "a1_a2")
    assert (config.bottleneck, config.factor, config.label_names) == (12, 4, LABELS)
    engine = Engine(backbone, torch.device("cpu"), torch.float32)
    assert engine.check(made.adapter).examples == 3
    engine.add("imported", made.adapter)
    [answer] = engine.classify([Row("imported", TEXT)])
    wanted = logits(state, backbone, code, backbone.tokenizer.encode(TEXT).ids)
    assert np.abs(answer.logits - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


def test_experts_without_scores_are_averaged_evenly(bert: Backbone) -> None:
    state = make(bert, "GLUE", experts=2, scores=False)
    name = "bert.encoder.layer.1.output.ExpertSoup.MoA_A2.deepspeed_experts.{}.weight"
    tensors = convert(state, bert, LABELS).adapter.tensors
    torch.testing.assert_close(tensors["layers.1.a2.weight"], (state[name.format(0)] + state[name.format(1)]) / 2)


def test_tensors_of_the_frozen_encoder_are_compared_and_reported(bert: Backbone) -> None:
    made = convert(make(bert, "GLUE"), bert, LABELS)
    assert set(made.frozen) == set(bert.model.state_dict())
    assert made.unused == ("embeddings.position_ids",)


def test_file_with_adapters_and_head_alone_is_enough(bert: Backbone) -> None:
    whole = make(bert, "GLUE")
    part = {name: tensor for name, tensor in whole.items() if "ExpertSoup" in name or name.startswith("classifier")}
    made = convert(part, bert, LABELS)
    assert made.frozen == ()
    assert made.adapter.sha256 == convert(whole, bert, LABELS).adapter.sha256


def test_one_label_is_a_regression_and_a_pair_has_two_texts(bert: Backbone) -> None:
    config = convert(make(bert, "GLUE", labels=1), bert, ["similarity"], takes_pair=True).adapter.config
    assert (config.problem_type, config.takes_pair) == ("regression", True)


class TestOrder:
    def test_it_must_be_said_where_both_factors_are_four_wide(self, bert: Backbone) -> None:
        with pytest.raises(AdaKronError, match="do not tell which factor comes first") as caught:
            convert(make(bert, "GLUE", r=16), bert, LABELS)
        assert "a2_a1" in str(caught.value.hint)

    @pytest.mark.parametrize(("order", "code"), [("a2_a1", "GLUE"), ("a1_a2", "NLG")])
    def test_what_is_said_decides_there(self, order, code: str, bert: Backbone) -> None:
        state = make(bert, code, r=16)
        made = convert(state, bert, LABELS, order=order)
        engine = Engine(bert, torch.device("cpu"), torch.float32)
        engine.add("imported", made.adapter)
        [answer] = engine.classify([Row("imported", TEXT)])
        wanted = logits(state, bert, code, bert.tokenizer.encode(TEXT).ids)
        assert np.abs(answer.logits - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())

    @pytest.mark.parametrize(("code", "order"), [("GLUE", "a1_a2"), ("NLG", "a2_a1")])
    def test_one_that_contradicts_the_shapes_is_refused(self, code: str, order, bert: Backbone) -> None:
        with pytest.raises(AdaKronError, match=f"order {order} contradicts the checkpoint"):
            convert(make(bert, code), bert, LABELS, order=order)

    def test_names_that_contradict_the_shapes_are_refused(self, bert: Backbone) -> None:
        swapped = {}
        for name, tensor in make(bert, "GLUE").items():
            swapped[name.translate(str.maketrans("12", "21")) if "MoA_A" in name else name] = tensor
        swapped = {name.replace("layer.2", "layer.1"): tensor for name, tensor in swapped.items()}
        with pytest.raises(AdaKronError, match="MoA_A2 has 3"):
            convert(swapped, bert, LABELS)


SOUP = "bert.encoder.layer.1.output.ExpertSoup."
Change = Callable[[dict[str, torch.Tensor]], object]
SPOILT: dict[str, tuple[str, Change]] = {
    "an unknown trained tensor in the encoder": (
        "encoder.layer.0.output.adapter.A.weight: the base has no such tensor",
        lambda state: state.update({"bert.encoder.layer.0.output.adapter.A.weight": torch.zeros(2)}),
    ),
    "an unknown part": (
        "ExpertSoup.MoA_C",
        lambda state: state.update({f"{SOUP}MoA_C.deepspeed_experts.0.weight": torch.zeros(2)}),
    ),
    "an unknown head": ("lm_head.bias", lambda state: state.update({"lm_head.bias": torch.zeros(2)})),
    "a GPT-2 of the NLG code": (
        "transformer.h.0.mlp.ExpertSoup",
        lambda state: state.update({"transformer.h.0.mlp.ExpertSoup.MoA_A.deepspeed_experts.0.bias": torch.zeros(4)}),
    ),
    "another encoder": (
        "not as in tiny-bert",
        lambda state: state["bert.encoder.layer.0.output.dense.bias"].add_(1),
    ),
    "a missing part of a layer": (
        "layer 1: no MoA_A1",
        lambda state: [state.pop(name) for name in list(state) if name.startswith(f"{SOUP}MoA_A1")],
    ),
    "a missing bias": ("expected the bias", lambda state: state.pop(f"{SOUP}MoA_B.deepspeed_experts.0.bias")),
    "a wrong shape": (
        "layers.1.up.weight: expected shape",
        lambda state: state.update({f"{SOUP}MoA_B.deepspeed_experts.0.weight": torch.zeros(20, 11)}),
    ),
    "scores for another number of experts": (
        "expert_score_weight",
        lambda state: state.update({f"{SOUP}MoA_B.expert_score_weight": torch.zeros(2)}),
    ),
    "no head": (
        "classifier: expected",
        lambda state: [state.pop(name) for name in ("classifier.weight", "classifier.bias")],
    ),
    "more layers than the base": (
        "layer 7: the base has 2",
        lambda state: state.update({f"{SOUP}MoA_B.expert_score_weight".replace(".1.", ".7."): torch.zeros(1)}),
    ),
    "no adapters": (
        "no ExpertSoup",
        lambda state: [state.pop(name) for name in list(state) if "ExpertSoup" in name],
    ),
    "parts of neither code": (
        "expected the parts",
        lambda state: [state.pop(name) for name in list(state) if "MoA_A2" in name],
    ),
    "NaN": ("NaN", lambda state: state["classifier.bias"].fill_(float("nan"))),
}


@pytest.mark.parametrize("what", list(SPOILT))
def test_checkpoint_that_cannot_be_kept_whole_is_refused_by_name(what: str, bert: Backbone) -> None:
    message, spoil = SPOILT[what]
    state = make(bert, "GLUE")
    spoil(state)
    with pytest.raises(AdaKronError) as caught:
        convert(state, bert, LABELS)
    assert message in str(caught.value)


def test_other_number_of_labels_is_refused(bert: Backbone) -> None:
    with pytest.raises(AdaKronError, match="expected 3, as many as the head has; found 2"):
        convert(make(bert, "GLUE"), bert, LABELS[:2])


def test_family_that_the_code_has_not_is_refused() -> None:
    with pytest.raises(AdaKronError, match="distilbert"):
        convert({}, tiny_backbone("distilbert"), LABELS)


def test_head_on_a_pooler_that_the_base_has_not_is_refused() -> None:
    whole = tiny_backbone("bert", layers=2)
    without = Backbone.from_model(whole.model, whole.tokenizer, "bare", has_pooler=False)
    with pytest.raises(AdaKronError, match="pooler"):
        convert(make(whole, "GLUE"), without, LABELS)
