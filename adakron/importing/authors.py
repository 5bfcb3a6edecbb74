"""From a checkpoint of the authors' code to an artefact.

Their trainer saves the whole model. Of layer N it holds

    {root}.encoder.layer.N.output.ExpertSoup.{part}.deepspeed_experts.{expert}.weight | bias
    {root}.encoder.layer.N.output.ExpertSoup.{part}.expert_score_weight                        [experts]

where root is bert or roberta and the parts, by the code that wrote them, are

    GLUE    MoA_A1 [r / 4, d]    MoA_A2 [4, d]        MoA_B [d, r]      z = gelu(MoA_A2 x (x) MoA_A1 x)    "a2_a1"
    NLG     MoA_A  [4, d]        MoA_A1 [r / 4, d]    MoA_B [d, r]      z = gelu(MoA_A1 x (x) MoA_A x)     "a1_a2"

Experts of a part are averaged with the weights softmax(expert_score_weight), as that code does at inference; they are
equal where the scores are, or where there are none. The head is `classifier.*`: RoBERTa's two maps on the first token,
or BERT's one on the pooler. Knows tensors and names; nothing of files or pickles.

Source: github.com/DetectiveMB/AdaKron, `expert_soup.py` for GLUE and for NLG.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adakron.artefact import Adapter, Example
from adakron.backbone import Backbone
from adakron.config import AdaKronConfig, AdapterConfig, Head, Order, Pooling
from adakron.engine import PROBES
from adakron.errors import (
    BackboneError,
    BaseMismatchError,
    ConfigError,
    FormatError,
    MissingTensorError,
    ShapeError,
    UnexpectedTensorError,
)
from adakron.text import TextOrPair
from adakron.training.classifier import reference_logits, to_float32

FACTOR = 4
FAMILIES = ("bert", "roberta", "xlm-roberta")
_SOUP = re.compile(
    r"encoder\.layer\.(?P<layer>[0-9]{1,3})\.output\.ExpertSoup\.(?P<part>MoA_A|MoA_A1|MoA_A2|MoA_B)\."
    r"(?:deepspeed_experts\.(?P<expert>[0-9]{1,3})\.(?P<kind>weight|bias)|expert_score_weight)"
)


@dataclass(frozen=True, slots=True)
class _Code:
    """Which of the authors' programs: the parts that are A1 and A2 here, and the order in which it multiplies them."""

    name: str
    a1: str
    a2: str
    order: Order


_CODES = (_Code("GLUE", "MoA_A1", "MoA_A2", "a2_a1"), _Code("NLG", "MoA_A1", "MoA_A", "a1_a2"))


@dataclass(frozen=True, slots=True)
class Imported:
    """An artefact made from a checkpoint.

    code      "GLUE" or "NLG"
    experts   the largest number of experts that were averaged
    frozen    the checkpoint's tensors of the backbone, equal to those of the base and not kept
    unused    its other tensors that were not used: buffers without weights
    """

    adapter: Adapter
    code: str
    experts: int
    frozen: tuple[str, ...]
    unused: tuple[str, ...]


