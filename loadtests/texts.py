"""Texts to send: made up here, or read from a folder of labelled text that stays outside the project.

Made-up texts mean little. What matters for load is how long they are: most have 5 to 40 words, few more than 100,
as in reviews, questions and support mail.
"""

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

MAX_CHARACTERS = 2000
MEDIAN_WORDS = 15
SPREAD = 0.75  # standard deviation of log(words)
MIN_WORDS, MAX_WORDS = 2, 110

_WHO = "the driver|our team|my neighbour|a customer|the whole family|the new manager|nobody here|the technician".split(
    "|"
)
_DID = "could not open|really enjoyed|has returned|forgot to mention|wants to cancel|was surprised by|compared".split(
    "|"
)
_WHAT = "the second delivery|that long film|an invoice from March|the blue one|its user manual|a cheaper plan".split(
    "|"
)
_HOW = "without any reason|after two weeks|in the rain|for the third time|as promised|although it was late".split("|")
_ASIDE = (
    "Please advise.|What a day!|Is that normal?|I would not do it again.|Thanks in advance.|It simply works.".split("|")
)


@dataclass(frozen=True, slots=True)
class Texts:
    """What users draw from. pairs: (text, text_pair). Neither is empty."""

    singles: Sequence[str]
    pairs: Sequence[tuple[str, str]]


def made_up_texts(seed: int, count: int = 2000) -> Texts:
    """`count` single texts and as many pairs, the same for the same seed."""
    rng = Random(seed)
    return Texts(
        [made_up_text(rng) for _ in range(count)], [(made_up_text(rng), made_up_text(rng)) for _ in range(count)]
    )


def made_up_text(rng: Random) -> str:
    """One text of a length drawn from a log-normal distribution."""
    wanted = min(max(round(rng.lognormvariate(math.log(MEDIAN_WORDS), SPREAD)), MIN_WORDS), MAX_WORDS)
    words: list[str] = []
    while len(words) < wanted:
        words += (_sentence(rng) if rng.random() < 0.8 else rng.choice(_ASIDE)).split()
    text = " ".join(words[:wanted])
    return text if text[-1] in ".!?" else f"{text}."


def read_texts(folder: Path, seed: int, per_task: int = 300) -> Texts:
    """Texts from `folder`/*/validation.jsonl.gz, at most `per_task` of each, in random order.

    Lines are objects with `text` and, for pair tasks, `text_pair`; blank texts are left out, long ones cut to
    MAX_CHARACTERS. Raises ValueError if the folder does not hold both single texts and pairs.
    """
    singles: list[str] = []
    pairs: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*/validation.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for _, line in zip(range(per_task), lines, strict=False):
                row = json.loads(line)
                text, pair = row["text"][:MAX_CHARACTERS], (row.get("text_pair") or "")[:MAX_CHARACTERS]
                if text.strip() and pair.strip():
                    pairs.append((text, pair))
                elif text.strip() and not row.get("text_pair"):
                    singles.append(text)
    if not singles or not pairs:
        raise ValueError(f"{folder}: expected */validation.jsonl.gz with single texts and pairs; found too few")
    rng = Random(seed)
    rng.shuffle(singles)
    rng.shuffle(pairs)
    return Texts(singles, pairs)


def _sentence(rng: Random) -> str:
    sentence = f"{rng.choice(_WHO)} {rng.choice(_DID)} {rng.choice(_WHAT)} {rng.choice(_HOW)}."
    return sentence[0].upper() + sentence[1:]
