"""From rows to tokens, and what can be wrong with a row: everything that can shows here, before it is in a batch.

Knows texts, their limits and leases; nothing of batches or tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from adakron.config import AdapterConfig
from adakron.resident import Lease
from adakron.rows import Row, RowError
from adakron.text import TextOrPair, tokenise

MAX_TEXT_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row ready to run: it holds tokens, ids and type_ids [T] int64, and needs its lease until `run` is over."""

    lease: Lease
    ids: np.ndarray
    type_ids: np.ndarray
    truncated: bool

    @property
    def n_tokens(self) -> int:
        return len(self.ids)


class RowEncoder:
    """Of one backbone. longest: tokens that its position embeddings allow."""

    def __init__(self, tokenizer: Tokenizer, longest: int) -> None:
        self._tokenizer, self._longest = tokenizer, longest

    def __call__(self, rows: Sequence[Row], leases: Sequence[Lease]) -> list[EncodedRow | RowError]:
        """See `Engine.encode`."""
        if not all(lease.is_read for lease in leases):
            raise RuntimeError("rows can be encoded only for adapters that were read")
        answers: list[EncodedRow | RowError | None] = [
            self._from_ids(row, lease) if row.input_ids is not None else _fault(row, lease.config)
            for row, lease in zip(rows, leases, strict=True)
        ]
        open_rows = [n for n, answer in enumerate(answers) if answer is None]
        texts: list[TextOrPair] = []
        for n in open_rows:
            text, pair = rows[n].text or "", rows[n].text_pair
            texts.append(text if pair is None else (text, pair))
        limits = [self._max_length(leases[n].config) for n in open_rows]
        special = self._tokenizer.num_special_tokens_to_add(False)
        for n, limit, (encoding, cut) in zip(open_rows, limits, tokenise(self._tokenizer, texts, limits), strict=True):
            if cut and not rows[n].truncate:
                answers[n] = RowError("TOO_LONG", f"more than {limit} tokens", "text", "shorten it, or allow truncate")
            elif len(encoding.ids) <= special:
                answers[n] = RowError("BLANK_TEXT", "the text holds no token", "text", "send at least one word")
            else:
                answers[n] = EncodedRow(leases[n], _array(encoding.ids), _array(encoding.type_ids), cut)
        return [answer for answer in answers if answer is not None]

    def _from_ids(self, row: Row, lease: Lease) -> EncodedRow | RowError:
        ids = list(row.input_ids or ())
        vocabulary = self._tokenizer.get_vocab_size()
        if not ids or not all(0 <= token < vocabulary for token in ids):
            return RowError("INVALID_TEXT", f"input_ids: expected tokens from 0 to {vocabulary - 1}", "input_ids")
        if len(ids) > self._max_length(lease.config):
            return RowError("TOO_LONG", f"more than {self._max_length(lease.config)} tokens", "input_ids")
        return EncodedRow(lease, _array(ids), np.zeros(len(ids), dtype=np.int64), False)

    def _max_length(self, config: AdapterConfig | None) -> int:
        return self._longest if config is None else min(config.max_length, self._longest)


def _array(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _fault(row: Row, config: AdapterConfig | None) -> RowError | None:
    """What is wrong with a row's texts before any token is made, or None."""
    takes_pair = config is not None and config.takes_pair
    if row.text is None:
        return RowError("BLANK_TEXT", "there is no text", "text", "send a text")
    if takes_pair and row.text_pair is None:
        return RowError(
            "MISSING_PAIR", "this adapter compares two texts; the second is missing", "text_pair", "send text_pair"
        )
    if row.text_pair is not None and config is not None and not takes_pair:
        return RowError(
            "UNEXPECTED_PAIR", "this adapter takes one text; there are two", "text_pair", "leave text_pair out"
        )
    for param, text in (("text", row.text), ("text_pair", row.text_pair)):
        if text is None:
            continue
        if len(text) > MAX_TEXT_CHARS:
            return RowError(
                "TEXT_TOO_LARGE", f"{len(text)} characters; at most {MAX_TEXT_CHARS} are taken", param, "send less text"
            )
        if not text.strip():
            return RowError("BLANK_TEXT", "the text is blank", param, "send at least one word")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return RowError("INVALID_TEXT", "the text holds half a surrogate pair: not Unicode text", param)
    return None