def convert(
    checkpoint: Mapping[str, Tensor],
    backbone: Backbone,
    label_names: Sequence[str],
    *,
    order: Order | None = None,
    takes_pair: bool = False,
    max_length: int = 128,
) -> Imported:
    """Make an artefact, with golden examples by the transformers model.

    label_names  in index order; a single one makes it a regression
    order        None: the order of the code that gives the parts these names. It must be named where r = 16, since
                 the shapes cannot confirm the names there: both factors are 4 wide

    Raises BackboneError for a family that the authors' code has not, BaseMismatchError if the checkpoint was trained on
    another backbone, UnexpectedTensorError naming a tensor that would be lost, MissingTensorError, ShapeError,
    FormatError if `order` contradicts the shapes, ConfigError if it has to be named or the labels do not fit.
    """
    if backbone.model_type not in FAMILIES:
        raise BackboneError(
            f"the authors' code has no {backbone.model_type!r} encoder", hint=f"expected {', '.join(FAMILIES)}"
        )
    soup, head, rest = _sort(checkpoint, f"{backbone.model.base_model_prefix}.")
    frozen, unused = _check_backbone(rest, backbone)
    code = _code(soup)
    first_layer, last_layer = min(soup)[0], max(soup)[0]
    if last_layer >= backbone.num_hidden_layers:
        raise UnexpectedTensorError(
            f"layer {last_layer}: the base has {backbone.num_hidden_layers} layers", tensor=f"layer {last_layer}"
        )
    tensors: dict[str, Tensor] = {}
    for layer in range(first_layer, backbone.num_hidden_layers):
        for ours, part in (("a1", code.a1), ("a2", code.a2), ("up", "MoA_B")):
            if (layer, part) not in soup:
                raise MissingTensorError(f"layer {layer}: no {part}", tensor=part, expected="experts", found="nothing")
            for kind, tensor in _averaged(soup[layer, part], f"layer {layer}: {part}").items():
                tensors[f"layers.{layer}.{ours}.{kind}"] = tensor
    rows = {name: len(tensors[f"layers.{first_layer}.{name}.weight"]) for name in ("a1", "a2")}
    head_kind, pooling = _head_kind(head)
    config = AdapterConfig(
        adakron=AdaKronConfig(rows["a1"] * FACTOR, FACTOR, _order(code, rows, order), first_layer),
        hidden_size=backbone.hidden_size,
        num_hidden_layers=backbone.num_hidden_layers,
        base_model_name_or_path=backbone.name,
        base_fingerprint=backbone.fingerprint,
        revision=backbone.revision,
        label_names=tuple(label_names),
        problem_type="regression" if len(label_names) == 1 else "single_label_classification",
        head=head_kind,
        pooling=pooling,
        max_length=max_length,
        text_fields=("text", "text_pair") if takes_pair else ("text",),
    )
    outputs = len(head["bias" if head_kind == "linear" else "out_proj.bias"])
    if outputs != len(label_names):
        raise ConfigError(
            f"labels: expected {outputs}, as many as the head has; found {len(label_names)}", key="labels"
        )
    tensors |= {f"head.{name}": tensor.float() for name, tensor in head.items()}
    experts = max(len(parts["weight"]) for parts in soup.values())
    return Imported(_with_examples(config, tensors, backbone), code.name, experts, frozen, unused)


_Part = dict[str, dict[int, Tensor]]  # "weight", "bias" and "score" -> expert -> tensor; the score's expert is 0


def _sort(
    checkpoint: Mapping[str, Tensor], root: str
) -> tuple[dict[tuple[int, str], _Part], dict[str, Tensor], dict[str, Tensor]]:
    """(parts by layer and name, the head without `classifier.`, what remains of the backbone without its root)."""
    soup: dict[tuple[int, str], _Part] = {}
    head: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in checkpoint.items():
        if name.startswith("classifier."):
            head[name.removeprefix("classifier.")] = tensor
        elif not name.startswith(root):
            raise UnexpectedTensorError(
                f"{name[:120]}: neither of the encoder {root}* nor of the head classifier.*",
                tensor=name[:120],
                hint="a checkpoint of another architecture? --base names the encoder it was trained on",
            )
        elif found := _SOUP.fullmatch(name.removeprefix(root)):
            part = soup.setdefault((int(found["layer"]), found["part"]), {"weight": {}, "bias": {}, "score": {}})
            part[found["kind"] or "score"][int(found["expert"] or 0)] = tensor
        else:
            rest[name.removeprefix(root)] = tensor
    if not soup:
        raise MissingTensorError(
            "it holds no ExpertSoup tensors: not a checkpoint of the authors' code",
            expected=f"{root}encoder.layer.0.output.ExpertSoup.MoA_A1.deepspeed_experts.0.weight",
            found="nothing",
        )
    return soup, head, rest


