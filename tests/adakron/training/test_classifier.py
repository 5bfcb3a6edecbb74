import numpy as np
import pytest
import torch
from transformers import set_seed

from adakron import Row
from adakron.config import AdaKronConfig
from adakron.errors import ConfigError
from adakron.module import MAdaKron
from adakron.training.classifier import (
    adapter_classifier,
    adapter_tensors,
    encode,
    forward_texts,
    full_classifier,
    pad,
    reference_logits,
)
from adakron.training.recipe import Recipe
from tests.reference import Reference
from tests.tiny import tiny_adapter, tiny_backbone

RECIPE = Recipe("demo", bottleneck=12, dtype="float32")
SINGLE = "single_label_classification"
TEXTS = ["the good word", "down", "no people my over know water than call", "hot hot"]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2"])
def test_reference_logits_are_those_of_the_equation(family: str) -> None:
    backbone = tiny_backbone(family)
    adapter = tiny_adapter(backbone, ["a", "b", "c"], pooling="mean")
    oracle = Reference(backbone)
    expected = np.stack([oracle.logits(adapter, Row(text=text)) for text in TEXTS])
    np.testing.assert_allclose(reference_logits(backbone, adapter, TEXTS, batch=3), expected, rtol=1e-4, atol=1e-4)


def test_reference_logits_leave_no_adapter_behind() -> None:
    backbone = tiny_backbone()
    adapter = tiny_adapter(backbone)
    first = reference_logits(backbone, adapter, TEXTS)
    np.testing.assert_array_equal(reference_logits(backbone, adapter, TEXTS), first)


def test_reference_logits_refuse_a_bfloat16_backbone() -> None:
    backbone = tiny_backbone()
    adapter = tiny_adapter(backbone)
    backbone.model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="float32"):
        reference_logits(backbone, adapter, TEXTS)


def test_no_texts_give_no_logits() -> None:
    backbone = tiny_backbone()
    assert reference_logits(backbone, tiny_adapter(backbone, ["a", "b", "c"]), []).shape == (0, 3)


def test_only_adapters_and_head_are_trained() -> None:
    model = adapter_classifier(tiny_backbone(), RECIPE, 2, SINGLE)
    assert {name.split(".")[0] for name in model.trainable()} == {"adapters", "head"}


def test_full_fine_tuning_trains_the_encoder_but_no_unused_pooler() -> None:
    trained = full_classifier(tiny_backbone(), RECIPE, 2, SINGLE).trainable()
    assert any(name.startswith("encoder.encoder.layer.0") for name in trained)
    assert not any("pooler" in name for name in trained)


def test_bfloat16_keeps_trained_weights_in_float32() -> None:
    model = adapter_classifier(tiny_backbone(), Recipe("demo", bottleneck=12), 2, SINGLE)
    assert {tensor.dtype for tensor in model.trainable().values()} == {torch.float32}
    assert model.encoder.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16


def test_encoder_dropout_is_the_recipe_s() -> None:
    model = adapter_classifier(tiny_backbone(), Recipe("demo", bottleneck=12, encoder_dropout=0.3), 2, SINGLE)
    shares = {m.p for m in model.encoder.modules() if isinstance(m, torch.nn.Dropout)}
    assert shares == {0.3}


def test_exported_tensors_start_at_the_first_layer_with_an_adapter() -> None:
    recipe = Recipe("demo", bottleneck=12, first_layer=1, dtype="float32")
    tensors = adapter_tensors(adapter_classifier(tiny_backbone(), recipe, 2, SINGLE), 1)
    assert {name.split(".")[1] for name in tensors if name.startswith("layers.")} == {"1", "2"}


def test_experts_are_exported_as_their_average() -> None:
    set_seed(0)
    recipe = Recipe("demo", bottleneck=12, method="madakron-full", experts=3, dtype="float32")
    model = adapter_classifier(tiny_backbone(), recipe, 2, SINGLE)
    first = model.adapters[0]
    assert isinstance(first, MAdaKron)
    torch.testing.assert_close(adapter_tensors(model, 0)["layers.0.a1.weight"], first.a1.weight.mean(0).detach())


