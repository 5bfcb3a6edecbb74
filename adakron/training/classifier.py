"""The model that is trained: encoder, adapters and head as one torch module, and its logits in full precision.

Knows tensors and tokens; nothing of data sets, epochs or files.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from adakron.artefact import Adapter
from adakron.attachment import attach, attach_trained, attached, detach
from adakron.backbone import Backbone
from adakron.config import Pooling, ProblemType
from adakron.errors import ConfigError
from adakron.heads import LinearHead, RobertaHead, make_head, pool
from adakron.module import AdaKron, MAdaKron
from adakron.text import TextOrPair, tokenise
from adakron.training.recipe import Recipe

DISTILLATION_TEMPERATURE = 2.0


class Classifier(nn.Module):
    """Tokens to logits and, where labels are given, the loss.

    adapters   those attached to `encoder`, first layer first; empty when the encoder itself is trained
    smoothing  share of the target spread over all labels (single-label only)
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        adapters: nn.ModuleList,
        head: LinearHead | RobertaHead,
        pooler: nn.Module | None,
        pooling: Pooling,
        problem_type: ProblemType,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.adapters, self.head = encoder, adapters, head
        self.pooling, self.problem_type, self.smoothing = pooling, problem_type, smoothing
        self._pooler = (pooler,)  # a submodule of the encoder already: registered twice, it would be saved twice

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Ids, mask (1 for a token) and types [B, T], labels [B] or [B, L] -> logits [B, L] float32, loss a scalar.

        teacher  logits [B, L] of another classifier; the loss then is half its own and half `distillation`
        """
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kinds).last_hidden_state
        logits = self.logits(hidden, attention_mask)
        if labels is None:
            return {"logits": logits}
        loss = self.loss(logits, labels)
        if teacher is not None:
            loss = (loss + self.distillation(logits, teacher)) / 2
        return {"loss": loss, "logits": logits}

    def logits(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's last hidden state [B, T, D] and the mask [B, T] -> [B, L] float32."""
        logits: Tensor = self.head(pool(hidden, attention_mask, self.pooling, self._pooler[0])).float()
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over rows: logits [B, L], labels [B] or [B, L] -> a scalar."""
        if self.problem_type == "regression":
            return F.mse_loss(logits[:, 0], labels.float())
        if self.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)

    def distillation(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """How far logits [B, L] are from a teacher's [B, L]: the mean over rows, a scalar.

        T^2 KL(softmax(teacher / T) || softmax(logits / T)) with T = DISTILLATION_TEMPERATURE (Hinton et al., 2015); of
        several labels a row the same for each label's two outcomes, without T; of values the squared difference.
        """
        if self.problem_type == "regression":
            return F.mse_loss(logits, teacher)
        if self.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, teacher.sigmoid())
        own, wanted = ((values / DISTILLATION_TEMPERATURE).log_softmax(1) for values in (logits, teacher))
        return DISTILLATION_TEMPERATURE**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)

    def layer_adapters(self) -> list[AdaKron | MAdaKron]:
        """The adapters, first layer first."""
        return [module for module in self.adapters if isinstance(module, AdaKron | MAdaKron)]

    def trainable(self) -> dict[str, Tensor]:
        """Copies of the parameters being trained, by name."""
        return {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put copies taken by `trainable` back."""
        self.load_state_dict(state, strict=False)


def adapter_classifier(backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType) -> Classifier:
    """New adapters, begun as `recipe.start` says, and a new head on the frozen backbone.

    Weights are drawn from torch's global generator.
    """
    adapters = attach(backbone.model, recipe.adakron, recipe.method, recipe.experts)
    if recipe.start == "open":
        for adapter in attached(backbone.model):
            nn.init.ones_(adapter.a2.bias)
    return tuned_classifier(backbone, recipe, num_labels, problem_type, adapters)


def tuned_classifier(
    backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType, adapters: nn.ModuleList
) -> Classifier:
    """A new head on an encoder in which what is to be trained has been put, or set to require grad, already.

    adapters  modules that act on the encoder without being part of it
    """
    head = make_head(recipe.head, backbone.hidden_size, num_labels, recipe.dropout)
    _set_dropout(backbone.model, recipe.encoder_dropout)
    if recipe.dtype == "bfloat16":
        _cast_frozen_linears(backbone.model)
    return Classifier(
        backbone.model, adapters, head, backbone.pooler, recipe.pooling, problem_type, recipe.label_smoothing
    )


def full_classifier(backbone: Backbone, recipe: Recipe, num_labels: int, problem_type: ProblemType) -> Classifier:
    """A new head on the backbone, all of which is trained: what adapters are compared with."""
    to_float32(backbone).model.requires_grad_(True)
    _set_dropout(backbone.model, recipe.encoder_dropout)
    if recipe.pooling != "pooler" and backbone.pooler is not None:
        backbone.pooler.requires_grad_(False)
    head = make_head(recipe.head, backbone.hidden_size, num_labels, recipe.dropout)
    return Classifier(
        backbone.model, nn.ModuleList(), head, backbone.pooler, recipe.pooling, problem_type, recipe.label_smoothing
    )


