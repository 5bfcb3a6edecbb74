"""What the encoder asks of a set of kernels. Knows shapes; nothing of how they are computed."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from adakron.bank import BankView
from adakron.plan import Stage


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm over D features: weight and bias [D], eps added to the variance."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What the first layer reads: words [V, D], positions [P, D], types [N, D] or None, and the norm of their sum."""

    words: Tensor
    positions: Tensor
    types: Tensor | None
    norm: Norm

    def __call__(self, ids: Tensor, type_ids: Tensor, positions: Tensor) -> Tensor:
        """Three times [T] int64, each within its table -> [T, D]."""
        x = F.embedding(ids, self.words)
        if self.types is not None:
            x = x + F.embedding(type_ids, self.types)
        return self.norm(x + F.embedding(positions, self.positions))


class StageWork(Protocol):
    """One stage of one batch: T packed tokens of width D, all tensors in the encoder's dtype, on its device.

    An argument that is called x may be written into; none is read after the call.
    """

    def attend(self, qkv: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D / H)) v within each row, head by head: [T, 3 D] -> [T, D]."""

    def gelu(self, x: Tensor) -> Tensor:
        """0.5 x (1 + erf(x / sqrt 2)): [T, M] -> [T, M]."""

    def add_norm(self, x: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        """LayerNorm(x + residual): [T, D] -> [T, D]."""

    def adapt_add_norm(self, x: Tensor, residual: Tensor, norm: Norm, layer: int) -> Tensor:
        """LayerNorm(adapters(x) + residual): [T, D] -> [T, D], each row through its own adapter.

        u, v = A2[s] x + b2[s], A1[s] x + b1[s]        s: the row's slot
        z    = gelu(u (x) v)                           element (i, j) of u, v at index i * Q + j
        adapters(x) = x + B[s] z + c[s]; x itself for a row without adapter in this layer
        """


class PreNormWork(Protocol):
    """One stage as pre-LN encoders need it; the same promises as of `StageWork`."""

    def attend(self, qkv: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D / H)) v within each row, head by head: [T, 3 D] -> [T, D]."""

    def gelu(self, x: Tensor) -> Tensor:
        """0.5 x (1 + erf(x / sqrt 2)): [T, M] -> [T, M]."""

    def adapt_add(self, x: Tensor, residual: Tensor, layer: int) -> Tensor:
        """adapters(x) + residual, as in `StageWork.adapt_add_norm` but without its norm: [T, D] -> [T, D]."""


class Kernels(Protocol):
    """name: "eager", "native" or "triton", for people who ask what runs."""

    name: str

    def embed(self, tables: Embeddings, ids: Tensor, type_ids: Tensor, positions: Tensor) -> Tensor:
        """tables(ids, type_ids, positions)."""

    def begin(self, stage: Stage, view: BankView) -> StageWork:
        """Lay out what all layers of a stage need, once."""


class PreNormKernels(Protocol):
    """Kernels for pre-LN encoders."""

    name: str

    def begin(self, stage: Stage, view: BankView) -> PreNormWork:
        """Lay out what all layers of a stage need, once."""
