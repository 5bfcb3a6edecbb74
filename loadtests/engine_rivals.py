"""What people use today for many classifiers on one encoder: B1, B2 and B3, each as its own documentation has it.

They get padded batches, as these systems take them, cut by nobody: one forward for all rows where the system allows
that. Adapters of a batch are numbered from 0 in the order of their first row.
"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pipelines.text_classification import TextClassificationPipeline

from adakron import AdaKron, Adapter, Backbone
from adakron.attachment import SiteHook
from adakron.families import sites
from loadtests.engine_contest import Run
from loadtests.engine_trace import Batch, Ids

PIPELINE_BATCH = 16


class PeftMixedBatch:
    """B1: LoRA adapters of PEFT in one forward, each row with its own through `adapter_names`.

    Rank 8 on query and value, PEFT's defaults. Its heads are one gathered product over all rows, faster than PEFT's
    own, which loops over adapters and takes linear heads only. Raises ImportError without peft.
    """

    def __init__(self, backbone: Backbone, adapters: int, dtype: torch.dtype, device: torch.device) -> None:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        self._device, self._pad_id = device, _pad_id(backbone)
        encoder: Any = copy.deepcopy(backbone.model)
        encoder.to(device=device, dtype=dtype)
        config = LoraConfig(task_type="FEATURE_EXTRACTION", init_lora_weights=False)
        model = get_peft_model(encoder, config, adapter_name=_name(0), autocast_adapter_dtype=False)
        for layer in list(model.modules()):
            if isinstance(layer, LoraLayer):
                for number in range(1, adapters):
                    _copy_lora(layer, _name(0), _name(number))
        self.model = model.train(False).requires_grad_(False)
        self._heads = torch.randn(adapters, 2, backbone.hidden_size, device=device).to(dtype)

    def prepare(self, batch: Batch, held: ExitStack) -> Run:
        numbers = _from_zero(batch)
        names, slots = [_name(number) for number in numbers], torch.tensor(numbers, device=self._device)

        @torch.inference_mode()
        def run() -> np.ndarray:
            hidden = self.model(**_padded(batch.ids, self._pad_id, self._device), adapter_names=names).last_hidden_state
            logits = torch.bmm(self._heads[slots], hidden[:, 0, :, None]).squeeze(-1)
            scores: np.ndarray = logits.float().softmax(-1).cpu().numpy()
            return scores

        return run


def _copy_lora(layer: Any, source: str, name: str) -> None:
    """One more adapter in a LoRA layer: what `add_adapter` does, which takes minutes for hundreds of them."""
    for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
        held = getattr(layer, attribute, None)
        if isinstance(held, dict | nn.ModuleDict | nn.ParameterDict) and source in held:
            held[name] = copy.deepcopy(held[source])


class SplitLoop:
    """B2: the batch split by adapter, and the transformers model run for each part with its AdaKron modules attached.

    The adapters are the engine's own: number n of a batch has the weights of adapters[n % len(adapters)], in memory of
    its own.
    """

    def __init__(
        self, backbone: Backbone, adapters: Sequence[Adapter], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._adapters, self._dtype, self._device, self._pad_id = adapters, dtype, device, _pad_id(backbone)
        self._parts: dict[int, tuple[list[AdaKron], nn.Linear]] = {}
        encoder: Any = copy.deepcopy(backbone.model)
        self.model: PreTrainedModel = encoder.to(device=device, dtype=dtype)
        self._hooks: list[SiteHook] = []
        for site in sites(self.model):
            self._hooks.append(SiteHook(AdaKron(backbone.hidden_size, adapters[0].config.adakron)))
            site.register_forward_hook(self._hooks[-1])

    def prepare(self, batch: Batch, held: ExitStack) -> Run:
        rows_of: dict[int, list[int]] = {}
        for row, number in enumerate(batch.adapters):
            rows_of.setdefault(number, []).append(row)
            self.load(number)

        @torch.inference_mode()
        def run() -> list[np.ndarray]:
            answers: list[np.ndarray] = [np.empty(0)] * len(batch.ids)
            for number, rows in rows_of.items():
                modules, head = self._parts[number]
                for hook, module in zip(self._hooks, modules, strict=True):
                    hook.adapter = module
                inputs = _padded([batch.ids[row] for row in rows], self._pad_id, self._device)
                hidden = self.model(**inputs).last_hidden_state.float()
                mask = inputs["attention_mask"][..., None]
                logits: Tensor = head((hidden * mask).sum(1) / mask.sum(1))
                for row, values in zip(rows, logits.cpu().numpy(), strict=True):
                    answers[row] = values
            return answers

        return run

    def load(self, number: int) -> None:
        """Make adapter `number` resident, if it is not."""
        if number in self._parts:
            return
        adapter = self._adapters[number % len(self._adapters)]
        config, modules = adapter.config, []
        for layer in range(config.num_hidden_layers):
            prefix = f"layers.{layer}."
            module = AdaKron(config.hidden_size, config.adakron)
            module.load_state_dict(
                {name.removeprefix(prefix): value for name, value in adapter.tensors.items() if name.startswith(prefix)}
            )
            modules.append(module.to(self._device, self._dtype).requires_grad_(False))
        head = nn.Linear(config.hidden_size, config.num_labels)
        head.load_state_dict({"weight": adapter.tensors["head.weight"], "bias": adapter.tensors["head.bias"]})
        self._parts[number] = modules, head.to(self._device).requires_grad_(False)


class Pipelines:
    """B3: a transformers pipeline for each task, its rows sorted by length, in batches of 16.

    Tokens in place of texts. The pipelines share the encoder's weights, which full copies of it would not: that spares
    them memory and cache misses.
    """

    def __init__(self, backbone: Backbone, tasks: int, dtype: torch.dtype, device: torch.device) -> None:
        pad = backbone.tokenizer.id_to_token(_pad_id(backbone))
        tokenizer_class: Any = PreTrainedTokenizerFast
        tokenizer = tokenizer_class(tokenizer_object=backbone.tokenizer, pad_token=pad)
        auto: Any = AutoModelForSequenceClassification
        model = auto.from_config(backbone.model.config)
        getattr(model, model.base_model_prefix).load_state_dict(backbone.model.state_dict(), strict=False)
        model = model.to(device=device, dtype=dtype).train(False).requires_grad_(False)
        pipeline: Any = _TokenPipeline
        self._pipelines = [
            pipeline(model=_task_of(model), tokenizer=tokenizer, device=device, batch_size=PIPELINE_BATCH)
            for _ in range(tasks)
        ]

    def prepare(self, batch: Batch, held: ExitStack) -> Run:
        parts: dict[int, list[Ids]] = {}
        for ids, number in zip(batch.ids, _from_zero(batch), strict=True):
            parts.setdefault(number, []).append(ids)
        by_length = {number: sorted(rows, key=len) for number, rows in parts.items()}

        @torch.inference_mode()
        def run() -> list[Any]:
            return [self._pipelines[number](rows) for number, rows in by_length.items()]

        return run


class _TokenPipeline(TextClassificationPipeline):
    """Takes token ids where the pipeline takes a text."""

    def preprocess(self, inputs: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]  # as its parent does
        ids = torch.tensor([inputs])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _task_of(model: Any) -> Any:
    """A model with a head of its own around the same encoder."""
    task = copy.copy(model)
    task._modules = dict(model._modules)
    task.classifier = copy.deepcopy(model.classifier)
    return task


def _padded(rows: Sequence[Ids], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids and attention_mask [B, longest] int64."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _from_zero(batch: Batch) -> list[int]:
    """The batch's adapters, numbered from 0 in the order of their first row."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(adapter, len(numbers)) for adapter in batch.adapters]


def _pad_id(backbone: Backbone) -> int:
    return int(backbone.model.config.pad_token_id or 0)


def _name(number: int) -> str:
    return f"adapter_{number}"