def to_float32(backbone: Backbone) -> Backbone:
    """Convert the encoder's weights in place; returns the same backbone."""
    backbone.model.to(torch.float32)  # type: ignore[arg-type]  # transformers wraps `to` and loses its overloads
    return backbone


def _set_dropout(encoder: PreTrainedModel, share: float) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def _cast_frozen_linears(encoder: PreTrainedModel) -> None:
    """Cast once what autocast would cast in every step: it keeps its casts only of weights that require grad."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear) and not any(p.requires_grad for p in module.parameters()):
            module.to(torch.bfloat16)


def start_from(model: Classifier, trained: Adapter) -> None:
    """Give the adapters of `model`, AdaKron of the same shape and place, the weights of a trained one's, in place."""
    for layer, adapter in enumerate(model.layer_adapters(), start=trained.config.first_layer):
        adapter.load_state_dict(_part(trained, f"layers.{layer}."))


def adapter_tensors(model: Classifier, first_layer: int) -> dict[str, Tensor]:
    """The artefact's tensors, float32, experts averaged."""
    tensors = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    for layer, adapter in enumerate(model.layer_adapters(), start=first_layer):
        for name, tensor in adapter.merged().state_dict().items():
            tensors[f"layers.{layer}.{name}"] = tensor
    return {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}


def reference_logits(
    backbone: Backbone, adapter: Adapter, texts: Sequence[TextOrPair], batch: int = 32
) -> NDArray[np.float32]:
    """Logits [N, L] of the stock transformers encoder with the adapter on it, float32, eval mode.

    Independent of the engine, so that golden examples made by it can judge the engine. The backbone is float32 and
    carries no adapter before and after.
    """
    if not texts:
        return np.zeros((0, adapter.config.num_labels), np.float32)
    model = trained_classifier(backbone, adapter)
    try:
        return forward_texts(model, backbone, texts, adapter.config.max_length, batch)
    finally:
        detach(backbone.model)


def trained_classifier(backbone: Backbone, adapter: Adapter) -> Classifier:
    """An artefact's adapters and head on a float32 backbone, in eval mode. Raises ConfigError for another dtype."""
    if next(backbone.model.parameters()).dtype != torch.float32:
        raise ConfigError("the reference runs in float32", hint="call to_float32(backbone) first")
    config = adapter.config
    modules = [_layer(adapter, layer) for layer in range(config.first_layer, config.num_hidden_layers)]
    attach_trained(backbone.model, modules, config.first_layer)
    head = make_head(config.head, config.hidden_size, config.num_labels)
    head.load_state_dict(_part(adapter, "head."))
    model = Classifier(
        backbone.model, nn.ModuleList(modules), head, backbone.pooler, config.pooling, config.problem_type
    )
    return model.eval()


def _layer(adapter: Adapter, layer: int) -> AdaKron:
    module = AdaKron(adapter.config.hidden_size, adapter.config.adakron)
    module.load_state_dict(_part(adapter, f"layers.{layer}."))
    return module


def _part(adapter: Adapter, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor.float() for name, tensor in adapter.tensors.items() if name.startswith(prefix)
    }


@torch.inference_mode()
def forward_texts(
    model: Classifier, backbone: Backbone, texts: Sequence[TextOrPair], max_length: int, batch: int = 32
) -> NDArray[np.float32]:
    """Logits [N, L] of a classifier in eval mode, in the order of `texts`; rows of like length run together."""
    encoded = encode(backbone, texts, max_length)
    order = sorted(range(len(texts)), key=lambda index: len(encoded[index]["input_ids"]))
    device = model.head.state_dict()["weight" if isinstance(model.head, LinearHead) else "dense.weight"].device
    parts = []
    for start in range(0, len(order), batch):
        rows = pad([encoded[index] for index in order[start : start + batch]], backbone)
        parts.append(model(**{name: tensor.to(device) for name, tensor in rows.items()})["logits"].cpu())
    logits = torch.cat(parts)
    result = torch.empty_like(logits)
    result[torch.tensor(order)] = logits
    return result.numpy()


def encode(backbone: Backbone, texts: Sequence[TextOrPair], max_length: int) -> list[dict[str, list[int]]]:
    """Token ids of each text, without padding; segment ids where the encoder tells two texts apart by them."""
    segments = int(getattr(backbone.model.config, "type_vocab_size", 0) or 0) > 1
    encodings = tokenise(backbone.tokenizer, texts, [max_length] * len(texts))
    return [{"input_ids": e.ids} | ({"token_type_ids": e.type_ids} if segments else {}) for e, _ in encodings]


def pad(rows: Sequence[Mapping[str, Sequence[int]]], backbone: Backbone) -> dict[str, Tensor]:
    """Tensors [B, T] of input_ids, attention_mask and, if given, token_type_ids; T is the longest row."""
    longest = max(len(row["input_ids"]) for row in rows)
    filler = {"input_ids": int(backbone.model.config.pad_token_id or 0), "token_type_ids": 0}
    tensors = {
        name: torch.tensor([[*row[name], *[filler[name]] * (longest - len(row[name]))] for row in rows])
        for name in filler
        if name in rows[0]
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return tensors | {"attention_mask": (torch.arange(longest)[None] < lengths[:, None]).long()}
