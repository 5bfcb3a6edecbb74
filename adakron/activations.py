"""From logits to probabilities: the functions by name, row by row. Knows numpy arrays; nothing of adapters."""

from typing import Literal, TypeAlias

import numpy as np

Activation: TypeAlias = Literal["softmax", "sigmoid", "none"]


def activate(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """softmax, sigmoid or nothing of logits: [..., L] float32 -> [..., L] float32. For finite logits of any size."""
    if activation == "softmax":
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        softmax: np.ndarray = weights / weights.sum(-1, keepdims=True)
        return softmax
    if activation == "sigmoid":
        sigmoid: np.ndarray = np.exp(-np.logaddexp(np.float32(0), -logits))
        return sigmoid
    return logits
