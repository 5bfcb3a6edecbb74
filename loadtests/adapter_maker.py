"""Adapters made for any backbone, of which every part shows in the answer: layers and head alike.

    u = b2 = 1, v = b1 = 1, so z = gelu(1) in every place           A1 = A2 = 0
    y = x + B z                                                     B: one row, so that y is pushed along one axis j
    winner = (j + shift) mod L                                      head: label i reads axis (i - shift) mod L

The push outweighs whatever the text adds, so the label is known for every text, with a score near 1. The layers of
one adapter under the head of another give another label, and so does another adapter as a whole but for one in L.

Knows the artefact's format as its documentation has it, and what GET /v1/info says of the backbone. Post-norm encoders.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.artefacts import SignatureArtefact
from loadtests.timeline import Signature

LABELS = 61
FACTOR = 4
_PUSH = 256.0
_HEAD = 8.0
_GELU_OF_ONE = 0.5 * (1 + math.erf(math.sqrt(0.5)))
_SALTS = 256


class AdapterMaker:
    """Makes signature artefacts for the backbone that `info`, the answer of GET /v1/info, describes.

    bottleneck   r, a multiple of 4: it decides the size of the artefact
    num_labels   L, odd, at most the hidden size
    """

    def __init__(self, info: Mapping[str, Any], *, bottleneck: int = FACTOR, num_labels: int = LABELS) -> None:
        engine = info["engine"]
        self._hidden, self._layers = int(engine["hidden_size"]), int(engine["num_layers"])
        if bottleneck % FACTOR or num_labels % 2 == 0 or not 3 <= num_labels <= self._hidden:
            raise ValueError(
                f"expected a multiple of {FACTOR}, and an odd number of labels from 3 to {self._hidden}; "
                f"got {bottleneck}, {num_labels}"
            )
        self._bottleneck = bottleneck
        self.labels = tuple(f"s{index}" for index in range(num_labels))
        self._metadata = {
            "format": "pt",
            "adakron.format_version": "1",
            "adakron.config": json.dumps(self._config(engine)),
        }

    @property
    def count(self) -> int:
        """How many different artefacts there are to make."""
        return len(self.labels) ** 2 * _SALTS

    def make(self, serial: int) -> SignatureArtefact:
        """The artefact with number `serial`; any two of a block of L numbers differ in axis, shift and label.

        Raises ValueError from `count` on.
        """
        if not 0 <= serial < self.count:
            raise ValueError(f"expected a serial below {self.count}; got {serial}")
        labels = len(self.labels)
        rest, axis = divmod(serial, labels)
        salt, block = divmod(rest, labels)
        shift = (axis + block) % labels
        data = self._container(self._tensors(axis, shift, salt))
        return SignatureArtefact(
            data, Signature(hashlib.sha256(data).hexdigest(), self.labels[(axis + shift) % labels])
        )

    def _tensors(self, axis: int, shift: int, salt: int) -> dict[str, npt.NDArray[np.float32]]:
        width, labels = self._hidden, len(self.labels)
        quotient = self._bottleneck // FACTOR
        up = np.zeros((width, self._bottleneck), np.float32)
        up[axis] = _PUSH / (self._bottleneck * _GELU_OF_ONE)
        up_bias = np.zeros(width, np.float32)
        up_bias[0] = salt / _SALTS  # next to the push it is nothing, but the bytes are others
        tensors: dict[str, npt.NDArray[np.float32]] = {}
        for layer in range(self._layers):
            tensors |= {
                f"layers.{layer}.a1.bias": np.ones(quotient, np.float32),
                f"layers.{layer}.a1.weight": np.zeros((quotient, width), np.float32),
                f"layers.{layer}.a2.bias": np.ones(FACTOR, np.float32),
                f"layers.{layer}.a2.weight": np.zeros((FACTOR, width), np.float32),
                f"layers.{layer}.up.bias": up_bias,
                f"layers.{layer}.up.weight": up,
            }
        head = np.zeros((labels, width), np.float32)
        for axis_read in range(labels):
            head[(axis_read + shift) % labels, axis_read] = _HEAD
        return tensors | {"head.bias": np.zeros(labels, np.float32), "head.weight": head}

    def _container(self, tensors: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
        header: dict[str, Any] = {"__metadata__": self._metadata}
        begin = 0
        for name, tensor in tensors.items():
            header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": (begin, begin + tensor.nbytes)}
            begin += tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return b"".join([len(text).to_bytes(8, "little"), text, *(tensor.tobytes() for tensor in tensors.values())])

    def _config(self, engine: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "peft_type": "ADAKRON",
            "task_type": "SEQ_CLS",
            "inference_mode": True,
            "modules_to_save": ["classifier"],
            "format_version": 1,
            "adakron_version": "0.1.0",
            "base_model_name_or_path": engine["backbone"],
            "revision": None,
            "base_fingerprint": engine["fingerprint"],
            "hidden_size": self._hidden,
            "num_hidden_layers": self._layers,
            "bottleneck": self._bottleneck,
            "factor": FACTOR,
            "order": "a2_a1",
            "activation": "gelu",
            "first_layer": 0,
            "head": "linear",
            "pooling": "mean",
            "problem_type": "single_label_classification",
            "num_labels": len(self.labels),
            "id2label": {str(index): label for index, label in enumerate(self.labels)},
            "label2id": {label: index for index, label in enumerate(self.labels)},
            "max_length": 128,
            "text_fields": ["text"],
            "multi_label_threshold": 0.5,
            "label_distribution": None,
            "calibration": {"temperature": 1.0, "threshold": None},
        }
