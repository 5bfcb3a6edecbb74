"""The encoder's linear maps: x [T, I] -> x W^T + b [T, O], prepared once.

Knows matrices; nothing of layers or adapters.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

FIXED_ROWS = 64

Linear: TypeAlias = Callable[[Tensor], Tensor]


def make_linear(weight: Tensor, bias: Tensor, *, invariant: bool = False) -> Linear:
    """A linear map as fast as this device has it. weight [O, I], bias [O], of one dtype, where they are to be used.

    invariant  rows do not depend on how many others there are, to the last bit: see FixedRows
    """
    linear: Linear = PlainLinear(weight, bias)
    if weight.device.type == "cpu":
        linear = ReorderedLinear.of(weight, bias) or linear
    return FixedRows(linear) if invariant else linear


class PlainLinear:
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class ReorderedLinear:
    """oneDNN's product, with the weight in the order of its blocks: a plain product reorders it in every call."""

    TYPICAL_ROWS = 1024

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), self.TYPICAL_ROWS)
        self._bias = bias

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> "ReorderedLinear | None":
        """None where torch has no such product for this dtype and processor."""
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch gives it no types
            return None
        try:
            linear = cls(weight, bias)
            linear(weight.new_zeros(1, weight.shape[1]))
        except (AttributeError, NotImplementedError, RuntimeError):  # an older torch, dtype or processor without it
            return None
        return linear

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


class FixedRows:
    """Products of one shape only, FIXED_ROWS rows each: libraries choose the order of their sums by the shape.

    The last product is filled up with zeros.
    """

    def __init__(self, linear: Linear) -> None:
        self._linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        filled = F.pad(x, (0, 0, 0, -rows % FIXED_ROWS))
        return torch.cat([self._linear(part) for part in torch.split(filled, FIXED_ROWS)])[:rows]
