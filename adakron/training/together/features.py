"""Hidden states that are computed once: those that enter the first layer with an adapter, row by row, within a budget.

Below that layer nothing is trained and nothing is dropped, so a row's states never change, whoever trains on it.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from adakron.backbone import Backbone
from adakron.training.classifier import pad
from adakron.training.together.encoder import SharedEncoder

EncodedRow = Mapping[str, Sequence[int]]


class HiddenStates:
    """The states of rows at a layer: kept from the first time they are asked for, while there is room.

    budget_bytes  of all that is kept. What is kept stays: every epoch asks for all rows in another order, so to make
                  room for one row would only cost another. Rows for which there is none are computed again.

    Rows of equal ids and layer share their states, as those of several adapters for one task do.
    """

    def __init__(self, backbone: Backbone, encoder: SharedEncoder, budget_bytes: int) -> None:
        self._backbone, self._encoder = backbone, encoder
        self._room = budget_bytes
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self.computed_rows = 0

    def entering(self, rows: Sequence[EncodedRow], layer: int) -> Tensor:
        """[B, T, D], T the longest row; zeros where a row has ended."""
        keys = [(layer, *(tuple(row[name]) for name in sorted(row))) for row in rows]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in found}
        if missing:
            found |= self._compute(missing, layer)
        return pad_sequence([found[key] for key in keys], batch_first=True)

    def _compute(self, rows: Mapping[tuple[object, ...], EncodedRow], layer: int) -> dict[tuple[object, ...], Tensor]:
        batch = pad(list(rows.values()), self._backbone)
        hidden = self._encoder.below({name: ids.to(self._encoder.device) for name, ids in batch.items()}, layer)
        self.computed_rows += len(rows)
        found = {}
        for index, (key, row) in enumerate(rows.items()):
            states = hidden[index, : len(row["input_ids"])].clone()  # a view would keep the whole batch
            size = states.numel() * states.element_size()
            if size <= self._room:
                self._room -= size
                self._kept[key] = states
            found[key] = states
        return found
