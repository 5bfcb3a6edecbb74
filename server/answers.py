"""What classification answers: the shapes of the JSON, and how the engine's outcomes become it.

The shapes are typed dicts: what the documentation shows is what the type checker holds these functions to, and nothing
is validated again on the way out. Scores are float32 as the engine made them, written as the nearest float64.
"""

from collections.abc import Sequence
from typing import NamedTuple, NotRequired, cast

from typing_extensions import TypedDict  # pydantic documents typing's own only from Python 3.12 on

from adakron import Result, RowError
from server.error_replies import ErrorObject, error_object
from server.errors import InputError, ServerError
from server.submission import Outcome


class LabelScore(TypedDict):
    """One label and its probability."""

    label: str
    score: float


class Classification(TypedDict):
    """One text, one label of several. `scores` holds top_k pairs, best first.

    `abstained`, there only where it is true: the best score is too low for a label, so `label` is null.
    """

    label: str | None
    score: float
    scores: list[LabelScore]
    n_tokens: int
    truncated: bool
    abstained: NotRequired[bool]


class MultiLabel(Classification):
    """One text, any number of labels: those that reach the adapter's threshold are in `labels`, abstained or not."""

    labels: list[str]


class Regression(TypedDict):
    """One text, one number."""

    value: float
    n_tokens: int
    truncated: bool


class Failed(TypedDict):
    """One text that failed, in its place among others that did not."""

    error: ErrorObject


RowAnswer = MultiLabel | Classification | Regression | Failed


class Identity(TypedDict):
    """Which weights answered: bare name, version, and the sha256 of the artefact's file in 64 hex digits."""

    adapter: str
    version: int
    sha256: str


class AdapterAnswer(Identity):
    """Results of one adapter, in the order of the inputs."""

    results: list[RowAnswer]


class ItemClassification(Identity, Classification):
    """A classification that names its adapter."""


class ItemMultiLabel(Identity, MultiLabel):
    """A multi-label classification that names its adapter."""


class ItemRegression(Identity, Regression):
    """A regression that names its adapter."""


class ItemFailed(Identity, Failed):
    """A failure that names its adapter."""


ItemAnswer = ItemMultiLabel | ItemClassification | ItemRegression | ItemFailed


class OneAdapterAnswer(AdapterAnswer):
    """Answer to adapter + inputs. `errors` counts the rows that failed; absent where none did."""

    errors: NotRequired[int]


class ManyAdaptersAnswer(TypedDict):
    """Answer to adapters + inputs, in the order of the adapters. `errors` counts over all of them."""

    results: list[AdapterAnswer]
    errors: NotRequired[int]


class ItemsAnswer(TypedDict):
    """Answer to items, in their order. `errors` counts the rows that failed; absent where none did."""

    results: list[ItemAnswer]
    errors: NotRequired[int]


Answer = OneAdapterAnswer | ManyAdaptersAnswer | ItemsAnswer


class Place(NamedTuple):
    """Where a row stood in the request, "inputs.3", and whether a plain string stood there rather than an object."""

    path: str
    is_string: bool = False


def row_answer(outcome: Outcome, place: Place, *, top_k: int | None, abstain_below: float | None = None) -> RowAnswer:
    """One row's JSON. top_k None: all labels; abstain_below None: the adapter's own threshold."""
    if isinstance(outcome, Result):
        return _result_answer(outcome, top_k, abstain_below)
    return {"error": error_object(row_error(outcome, place))}


def row_error(outcome: RowError | ServerError, place: Place) -> ServerError:
    """The error that stands for a row, and for the whole call where no row succeeded."""
    if isinstance(outcome, ServerError):
        return outcome
    is_whole = outcome.param is None or (outcome.param == "text" and place.is_string)
    param = place.path if is_whole else f"{place.path}.{outcome.param}"
    return InputError(outcome.message, code=outcome.code, param=param, hint=outcome.hint)


def item_answer(identity: Identity, row: RowAnswer) -> ItemAnswer:
    """One row's JSON under the name of its adapter."""
    return cast(ItemAnswer, {**identity, **row})  # the checker cannot follow a union through two unpackings


def count_failed(outcomes: Sequence[Outcome]) -> int:
    """Rows that have an error in their place."""
    return sum(not isinstance(outcome, Result) for outcome in outcomes)


def _result_answer(result: Result, top_k: int | None, abstain_below: float | None) -> RowAnswer:
    if result.problem_type == "regression":
        return {"value": float(result.value), "n_tokens": result.n_tokens, "truncated": result.truncated}
    scores: list[LabelScore] = [{"label": label, "score": float(score)} for label, score in result.top(top_k)]
    label = result.label_from(abstain_below)
    answer: Classification = {
        "label": label,
        "score": float(result.score),
        "scores": scores,
        "n_tokens": result.n_tokens,
        "truncated": result.truncated,
    }
    if label is None:
        answer["abstained"] = True
    if result.problem_type == "multi_label_classification":
        return {**answer, "labels": list(result.labels)}
    return answer
