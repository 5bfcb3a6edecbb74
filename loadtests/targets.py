"""The adapters of a running server, as its own list shows them."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

PAGE = 1000


@dataclass(frozen=True, slots=True)
class Target:
    """An adapter to send texts to. version and sha256 are of the active version when it was listed."""

    name: str
    version: int
    sha256: str
    labels: frozenset[str]
    problem_type: str
    takes_pair: bool


def list_targets(client: httpx.Client) -> list[Target]:
    """Every active adapter, in the order of the server's list. Raises httpx.HTTPError."""
    targets: list[Target] = []
    query: dict[str, str | int] = {"limit": PAGE}
    while True:
        page = client.get("/v1/adapters", params=query).raise_for_status().json()
        targets += [_target(client, entry) for entry in page["adapters"] if entry["version"] is not None]
        if page["next"] is None:
            return targets
        query["cursor"] = page["next"]


def _target(client: httpx.Client, entry: dict[str, Any]) -> Target:
    labels = entry["labels"]
    if len(labels) < entry["num_labels"]:  # the list shows the first of many
        one = client.get(f"/v1/adapters/{quote(entry['name'])}").raise_for_status().json()
        labels = one["config"]["id2label"].values()
    return Target(
        entry["name"],
        entry["version"],
        entry["sha256"],
        frozenset(labels),
        entry["problem_type"],
        entry["takes_pair"],
    )