def _check_backbone(rest: Mapping[str, Tensor], backbone: Backbone) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(tensors that equal the base's, buffers). A tensor that the base has not was trained, and would be lost."""
    base, frozen, unused = backbone.model.state_dict(), [], []
    for name, tensor in rest.items():
        if name.endswith("position_ids"):
            unused.append(name)
            continue
        if name not in base:
            raise UnexpectedTensorError(f"{name[:120]}: the base has no such tensor", tensor=name[:120])
        if tensor.shape != base[name].shape or not torch.equal(tensor.float(), base[name].float().cpu()):
            raise BaseMismatchError(
                f"{name}: not as in {backbone.name}; the checkpoint was trained on another encoder, or trained it too",
                hint="name the encoder it was trained on with --base",
            )
        frozen.append(name)
    return tuple(frozen), tuple(unused)


def _code(soup: Mapping[tuple[int, str], _Part]) -> _Code:
    parts = {part for _, part in soup}
    for code in _CODES:
        if parts == {code.a1, code.a2, "MoA_B"}:
            return code
    expected = " or ".join(f"{code.a1}, {code.a2}, MoA_B ({code.name})" for code in _CODES)
    raise FormatError(f"ExpertSoup: expected the parts {expected}; found {', '.join(sorted(parts))}")


def _averaged(part: _Part, where: str) -> dict[str, Tensor]:
    """sum of softmax(score)[e] * expert e, for weight and bias, float32."""
    count = len(part["weight"])
    for kind in ("weight", "bias"):
        if sorted(part[kind]) != list(range(count)) or not count:
            raise MissingTensorError(
                f"{where}: expected the {kind} of experts 0 to {count - 1}; found {sorted(part[kind])}", tensor=where
            )
        if len({tensor.shape for tensor in part[kind].values()}) > 1:
            raise ShapeError(f"{where}: experts of different shapes", tensor=where)
    scores = part["score"].get(0, torch.zeros(count)).double()
    if scores.shape != (count,):
        raise ShapeError(
            f"{where}.expert_score_weight: expected shape [{count}]; found {list(scores.shape)}",
            tensor=where,
            expected=f"[{count}]",
            found=str(list(scores.shape)),
        )
    shares = scores.softmax(0)
    return {
        kind: torch.stack([share * part[kind][e].double() for e, share in enumerate(shares)]).sum(0).float()
        for kind in ("weight", "bias")
    }


def _order(code: _Code, rows: Mapping[str, int], order: Order | None) -> Order:
    """rows: of A1 and A2 as the code names them."""
    shapes = f"{code.a1} has {rows['a1']} rows, {code.a2} has {rows['a2']}"
    if rows["a2"] != FACTOR:
        raise ShapeError(
            f"{shapes}: in the {code.name} code, which gives parts these names, {code.a2} has {FACTOR}",
            tensor=code.a2,
            expected=f"[{FACTOR}, d]",
            found=f"[{rows['a2']}, d]",
        )
    if rows["a1"] == FACTOR:
        if order is None:
            raise ConfigError(
                f"{shapes}: the shapes do not tell which factor comes first",
                key="order",
                hint=f"say --order; the {code.name} code, which gives parts these names, has {code.order}",
            )
        return order
    if order not in (None, code.order):
        raise FormatError(
            f"order {order} contradicts the checkpoint: {shapes}; the {code.name} code multiplies them as {code.order}",
            expected=code.order,
            found=str(order),
            hint="leave --order out",
        )
    return code.order


def _head_kind(head: Mapping[str, Tensor]) -> tuple[Head, Pooling]:
    if set(head) == {"weight", "bias"}:
        return "linear", "pooler"
    if set(head) == {"dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"}:
        return "roberta", "cls"
    raise MissingTensorError(
        f"classifier: expected weight and bias, or dense and out_proj; found {', '.join(sorted(head)) or 'nothing'}",
        tensor="classifier",
    )


def _with_examples(config: AdapterConfig, tensors: Mapping[str, Tensor], backbone: Backbone) -> Adapter:
    """The artefact with golden examples: what a server holds it to, order of factors and all."""
    if config.pooling == "pooler" and backbone.pooler is None:
        raise BaseMismatchError("the head reads the pooler; the base's checkpoint holds none")
    bare = Adapter.build(config, tensors)
    texts: list[TextOrPair] = list(PROBES)
    if config.takes_pair:
        texts = list(zip(PROBES, [*PROBES[1:], PROBES[0]], strict=True))
    logits = reference_logits(to_float32(backbone), bare, texts, batch=1)
    examples = []
    for text, row in zip(texts, logits, strict=True):
        first, second = (text, None) if isinstance(text, str) else text
        examples.append(Example(first, second, tuple(row.tolist())))
    return Adapter.build(config, tensors, examples)
