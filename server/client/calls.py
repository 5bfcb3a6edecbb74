"""What the client can ask, each call once: the request it makes and how the answer is read, for both transports.

Every call raises ClientError; its subclasses are in `server.client.errors`. Knows routes; nothing of connections.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack, cast
from urllib.parse import quote

import httpx

from server.client.batches import Item, Text, as_item, body_of, encoded, inputs_of
from server.client.errors import ClientError, NotFoundError
from server.client.exchange import Flow, Request, check, error_members, json_of, unexpected
from server.client.replies import (
    ActivateReply,
    AdapterReply,
    AdapterResults,
    BulkReply,
    DeleteReply,
    Outcome,
    Page,
    PutReply,
    Result,
    RowFailure,
    SplitDone,
    StatsReply,
    outcomes_of,
    results_of,
)

T = TypeVar("T")

_JSON = {"content-type": "application/json"}
BULK_WITHIN_S = 300.0
_WEIGHTS_FILE = "adapter_model.safetensors"
# A body is refused whole for one text that is no Unicode (400), is too large (413), or cannot be classified (422).
_OF_ROWS = frozenset({400, 413, 422})


class Options(TypedDict, total=False):
    """How texts are classified.

    top_k           how many labels `scores` holds (1); None for all
    truncate        cut a text at the adapter's max_length (True); False makes a longer one an error
    abstain_below   withhold a label whose score is lower; None for the adapter's own threshold, 0 for none
    min_generation  answer only from a catalogue at least this new, as `put` returned it
    route_key       calls with the same key stay on one side of a split
    """

    top_k: int | None
    truncate: bool
    abstain_below: float | None
    min_generation: int | None
    route_key: str | None


def classify(text: Text, adapter: str | None = None, **options: Unpack[Options]) -> Flow[Result]:
    """One text, or a pair of texts, through one adapter: "sst2", "sst2@3" or "sst2@sha256:..".

    Raises RefusedError for a text that cannot be classified, NotFoundError for an unknown adapter.
    """
    item = as_item(text)
    response = yield _classify_request(body_of([item], adapter), options)
    (outcome,) = _read_rows(response, 1)
    if isinstance(outcome, RowFailure):
        raise unexpected(response)  # a call of which nothing succeeded is not answered with 200
    return outcome


def classify_together(items: Sequence[Item], adapter: str | None, options: Options) -> Flow[list[Outcome]]:
    """As many items as fit one request; an outcome for each, in order, even where none can be classified."""
    response = yield _classify_request(body_of(items, adapter), options)
    error = error_members(response) if response.status_code in _OF_ROWS else None
    if error is None or error["code"] == "INVALID_REQUEST":
        return _read_rows(response, len(items))
    if len(items) == 1:
        return [RowFailure(error["code"], error["message"], error.get("hint"), items[0].adapter or adapter)]
    half = len(items) // 2  # the reply tells of one text alone, so each is asked for in ever smaller company
    first = yield from classify_together(items[:half], adapter, options)
    second = yield from classify_together(items[half:], adapter, options)
    return first + second


def fan_out(
    texts: Text | Sequence[Text], adapters: Iterable[str], **options: Unpack[Options]
) -> Flow[list[AdapterResults]]:
    """The same texts through several adapters, in one request: texts x adapters may be 128.

    Raises RefusedError where no text can be classified, NotFoundError for an unknown adapter.
    """
    several = [texts] if isinstance(texts, str | tuple | Item) else texts
    body = {"adapters": list(adapters), "inputs": inputs_of([as_item(text) for text in several])}
    response = yield _classify_request(body, options)
    return _read(lambda answer: [results_of(part) for part in answer["results"]], response)


def info() -> Flow[dict[str, Any]]:
    """What is served: backbone, fingerprint, limits, replica."""
    return json_of((yield Request("GET", "/v1/info")))


def ready() -> Flow[bool]:
    """Whether a row really went through backbone and adapters just now. Raises UnreachableError if nobody answers."""
    response = yield Request("GET", "/readyz", sends_again=False)
    if response.status_code == 503:
        return False
    check(response)
    return True


def page(limit: int = 200, cursor: str | None = None) -> Flow[Page]:
    """Some adapters in the order of names; `next` is the cursor of the page after, or None."""
    query = {"limit": str(limit)} | ({} if cursor is None else {"cursor": cursor})
    return cast(Page, json_of((yield Request("GET", "/v1/adapters", query))))


def adapter(name: str) -> Flow[AdapterReply]:
    """One adapter with its versions, configuration and history."""
    return cast(AdapterReply, json_of((yield Request("GET", _path(name)))))


def stats(name: str) -> Flow[StatsReply]:
    """What each version of an adapter served: calls, rows, latencies, labels, and drift from its reference."""
    return cast(StatsReply, json_of((yield Request("GET", f"{_path(name)}/stats"))))


def put(name: str, artefact: bytes | Path, *, activate: bool = True, if_match: int | None = None) -> Flow[PutReply]:
    """Register an artefact: its bytes, its file or its folder. `activate=False` stages it: it answers as name@version.

    if_match  the generation that the adapter must have, here and in all that change one; else ConflictError
    """
    reply = yield _change(
        "PUT",
        _path(name),
        if_match,
        params={"activate": "true" if activate else "false"},
        headers={"content-type": "application/octet-stream"},
        content=_bytes_of(artefact),
    )
    return cast(PutReply, json_of(reply))


def put_many(artefacts: Iterable[tuple[str, bytes | Path]]) -> Flow[BulkReply]:
    """Register and activate many in one request; a result for each, in order. At most 1000, 1 GiB together."""
    files = [(name, _WEIGHTS_FILE, _bytes_of(artefact)) for name, artefact in artefacts]
    # The server is told how long it may take: without that, a gigabyte has the 25 s that every request has.
    # And that it may read the body as it needs it: else Ray reads all of it into memory, to notice when we leave.
    headers = {"x-request-timeout-seconds": f"{BULK_WITHIN_S:g}", "x-request-disconnect-disabled": "?1"}
    request = Request("POST", "/v1/adapters/bulk", headers=headers, files=files, within_s=BULK_WITHIN_S)
    return cast(BulkReply, json_of((yield request)))


def activate(name: str, version: int, *, if_match: int | None = None) -> Flow[ActivateReply]:
    """Let the bare name answer with this version, at once for new requests."""
    return cast(
        ActivateReply, json_of((yield _change("POST", f"{_path(name)}/activate", if_match, json={"version": version})))
    )


def rollback(name: str, to: int | None = None) -> Flow[ActivateReply]:
    """Let the bare name answer with the version that was active before, or with version `to`.

    Raises ClientError where none was. Refused with ConflictError if somebody changes the adapter meanwhile.
    """
    if to is not None:
        return (yield from activate(name, to))
    known = yield from adapter(name)
    kept = {version["version"] for version in known["versions"]}
    before = (event["active_version"] for event in known["history"])
    former = next((version for version in before if version in kept and version != known["version"]), None)
    if former is None:
        raise ClientError(
            f"no version of {name} was active before the present one", hint="name one to go back to: `to`, or --to"
        )
    return (yield from activate(name, former, if_match=known["generation"]))


def split(
    name: str, weights: Mapping[int, int], shadow: int | None = None, *, if_match: int | None = None
) -> Flow[SplitDone]:
    """Share the calls to the bare name out: version -> percent, 100 in all; none: all to the active version.

    `shadow` sees every call too; its answers are compared and never returned.
    """
    body: dict[str, Any] = {"weights": {str(version): weight for version, weight in weights.items()}}
    body |= {} if shadow is None else {"shadow": shadow}
    return cast(SplitDone, json_of((yield _change("PUT", f"{_path(name)}/split", if_match, json=body))))


def delete(name: str, version: int | None = None, *, if_match: int | None = None) -> Flow[DeleteReply]:
    """Delete one version that is not active, or the name with all of them."""
    query = {} if version is None else {"version": str(version)}
    return cast(DeleteReply, json_of((yield _change("DELETE", _path(name), if_match, params=query))))


def export(name: str, version: int | None = None) -> Flow[bytes]:
    """The artefact of a version as it was put; of the active one by default. Raises NotFoundError without any."""
    if version is None:
        known = yield from adapter(name)
        version = known["version"]
        if version is None:
            raise NotFoundError(404, "VERSION_NOT_FOUND", f"no version of {name} is active", hint=f"name one: {name}@1")
    response = yield Request("GET", f"{_path(name)}/versions/{version}")
    check(response)
    return response.content


def _classify_request(body: Mapping[str, Any], options: Options) -> Request:
    settings = {name: value for name, value in options.items() if name != "route_key"}
    route_key = options.get("route_key")
    headers = _JSON if route_key is None else {**_JSON, "x-route-key": route_key}
    return Request("POST", "/v1/classify", headers=headers, content=encoded({**body, **settings}))


def _change(
    method: str,
    path: str,
    if_match: int | None,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
    json: object = None,
) -> Request:
    """A request that changes an adapter: done once, however often it has to be sent."""
    given = {**(headers or {}), "idempotency-key": secrets.token_hex(16)}
    if if_match is not None:
        given["if-match"] = f'"{if_match}"'
    if json is not None:
        given, content = given | _JSON, encoded(json)
    return Request(method, path, params or {}, given, content)


def _read(parse: Callable[[Mapping[str, Any]], T], response: httpx.Response) -> T:
    """What `parse` makes of the answer. Raises UnexpectedAnswerError where it finds something else."""
    answer = json_of(response)
    try:
        return parse(answer)
    except (KeyError, TypeError) as error:
        raise unexpected(response) from error


def _read_rows(response: httpx.Response, n_rows: int) -> list[Outcome]:
    """The outcomes of an answer, as many as were asked for. Raises UnexpectedAnswerError for any other number."""
    found = _read(outcomes_of, response)
    if len(found) != n_rows:
        raise unexpected(response)
    return found


def _bytes_of(artefact: bytes | Path) -> bytes:
    """Raises OSError."""
    if isinstance(artefact, bytes):
        return artefact
    return (artefact / _WEIGHTS_FILE if artefact.is_dir() else artefact).read_bytes()


def _path(name: str) -> str:
    return f"/v1/adapters/{quote(name, safe='/')}"
