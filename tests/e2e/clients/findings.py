"""What one client's script found, operation by operation. Plain Python: it runs where only that client is installed."""

import json
import math
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Findings:
    """The scripts' argument is JSON: url, key, adapter (two versions, each with one label and score for any text)."""

    client: str
    version: str
    facts: dict[str, Any] = field(default_factory=lambda: json.loads(sys.argv[1]))
    operations: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Whatever is raised inside is a finding, and the next operation is tried all the same."""
        try:
            yield
        except Exception:
            self.operations.append({"operation": name, "passed": False, "error": traceback.format_exc(limit=3)})
        else:
            self.operations.append({"operation": name, "passed": True})

    def made(self, version: int, label: object, score: float) -> bool:
        """Whether this version answers so: it gives one label and score to every text."""
        known = self.facts["versions"][str(version)]
        return bool(label == known["label"] and math.isclose(score, known["score"], abs_tol=5e-3))

    def print(self) -> None:
        """For whoever started the script, on the last line."""
        print(json.dumps({"client": self.client, "version": self.version, "operations": self.operations}))


@contextmanager
def raises(kind: type[BaseException], *parts: str) -> Iterator[None]:
    """The client raises `kind`, and says these words."""
    try:
        yield
    except kind as error:
        text = str(error).lower()
        assert all(part.lower() in text for part in parts), text
    else:
        raise AssertionError(f"no {kind.__name__} was raised")
