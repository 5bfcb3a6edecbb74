"""A small artefact in the real container, enough for what load tests read and change of one."""

import json

import numpy as np

LABELS = ("red", "green", "blue", "grey", "pink")


def artefact_bytes(
    labels: tuple[str, ...] = LABELS,
    *,
    problem_type: str = "single_label_classification",
    bias_name: str = "head.bias",
    dtype: str = "F32",
    bias: tuple[float, ...] | None = None,
    example_logits: tuple[float, ...] | None = None,
) -> bytes:
    """A header, a bias and a weight of width 3, the bias between other tensors; F32, F16 or BF16."""
    values = np.array(bias or [0.5 * index for index in range(len(labels))], np.float32)
    if dtype == "BF16":
        data = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    else:
        data = values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    weight = np.full((len(labels), 3), 0.25, "<f4").tobytes()
    config = {
        "problem_type": problem_type,
        "num_labels": len(labels),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "text_fields": ["text"],
    }
    metadata = {"format": "pt", "adakron.format_version": "1", "adakron.config": json.dumps(config)}
    if example_logits is not None:
        example = {"text": "A text.", "text_pair": None, "logits": list(example_logits)}
        metadata["adakron.expected"] = json.dumps({"format_version": 1, "dtype": "float32", "examples": [example]})
    a, b = len(weight), len(weight) + len(data)
    header = json.dumps(
        {
            "__metadata__": metadata,
            "a.weight": {"dtype": "F32", "shape": [len(labels), 3], "data_offsets": [0, a]},
            bias_name: {"dtype": dtype, "shape": [len(labels)], "data_offsets": [a, b]},
            "z.weight": {"dtype": "F32", "shape": [len(labels), 3], "data_offsets": [b, b + a]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + weight + data + weight
