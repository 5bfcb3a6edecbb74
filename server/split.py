"""How the calls to one name are shared out among its versions: canary weights, and a shadow that is only compared.

    weights {3: 90, 4: 10}   of 100 calls to the bare name, 90 go to version 3 and 10 to version 4
    shadow 5                 the same calls also go through version 5, whose answers nobody gets to see

A call with a route key always falls into the same hundredth of its name, so whoever calls with it stays on one version
until the weights move; when the last version's share grows, nobody who was on it leaves it. Knows nothing of storage.
"""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Split:
    """weights: version -> percent, 100 in all. shadow: a version that is compared, or None."""

    weights: Mapping[int, int]
    shadow: int | None = None

    def choose(self, name: str, route_key: str | None) -> int:
        """The version for one call to `name`; at random where it has no route key."""
        place = random.randrange(100) if route_key is None else _hundredth(name, route_key)
        for version, weight in sorted(self.weights.items()):
            if place < weight:
                return version
            place -= weight
        raise AssertionError("weights are 100 in all")

    def versions(self) -> set[int]:
        """Every version that takes part."""
        return set(self.weights) | ({self.shadow} if self.shadow is not None else set())

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: {"weights": {"3": 90, "4": 10}, "shadow": 5}."""
        return {"weights": {str(version): weight for version, weight in self.weights.items()}, "shadow": self.shadow}

    def to_json(self) -> str:
        """One canonical text for equal splits."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Split":
        """What `to_json` wrote."""
        found = json.loads(text)
        weights = {int(version): weight for version, weight in found["weights"].items()}
        return cls(MappingProxyType(dict(sorted(weights.items()))), found["shadow"])


def _hundredth(name: str, route_key: str) -> int:
    # The name is in it: a key that falls to the canary of one name does not fall to the canary of every name.
    digest = hashlib.sha256(f"{name}\0{route_key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % 100