def test_logits_come_back_in_the_order_of_the_texts() -> None:
    backbone = tiny_backbone()
    model = adapter_classifier(backbone, RECIPE, 2, SINGLE).eval()
    together = forward_texts(model, backbone, TEXTS, 32, batch=3)
    alone = np.concatenate([forward_texts(model, backbone, [text], 32) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_pairs_carry_segment_ids_where_the_encoder_knows_them() -> None:
    rows = encode(tiny_backbone("bert"), [("the word", "good")], 32)
    assert rows[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert "token_type_ids" not in encode(tiny_backbone("roberta"), [("the word", "good")], 32)[0]


def test_padding_uses_the_backbone_s_padding_token() -> None:
    backbone = tiny_backbone("roberta")
    batch = pad(encode(backbone, ["the", "the good word"], 32), backbone)
    assert batch["input_ids"][0].tolist()[3:] == [1, 1]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_the_loss_fits_the_problem_type() -> None:
    backbone = tiny_backbone()
    ids = pad(encode(backbone, TEXTS, 32), backbone)
    for problem_type, labels, expected in (
        (SINGLE, torch.tensor([0, 1, 1, 0]), torch.nn.functional.cross_entropy),
        ("multi_label_classification", torch.eye(2).repeat(2, 1), torch.nn.functional.binary_cross_entropy_with_logits),
    ):
        model = adapter_classifier(tiny_backbone(), RECIPE, 2, problem_type).eval()
        found = model(**ids, labels=labels)
        torch.testing.assert_close(found["loss"], expected(found["logits"], labels))
    model = adapter_classifier(tiny_backbone(), RECIPE, 1, "regression").eval()
    values = torch.tensor([0.0, 1.0, 2.0, 3.0])
    found = model(**ids, labels=values)
    torch.testing.assert_close(found["loss"], ((found["logits"][:, 0] - values) ** 2).mean())


def test_the_adapter_s_shape_is_the_recipe_s() -> None:
    assert Recipe("demo", bottleneck=24, factor=6).adakron == AdaKronConfig(24, 6)


@pytest.mark.parametrize(
    ("problem_type", "labels"), [(SINGLE, 3), ("multi_label_classification", 3), ("regression", 1)]
)
def test_half_of_a_distilled_loss_is_the_distance_to_the_teacher(problem_type: str, labels: int) -> None:
    backbone = tiny_backbone()
    set_seed(3)
    model = adapter_classifier(backbone, RECIPE, labels, problem_type).eval()
    rows = pad(encode(backbone, TEXTS, 16), backbone)
    generator = np.random.default_rng(5)
    teacher = torch.from_numpy(generator.normal(size=(len(TEXTS), labels)).astype(np.float32))
    truth = {SINGLE: torch.tensor([0, 2, 1, 1]), "regression": torch.tensor([0.5, 1.5, -2.0, 0.25])}.get(
        problem_type, torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    )
    with torch.no_grad():
        logits = model(**rows)["logits"].double().numpy()
        own, both = (float(model(**rows, labels=truth, **more)["loss"]) for more in ({}, {"teacher": teacher}))
    wanted = teacher.double().numpy()
    if problem_type == "regression":
        distance = ((logits - wanted) ** 2).mean()
    elif problem_type == SINGLE:
        p, q = (np.exp(x / 2) / np.exp(x / 2).sum(1, keepdims=True) for x in (wanted, logits))
        distance = 4 * (p * np.log(p / q)).sum(1).mean()
    else:
        p, q = (1 / (1 + np.exp(-x)) for x in (wanted, logits))
        distance = -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
    assert both == pytest.approx((own + distance) / 2, rel=1e-4)
