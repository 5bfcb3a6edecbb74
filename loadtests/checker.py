"""Whether an answer comes from the adapter that was asked.

The worst that a server of many adapters can do is to answer with another one's output, for nothing looks wrong. So
every row is held against four things: the name echoed, the version and hash of that name, the set of its labels, and
(for probes) what the same adapter said to the same text alone, before the load; adapters that change are told by
their signature.

Knows the bodies of POST /v1/classify; nothing of HTTP clients.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loadtests.targets import Target
from loadtests.timeline import Timeline
from loadtests.workload import Ask, Call

# bf16 logits in a batch may differ from the same alone by 0.02 of the largest, about 10 here: 0.2, of which softmax
# makes at most half in a score. A wrong adapter is off by far more on some probe.
SCORE_TOLERANCE = 0.1
VALUE_TOLERANCE = 0.05
SIGNATURE_SCORE = 0.99


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one request.

    wrong_rows   answers of another adapter than the one asked, each with what gave it away
    fault        anything else that is not as promised
    is_absent    404, rightly: an adapter in it was being removed
    """

    wrong_rows: tuple[str, ...] = ()
    fault: str | None = None
    is_absent: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    """The answer to a probe. scores: of every label; value: for regression."""

    scores: Mapping[str, float]
    value: float | None


class Checker:
    """Holds what the adapters are known to be. `timelines` may grow while it is used; no name is in both."""

    def __init__(self, targets: Iterable[Target], timelines: Mapping[str, Timeline]) -> None:
        self._targets = {target.name: target for target in targets}
        self._timelines = timelines
        self._references: dict[tuple[str, int], Reference] = {}

    def learn(self, call: Call, body: Any) -> None:
        """Take the answer to a request of `Workload.probes` as the truth. Raises ValueError if it is no answer."""
        verdict = self.check(call, 200, body, 0.0, 0.0)
        if verdict.fault or verdict.wrong_rows:
            raise ValueError(verdict.fault or verdict.wrong_rows[0])
        (ask,), result = call.asks, body["results"][0]
        assert ask.probe is not None
        scores = {pair["label"]: pair["score"] for pair in result.get("scores", [])}
        self._references[ask.adapter, ask.probe] = Reference(scores, result.get("value"))

    def check(self, call: Call, status: int, body: Any, started_s: float, ended_s: float) -> Verdict:
        """Judge the reply to `call`; body is its decoded JSON, the times are those of the timelines' clock."""
        if status == 404 and self._may_be_absent(call, started_s, ended_s):
            return Verdict(is_absent=True)
        if status != 200:
            return Verdict(fault=f"HTTP {status}{_code_of(body)}")
        try:
            rows = list(_rows(call, body))
            wrong = []
            for ask, origin, result in rows:
                if "error" in result:
                    return Verdict(fault=f"{ask.adapter}: a good text is refused, {result['error']['code']}")
                if reason := self._not_from(ask, origin, result, started_s, ended_s):
                    wrong.append(reason)
            return Verdict(wrong_rows=tuple(wrong))
        except (KeyError, TypeError, ValueError) as error:
            return Verdict(fault=f"not the answer's shape: {type(error).__name__} {error}")

    def _may_be_absent(self, call: Call, started_s: float, ended_s: float) -> bool:
        return any(
            None in self._timelines[ask.adapter].possible(started_s, ended_s)
            for ask in call.asks
            if ask.adapter in self._timelines
        )

    def _not_from(
        self, ask: Ask, origin: Mapping[str, Any], result: Mapping[str, Any], started_s: float, ended_s: float
    ) -> str | None:
        """Why this row cannot be from the adapter asked for, or None."""
        name, version, sha256 = origin["adapter"], origin["version"], origin["sha256"]
        if name != ask.adapter:
            return f"{ask.adapter}: {name} answered"
        if (timeline := self._timelines.get(name)) is not None:
            return _not_changing(ask, timeline, version, sha256, result, started_s, ended_s)
        target = self._targets[name]
        if (version, sha256) != (target.version, target.sha256):
            known = f"{target.version}, {target.sha256[:12]}"
            return f"{name}: version {version}, {sha256[:12]} answered; registered is {known}"
        if target.problem_type == "regression":
            return self._not_value(ask, float(result["value"]))
        label, score = _best(result)
        if label not in target.labels:
            return f"{name}: {label!r} is no label of it"
        return self._not_scores(ask, label, score)

    def _not_value(self, ask: Ask, value: float) -> str | None:
        reference = self._reference(ask)
        if reference is None or reference.value is None:
            return None
        if abs(value - reference.value) <= VALUE_TOLERANCE * max(1.0, abs(reference.value)):
            return None
        return f"{ask.adapter}: {value:.4f} to probe {ask.probe}, and alone {reference.value:.4f}"

    def _not_scores(self, ask: Ask, label: str, score: float) -> str | None:
        reference = self._reference(ask)
        if reference is None:
            return None
        alone = reference.scores[label]
        if abs(score - alone) <= SCORE_TOLERANCE and max(reference.scores.values()) - alone <= 2 * SCORE_TOLERANCE:
            return None
        return f"{ask.adapter}: {label!r} with {score:.4f} to probe {ask.probe}, and alone {alone:.4f}"

    def _reference(self, ask: Ask) -> Reference | None:
        return None if ask.probe is None else self._references.get((ask.adapter, ask.probe))


def _not_changing(
    ask: Ask, timeline: Timeline, version: int, sha256: str, result: Mapping[str, Any], started_s: float, ended_s: float
) -> str | None:
    possible = timeline.possible(started_s, ended_s)
    signature = next((one for one in possible if one is not None and one.sha256 == sha256), None)
    if signature is None:
        return f"{ask.adapter}: {sha256[:12]} answered, which it was not at any time of this request"
    if version != (timeline.version(sha256) or version):
        return f"{ask.adapter}: {sha256[:12]} calls itself version {version}; it is {timeline.version(sha256)}"
    label, score = _best(result)
    if label != signature.label or score < SIGNATURE_SCORE:
        given = f"{label!r} with {score:.4f}"
        return f"{ask.adapter}: {sha256[:12]} gave {given}; it can only give {signature.label!r}"
    return None


def _best(result: Mapping[str, Any]) -> tuple[str, float]:
    """The label with the highest score. Raises ValueError if `label` is another; null, an abstention, is none."""
    label, score = result["scores"][0]["label"], float(result["scores"][0]["score"])
    if result["label"] not in (label, None) or result["score"] != score:
        raise ValueError(f"label {result['label']!r}, score {result['score']}, and {label!r}, {score} in scores")
    return label, score


def _rows(call: Call, body: Any) -> Iterable[tuple[Ask, Mapping[str, Any], Mapping[str, Any]]]:
    """(what was asked, the object that names the adapter, the result) for each row."""
    results = body["results"]
    if len(results) != len(call.asks):
        raise ValueError(f"{len(call.asks)} rows asked, {len(results)} answered")
    for ask, result in zip(call.asks, results, strict=True):
        yield ask, result if "items" in call.body else body, result


def _code_of(body: Any) -> str:
    try:
        return f" {body['error']['code']}: {body['error']['message']}"
    except (KeyError, TypeError):
        return ""
