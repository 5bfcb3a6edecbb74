"""From the encoder's last hidden state to logits: pooling and the two classification heads.

Knows tensors only. Sources: transformers' BertForSequenceClassification (linear) and RobertaClassificationHead.
"""

from torch import Tensor, nn

from adakron.config import AdapterConfig, Head, Pooling
from adakron.errors import BackboneError


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling, pooler: nn.Module | None) -> Tensor:
    """One vector a row: [B, T, D], mask [B, T] (1 = token, 0 = padding) -> [B, D].

    "cls": the first token; "mean": over all tokens, special ones counted; "pooler": the backbone's own pooler.
    Raises BackboneError for "pooler" where the checkpoint holds none.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "mean":
        weights = mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1)
    if pooler is None:
        raise BackboneError("this backbone's checkpoint holds no pooler", hint='use pooling "cls" or "mean"')
    pooled: Tensor = pooler(hidden)
    return pooled


class LinearHead(nn.Module):
    """dropout, then logits = W x + b. State dict: weight, bias."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        linear = nn.Linear(hidden_size, num_labels)
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled [B, D] -> logits [B, L]."""
        return nn.functional.linear(self.dropout(pooled), self.weight, self.bias)


class RobertaHead(nn.Module):
    """logits = out_proj(dropout(tanh(dense(dropout(x))))). State dict: dense.*, out_proj.*"""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, num_labels)
        for linear in (self.dense, self.out_proj):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled [B, D] -> logits [B, L]."""
        logits: Tensor = self.out_proj(self.dropout(self.dense(self.dropout(pooled)).tanh()))
        return logits


def make_head(kind: Head, hidden_size: int, num_labels: int, dropout: float = 0.1) -> LinearHead | RobertaHead:
    """A new head, weights ~ N(0, 0.02), biases 0."""
    return (LinearHead if kind == "linear" else RobertaHead)(hidden_size, num_labels, dropout)


def head_shapes(config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of the head that `config` describes."""
    width, labels = config.hidden_size, config.num_labels
    if config.head == "linear":
        return {"head.weight": (labels, width), "head.bias": (labels,)}
    return {
        "head.dense.weight": (width, width),
        "head.dense.bias": (width,),
        "head.out_proj.weight": (labels, width),
        "head.out_proj.bias": (labels,),
    }
