"""Making a server match a folder: what would change, and changing it.

    DIR/acme/spam/adapter_model.safetensors    the adapter acme/spam

A name that is only in the folder is added, one with other bytes is replaced, and one that is only on the server is
removed if that is asked for. Knows nothing of arguments or of printing.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adakron.artefact import WEIGHTS_FILE
from server.client import AdaKron, ClientError
from server.client.replies import AdapterSummary, complaint_of
from server.names import check_name

# What one request carries: enough that commits and broadcasts are few, little enough to be done within its time.
BATCH_ARTEFACTS = 64
BATCH_BYTES = 64 * 2**20
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes. Each is in the order of names; `unchanged` counts names that are right already."""

    add: tuple[str, ...]
    replace: tuple[str, ...]
    remove: tuple[str, ...]
    unchanged: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one name: done, or why not."""

    name: str
    complaint: str | None


def read_folder(folder: Path) -> dict[str, Path]:
    """Name -> file of each artefact in the folder. Raises InvalidRequestError for a name no adapter may have."""
    found = [*folder.glob(f"*/{WEIGHTS_FILE}"), *folder.glob(f"*/*/{WEIGHTS_FILE}")]
    return {check_name(path.parent.relative_to(folder).as_posix()): path for path in sorted(found)}


def make_plan(files: Mapping[str, Path], adapters: Iterator[AdapterSummary]) -> Plan:
    """Compare files with what the server lists. Raises OSError."""
    served = {adapter["name"]: adapter for adapter in adapters}
    add, replace = [], []
    for name, path in sorted(files.items()):
        if name not in served:
            add.append(name)
        elif served[name]["sha256"] != hashlib.sha256(path.read_bytes()).hexdigest() or served[name]["split"]:
            replace.append(name)
    remove = sorted(served.keys() - files.keys())
    return Plan(tuple(add), tuple(replace), tuple(remove), len(files) - len(add) - len(replace))


def apply_plan(plan: Plan, files: Mapping[str, Path], client: AdaKron, *, prune: bool) -> Iterator[Outcome]:
    """Do it, most in one request where many are sent; one outcome a name, as it comes. Raises ClientError, OSError."""
    waiting = sorted([*plan.add, *plan.replace])
    for _ in range(ROUNDS):
        untried: list[str] = []
        for batch in _batches(waiting, files):
            for result in client.put_many(batch)["results"]:
                if result["status"] == 503:
                    untried.append(result["name"])
                else:
                    complaint = complaint_of(result["error"]) if "error" in result else None
                    yield Outcome(result["name"], complaint)
        waiting = untried
        if not waiting:
            break
    for name in waiting:
        yield Outcome(name, "the server had no time for it; run sync again")
    for name in plan.remove if prune else ():
        try:
            client.delete(name)
            yield Outcome(name, None)
        except ClientError as error:
            yield Outcome(name, str(error))


def _batches(names: list[str], files: Mapping[str, Path]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size_bytes = 0
    for name in names:
        data = files[name].read_bytes()
        if batch and (len(batch) == BATCH_ARTEFACTS or size_bytes + len(data) > BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append((name, data))
        size_bytes += len(data)
    if batch:
        yield batch
