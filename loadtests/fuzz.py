"""Calls made up from the server's own OpenAPI document, and every answer held to it: `python -m loadtests.fuzz`.

    python -m loadtests.fuzz --n 20000              a server of its own, without keys
    python -m loadtests.fuzz --n 20000 --keys       a server of its own that asks for keys
    python -m loadtests.fuzz --n 500 --url URL      one that runs; with the key in ADAKRON_API_KEY, if there is one

Schemathesis makes the calls, half of them such as the document allows and half such as it does not; every other one
that names an adapter names one that is there, registered for this. An answer fails if its status, its content type or
its body is none the document has, if it is a 5xx other than 503, 504 and 507, or if nonsense was accepted. Where there
are keys, every tenth call goes out without one or with a wrong one, and fails unless it is refused.
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from loadtests.server_process import make_key, running_server

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    missing_required_header,
]
REFUSED_WITHOUT_A_KEY = frozenset({400, 401, 408, 413, 414, 415, 429, 431})  # at the door, or before it
SHARE_WITHOUT_KEY = 0.1
ALLOWED_5XX = frozenset({503, 504, 507})
OWN_NAMES = ("fuzz/one", "fuzz/two", "fuzz")
CALLS_A_ROUND = 10
CALL_TIMEOUT_S = 40.0
KEPT_FAILURES = 50


@dataclass
class Outcome:
    """What a run found. failures: one line each, with a command that shows it again."""

    calls: int = 0
    seconds: float = 0.0
    by_operation: Counter[str] = field(default_factory=Counter)
    by_status: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        """Count a failure, and keep the first ones."""
        self.failed += 1
        if len(self.failures) < KEPT_FAILURES:
            self.failures.append(what)


def fuzz(url: str, *, n: int, key: str | None = None, minutes: float = 60.0, seed_number: int = 1) -> Outcome:
    """Make up to `n` calls within `minutes`. Raises what requests does where no server answers at the beginning."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60.0, trust_env=False) as client:
        document = client.get("/openapi.json").raise_for_status().json()
        artefact = _register_own(client)
    closed = _take_out_keys(document)
    schema = schemathesis.openapi.from_dict(document)
    outcome = Outcome()
    operations = []
    for found in schema.get_all_operations():
        if isinstance(found, Ok):
            operations.append(found.ok())
        else:
            outcome.fail(f"the document does not describe an operation: {found.err()}")
    began_s = time.monotonic()
    deadline_s = began_s + minutes * 60
    with requests.Session() as session:
        session.trust_env = False
        calls = _Calls(url, session, headers, closed if key else set(), artefact, random.Random(seed_number), outcome)
        for number in itertools.count():
            before = outcome.calls
            for operation, mode in itertools.product(operations, GenerationMode):
                left = min(CALLS_A_ROUND, n - outcome.calls)
                if left > 0 and time.monotonic() < deadline_s:
                    calls.make(operation, mode, left, seed_number + number)
            if outcome.calls >= n or outcome.calls == before or time.monotonic() >= deadline_s:
                break
    outcome.seconds = time.monotonic() - began_s
    return outcome


class _Calls:
    """Making the calls of one run, and judging their answers."""

    def __init__(
        self,
        url: str,
        session: requests.Session,
        headers: Mapping[str, str],
        closed: set[str],
        artefact: bytes,
        draw: random.Random,
        outcome: Outcome,
    ) -> None:
        self._url = url
        self._session = session
        self._headers = dict(headers)
        self._artefact = artefact
        self._draw = draw
        self._outcome = outcome
        self._closed = closed

    def make(self, operation: Any, mode: GenerationMode, count: int, seed_number: int) -> None:
        """Up to `count` calls of one operation; fewer where there are not as many different ones."""
        try:
            strategy = operation.as_strategy(generation_mode=mode)
        except Exception as error:  # such as: nothing about it can be wrong
            if mode == GenerationMode.POSITIVE:
                self._outcome.fail(f"{operation.label}: no call can be made: {error}")
            return

        @seed(seed_number)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def run(case: Any) -> None:
            self._call(operation.label, case, mode)

        try:
            run()
        except Exception as error:
            # Hypothesis' word for an operation of which no wrong call exists; what a call raises is kept in `_call`.
            if "Unsatisfiable" not in type(error).__name__ and not _is_nothing_to_negate(error):
                raise

    def _call(self, label: str, case: Any, mode: GenerationMode) -> None:
        if mode == GenerationMode.POSITIVE:
            self._make_it_meet_something(case)
        outcome = self._outcome
        outcome.calls += 1
        outcome.by_operation[label] += 1
        try:
            if label in self._closed and self._draw.random() < SHARE_WITHOUT_KEY:
                self._call_without_the_key(label, case)
                return
            response = case.call(
                base_url=self._url, session=self._session, headers=dict(self._headers), timeout=CALL_TIMEOUT_S
            )
        except requests.RequestException as error:
            outcome.fail(f"{label}: no answer: {type(error).__name__}: {str(error)[:200]}")
            return
        outcome.by_status[response.status_code] += 1
        if response.status_code >= 500 and response.status_code not in ALLOWED_5XX:
            outcome.fail(f"{label}: answered {response.status_code}: {_shown(case)}")
        checks = CHECKS
        is_refused = 400 <= response.status_code < 500 or response.status_code in ALLOWED_5XX
        if is_refused or _is_refused_in_its_place(response):
            # Refused, which is right for nonsense whatever the reason, and shows nothing where the server is busy.
            checks = [check for check in checks if check not in (negative_data_rejection, missing_required_header)]
        try:
            case.validate_response(
                response,
                checks=checks,
                headers=dict(self._headers),
                transport_kwargs={"session": self._session},
            )
        except (Exception, FailureGroup) as error:
            reasons = "; ".join(str(one).split("\n")[0] for one in getattr(error, "exceptions", [error]))
            outcome.fail(f"{label}: {response.status_code}: {reasons}: {_shown(case)}: {response.content[:300]!r}")

    def _call_without_the_key(self, label: str, case: Any) -> None:
        """No key, or one that was made up, opens nothing."""
        made_up = {"authorization": f"Bearer ad_{'0' * 12}_{self._draw.randrange(62**6):043d}"}
        headers = self._draw.choice([{}, made_up])
        response = case.call(base_url=self._url, session=self._session, headers=headers, timeout=CALL_TIMEOUT_S)
        self._outcome.by_status[response.status_code] += 1
        if response.status_code not in REFUSED_WITHOUT_A_KEY:
            self._outcome.fail(f"{label}: answered {response.status_code} without a key: {_shown(case)}")

    def _make_it_meet_something(self, case: Any) -> None:
        """Name an adapter that is there, every other time, and send a real artefact, once in a while."""
        if case.path_parameters and "name" in case.path_parameters and self._draw.random() < 0.5:
            case.path_parameters["name"] = self._draw.choice(OWN_NAMES)
        if case.method == "PUT" and isinstance(case.body, bytes) and self._draw.random() < 0.2:
            case.body = self._artefact
        if isinstance(case.body, dict) and "adapter" in case.body and self._draw.random() < 0.5:
            case.body["adapter"] = self._draw.choice(OWN_NAMES)


