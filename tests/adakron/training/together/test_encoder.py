import pytest
import torch

from adakron.attachment import attach_trained, detach
from adakron.config import AdaKronConfig
from adakron.module import AdaKron
from adakron.training.classifier import encode, pad
from adakron.training.together.encoder import Segment, SharedEncoder
from tests.tiny import FAMILIES, HIDDEN, LAYERS, tiny_backbone

TEXTS = ["the good word", "down", "no people my over know water than call", "hot hot", "some we can out other"]


def adapters(first_layer: int, bottleneck: int = 12, seed: int = 0) -> list[AdaKron]:
    """Modules of which every part shows."""
    torch.manual_seed(seed)
    found = [AdaKron(HIDDEN, AdaKronConfig(bottleneck)) for _ in range(first_layer, LAYERS)]
    for module in found:
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return found


def batch_of(backbone, texts=TEXTS) -> dict[str, torch.Tensor]:
    return pad(encode(backbone, texts, 24), backbone)


def alone(backbone, batch, modules, first_layer: int) -> torch.Tensor:
    """By transformers' own forward, with the adapters of one task attached."""
    attach_trained(backbone.model, modules, first_layer)
    try:
        return backbone.model(**batch).last_hidden_state
    finally:
        detach(backbone.model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [1, 2])
def test_entering_at_a_layer_is_the_whole_encoder(family: str, layer: int) -> None:
    backbone, modules = tiny_backbone(family), adapters(layer)
    batch = batch_of(backbone)
    expected = alone(backbone, batch, modules, layer)
    encoder = SharedEncoder(backbone.model)
    hidden = encoder.below(batch, layer)
    found = encoder.above(hidden, batch, layer, [Segment(slice(0, 5), modules)], is_training=False)
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-5)
    assert not torch.allclose(found[mask], hidden[mask], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_several_adapters_get_each_their_own(family: str) -> None:
    backbone, one, two = tiny_backbone(family), adapters(0, 12, seed=1), adapters(0, 24, seed=2)
    batch = batch_of(backbone)
    expected = torch.cat(
        [alone(backbone, batch, modules, 0)[rows] for modules, rows in ((one, slice(0, 2)), (two, slice(2, 5)))]
    )
    encoder = SharedEncoder(backbone.model)
    segments = [Segment(slice(0, 2), one), Segment(slice(2, 5), two)]
    found = encoder.above(None, batch, 0, segments, is_training=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_lies_below_is_not_computed_again() -> None:
    backbone, ran = tiny_backbone(), []
    batch = batch_of(backbone)
    encoder = SharedEncoder(backbone.model)
    hidden = encoder.below(batch, 2)
    for depth, layer in enumerate(backbone.model.encoder.layer):
        layer.register_forward_hook(lambda *_, depth=depth: ran.append(depth))
    encoder.above(hidden, batch, 2, [Segment(slice(0, 5), adapters(2))], is_training=False)
    assert ran == [2]


def test_below_drops_nothing_and_above_does_in_training() -> None:
    backbone = tiny_backbone()
    for module in backbone.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    encoder, batch = SharedEncoder(backbone.model), batch_of(backbone)
    backbone.model.train()
    torch.testing.assert_close(encoder.below(batch, 2), encoder.below(batch, 2), rtol=0, atol=0)
    hidden, segments = encoder.below(batch, 2), [Segment(slice(0, 5), adapters(2))]
    dropped = [encoder.above(hidden, batch, 2, segments, is_training=True) for _ in range(2)]
    assert not torch.allclose(*dropped)


def test_closing_leaves_the_encoder_as_it_was() -> None:
    backbone = tiny_backbone()
    batch = batch_of(backbone)
    before = backbone.model(**batch).last_hidden_state
    encoder = SharedEncoder(backbone.model)
    encoder.above(encoder.below(batch, 1), batch, 1, [Segment(slice(0, 5), adapters(1))], is_training=False)
    torch.testing.assert_close(backbone.model(**batch).last_hidden_state, before, rtol=0, atol=0)
    encoder.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.model.modules())


def test_a_failing_layer_leaves_the_encoder_whole() -> None:
    backbone = tiny_backbone()
    batch = batch_of(backbone)
    before = backbone.model(**batch).last_hidden_state
    encoder = SharedEncoder(backbone.model)
    with pytest.raises(RuntimeError):
        encoder.above(torch.zeros(5, 3, 1), batch, 1, [Segment(slice(0, 5), adapters(1))], is_training=False)
    torch.testing.assert_close(backbone.model(**batch).last_hidden_state, before, rtol=0, atol=0)


def test_an_encoder_with_a_convolution_after_its_first_layer_cannot_be_entered() -> None:
    backbone = tiny_backbone("deberta-v2")
    assert SharedEncoder(backbone.model).can_be_entered
    backbone.model.config.conv_kernel_size = 3
    assert not SharedEncoder(backbone.model).can_be_entered
