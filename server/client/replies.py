"""What a server answers, typed: results of classification as values, everything else as the JSON it came in.

Results are read in inner loops, so they have attributes. The JSON of adapters is passed through whole, with its keys
known to a type checker: a newer server's further keys are there too. Nothing is validated beyond what is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypeAlias, TypedDict


class Score(NamedTuple):
    """One label and its probability."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Result:
    """One text through one adapter.

    adapter, version, sha256   which weights answered
    label, score               the best label and its probability; None from a regression
    abstained                  whether that score was too low for a label, which is then None
    scores                     top_k labels, best first
    labels                     those that reach the threshold, from a multi-label adapter; else None
    value                      from a regression; else None
    n_tokens, truncated        what was read of the text
    """

    adapter: str
    version: int
    sha256: str
    label: str | None
    score: float | None
    scores: tuple[Score, ...]
    labels: tuple[str, ...] | None
    value: float | None
    n_tokens: int
    truncated: bool
    abstained: bool = False


@dataclass(frozen=True, slots=True)
class RowFailure:
    """One text that could not be classified, in its place among others that could."""

    code: str
    message: str
    hint: str | None
    adapter: str | None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f"; {self.hint}" if self.hint else "")


Outcome: TypeAlias = Result | RowFailure


@dataclass(frozen=True, slots=True)
class AdapterResults:
    """The outcomes of one adapter of several, in the order of the texts."""

    adapter: str
    version: int
    sha256: str
    results: tuple[Outcome, ...]


class SplitReply(TypedDict):
    """How the calls to a bare name are shared out: version -> percent."""

    weights: dict[str, int]
    shadow: int | None


class AdapterFacts(TypedDict):
    """What is said of an adapter everywhere. `version` is None where none is active; sizes in bytes."""

    name: str
    version: int | None
    sha256: str | None
    size_bytes: int | None
    generation: int
    problem_type: str | None
    takes_pair: bool | None
    num_labels: int | None
    labels: list[str]
    resident: list[str]
    tier: str
    requests: int
    last_used_at: str | None
    split: SplitReply | None


class AdapterSummary(AdapterFacts):
    """One adapter in the list, with the numbers of its versions."""

    versions: list[int]


class Page(TypedDict):
    """Some adapters in the order of names, and the cursor of the next page or None."""

    adapters: list[AdapterSummary]
    next: str | None


class VersionReply(TypedDict):
    """One kept version."""

    version: int
    sha256: str
    size_bytes: int
    created_at: str
    no_effect: bool
    active: bool
    resident: list[str]


class EventReply(TypedDict):
    """One change of an adapter, who made it, and the version that was active after it."""

    at: str
    generation: int
    action: str
    version: int | None
    sha256: str | None
    active_version: int | None
    key_id: str | None
    source: str | None
    request_id: str | None


class AdapterReply(AdapterFacts):
    """One adapter with versions, configuration and history, newest change first; `shadow_rows` by verdict."""

    versions: list[VersionReply]
    shadow_rows: dict[str, int] | None
    config: dict[str, Any] | None
    history: list[EventReply]


class LabelServed(TypedDict):
    """How often a label was answered, its share of the rows, and its share in the training data."""

    label: str
    rows: int
    share: float | None
    reference: float | None


class DriftReply(TypedDict):
    """How far the labels are from the reference: population stability index, and Jensen-Shannon distance (0 to 1)."""

    psi: float
    jensen_shannon: float


class VersionStats(TypedDict):
    """What one version served, over all replicas; `requests` and `rows` hold good and failed ones.

    `since` is None, and everything 0 or None, where it was never called; `drift` is None for the `drift_reason`.
    """

    version: int
    sha256: str
    active: bool
    since: str | None
    requests: dict[str, int]
    rows: dict[str, int]
    latency_seconds: dict[str, float | None]
    labels: list[LabelServed]
    withheld: int
    drift: DriftReply | None
    drift_reason: str | None


class StatsReply(TypedDict):
    """What an adapter served, by version. `replicas`: how many answered for it."""

    name: str
    active: int | None
    replicas: int
    versions: list[VersionStats]


class ActivateReply(TypedDict):
    """What a name answers with from now on. `lagging` names replicas that have not followed yet."""

    name: str
    version: int
    sha256: str
    active: bool
    generation: int
    lagging: list[str]


class PutReply(ActivateReply):
    """A registered artefact. `no_effect`: it changes nothing that the probe texts show."""

    no_effect: bool


class SplitDone(SplitReply):
    """A split, as it is from now on."""

    name: str
    generation: int
    lagging: list[str]


class DeleteReply(TypedDict):
    """What is gone, and bytes freed by tier."""

    name: str
    versions: list[int]
    freed_bytes: dict[str, int]
    generation: int
    lagging: list[str]


class BulkItem(TypedDict):
    """One artefact of many: registered (status 200 or 201), or `error`."""

    name: str
    status: int
    version: NotRequired[int]
    sha256: NotRequired[str]
    active: NotRequired[bool]
    generation: NotRequired[int]
    no_effect: NotRequired[bool]
    error: NotRequired[dict[str, Any]]


class BulkReply(TypedDict):
    """What became of each, in their order."""

    results: list[BulkItem]
    registered: int
    failed: int
    lagging: list[str]


def outcome_of(row: Mapping[str, Any], identity: Mapping[str, Any]) -> Outcome:
    """One row of an answer; `identity` holds adapter, version and sha256. Raises KeyError or TypeError for no row."""
    if "error" in row:
        error = row["error"]
        return RowFailure(error["code"], error["message"], error.get("hint"), identity["adapter"])
    labels = row.get("labels")
    return Result(
        adapter=identity["adapter"],
        version=identity["version"],
        sha256=identity["sha256"],
        label=row.get("label"),
        score=row.get("score"),
        scores=tuple(Score(pair["label"], pair["score"]) for pair in row.get("scores", ())),
        labels=None if labels is None else tuple(labels),
        value=row.get("value"),
        n_tokens=row["n_tokens"],
        truncated=row["truncated"],
        abstained=row.get("abstained", False),
    )


def outcomes_of(answer: Mapping[str, Any]) -> list[Outcome]:
    """The rows of an answer to `inputs` or to `items`. Raises KeyError or TypeError for anything else."""
    return [outcome_of(row, answer if "adapter" in answer else row) for row in answer["results"]]


def results_of(answer: Mapping[str, Any]) -> AdapterResults:
    """One adapter's part of an answer to `adapters`. Raises KeyError or TypeError for anything else."""
    return AdapterResults(answer["adapter"], answer["version"], answer["sha256"], tuple(outcomes_of(answer)))


def complaint_of(error: Mapping[str, Any]) -> str:
    """An error of the server in one line: its code, its message, and its hint."""
    hint = error.get("hint")
    return f"{error.get('code')}: {error.get('message')}" + (f"; {hint}" if hint else "")