def _register_own(client: httpx.Client) -> bytes:
    """An artefact of the server's, registered under our own names; nothing where it has none."""
    listed = client.get("/v1/adapters").raise_for_status().json()["adapters"]
    active = next((adapter for adapter in listed if adapter["version"]), None)
    if active is None:
        return b""
    artefact = client.get(f"/v1/adapters/{active['name']}/versions/{active['version']}").raise_for_status().content
    for name in OWN_NAMES:
        client.put(f"/v1/adapters/{name}", content=artefact).raise_for_status()
    return artefact


def _take_out_keys(document: dict[str, Any]) -> set[str]:
    """The operations that ask for a key; what is left of the document asks for none: keys are our own matter."""
    closed = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation.pop("security", None):
                closed.add(f"{method.upper()} {path}")
    return closed


def _is_refused_in_its_place(response: Any) -> bool:
    """Whether this answers many artefacts at once, and none of them was taken."""
    if "json" not in response.headers.get("content-type", [""])[0]:
        return False
    body = response.json()
    return isinstance(body, dict) and body.get("registered") == 0


def _is_nothing_to_negate(error: Exception) -> bool:
    return "negat" in str(error).lower()


def _shown(case: Any) -> str:
    try:
        return str(case.as_curl_command())[:600]
    except Exception:
        return str(case)[:600]


def report(outcome: Outcome, *, keys: bool) -> str:
    """The outcome in Markdown."""
    statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(outcome.by_status.items()))
    lines = [
        f"{outcome.calls:,} calls {'with' if keys else 'without'} keys in {outcome.seconds:.0f} s: "
        f"**{outcome.failed} failures**. Answers: {statuses}.",
        "",
        "| operation | calls |",
        "| --- | --- |",
        *(f"| `{operation}` | {count:,} |" for operation, count in sorted(outcome.by_operation.items())),
    ]
    return "\n".join(lines)


@contextmanager
def _own_server(log: Path, *, keys: bool) -> Iterator[tuple[str, str | None]]:
    """A server, and a key to all of it if it shall ask for one."""
    with tempfile.TemporaryDirectory(prefix="adakron-fuzz-") as folder:
        key = make_key(Path(folder), "classify", "read", "admin") if keys else None
        with running_server(log, 1, state_dir=Path(folder)) as server:
            yield server.url, key


def main() -> int:
    """Run, print a report, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=2000, help="calls at most (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="time at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a server that runs; the adapters fuzz, fuzz/one and fuzz/two on it are changed")
    parser.add_argument("--keys", action="store_true", help="let the server of our own ask for a key")
    parser.add_argument("--log", type=Path, default=Path("fuzz-server.log"), help="what our own server prints")
    parser.add_argument("--json", type=Path, help="write all that was found to this file")
    options = parser.parse_args()
    limits = {"n": options.n, "minutes": options.minutes, "seed_number": options.seed}
    if options.url:
        key = os.environ.get("ADAKRON_API_KEY") or None
        outcome = fuzz(options.url, key=key, **limits)
    else:
        with _own_server(options.log, keys=options.keys) as (url, key):
            outcome = fuzz(url, key=key, **limits)
    print(report(outcome, keys=key is not None))
    for failure in outcome.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(vars(outcome), indent=1))
    return 1 if outcome.failed or not outcome.calls else 0


if __name__ == "__main__":
    raise SystemExit(main())
