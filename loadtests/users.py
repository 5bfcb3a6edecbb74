"""The users, for locust: who asks, how often, and who changes adapters meanwhile.

    python -m locust -f loadtests/users.py --host http://127.0.0.1:8000

All but the registrar ask again as soon as they are answered. They share one process, for the checker has to know what
the registrar has changed; locust's --processes and workers are therefore refused.
"""

import json
import os
import time
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from locust import FastHttpUser, constant, constant_pacing, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from loadtests.registrar import Write
from loadtests.samples import Sample, write_samples
from loadtests.texts import made_up_texts, read_texts
from loadtests.workload import Call
from loadtests.world import World

SEED = 13
REGISTRAR_PERIOD_S = 0.5

_seeds = count(SEED)
_world: World | None = None


def the_world() -> World:
    """The run under way. Stops the user if it could not be prepared."""
    if _world is None:
        raise StopUser
    return _world


class _Asker(FastHttpUser):
    abstract = True
    wait_time = constant(0)
    connection_timeout = 10.0
    network_timeout = 30.0

    def on_start(self) -> None:
        self.world = the_world()
        self.rng = Random(next(_seeds))

    def ask(self, call: Call) -> None:
        """Send one request to /v1/classify and judge every row of its answer."""
        started_s = time.monotonic()
        context: dict[str, Any] = {"started_s": started_s, "rows": len(call.asks), "adapters": call.adapters}
        with self.rest("POST", "/v1/classify", json=call.body, name=call.kind, context=context) as reply:
            verdict = self.world.checker.check(call, reply.status_code, reply.js, started_s, time.monotonic())
            context["outcome"] = self.world.note(verdict, reply.status_code)
            reply.request_meta["context"] = context
            if verdict.wrong_rows:
                reply.failure(f"wrong adapter: {verdict.wrong_rows[0]}")
            elif verdict.fault:
                reply.failure(verdict.fault)
            else:
                reply.success()


class SingleUser(_Asker):
    """One text a request."""

    weight = 4

    @task
    def single(self) -> None:
        self.ask(self.world.workload.single(self.rng))


class BatchUser(_Asker):
    """8 to 32 texts a request, all for one adapter."""

    weight = 1

    @task
    def batch(self) -> None:
        self.ask(self.world.workload.batch(self.rng))


class PairUser(_Asker):
    """One pair of texts a request; leaves where no adapter takes pairs."""

    weight = 1

    def on_start(self) -> None:
        super().on_start()
        if not self.world.workload.has_pairs:
            raise StopUser

    @task
    def pair(self) -> None:
        self.ask(self.world.workload.pair(self.rng))


class MixedUser(_Asker):
    """8 to 32 texts a request, each for an adapter of its own."""

    weight = 2

    @task
    def mixed(self) -> None:
        self.ask(self.world.workload.mixed(self.rng))


class RegistrarUser(_Asker):
    """One of them: changes adapters, asks each what it answers with afterwards, and cleans up in the end."""

    fixed_count = 1
    wait_time = constant_pacing(REGISTRAR_PERIOD_S)

    @task
    def change(self) -> None:
        write = self.world.registrar.plan(self.rng, time.monotonic())
        self._send(write)
        self.ask(self.world.registrar.question(write.name))

    def on_stop(self) -> None:
        for write in self.world.registrar.farewell(time.monotonic()):
            self._send(write)

    def _send(self, write: Write) -> None:
        registrar = self.world.registrar
        context: dict[str, Any] = {"started_s": time.monotonic(), "rows": 0, "adapters": 1}
        body: dict[str, Any] = {"json": write.json} if write.json is not None else {"data": write.data}
        headers = {"Content-Type": "application/octet-stream" if write.data else "application/json"}
        with self.rest(write.method, write.path, name=write.kind, headers=headers, context=context, **body) as reply:
            fault = registrar.judge(write, reply.status_code, reply.js, time.monotonic())
            context["outcome"] = "failed" if fault else "ok"
            reply.request_meta["context"] = context
            if fault:
                self.world.faults[fault[:300]] += 1
                reply.failure(fault)
            else:
                reply.success()


@events.init_command_line_parser.add_listener
def _add_arguments(parser: LocustArgumentParser) -> None:
    # Locust passes the parser by this name.
    artefacts = Path(__file__).resolve().parent.parent / "adapters"
    parser.add_argument(
        "--artefacts", type=Path, default=artefacts, help="folder of artefacts to make changing ones from"
    )
    parser.add_argument("--outcome", type=Path, default=None, help="folder for samples.csv and outcome.json")


@events.test_start.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    global _world
    _world = None
    try:
        if isinstance(environment.runner, MasterRunner | WorkerRunner):
            raise ValueError("these users share one process: run locust without --processes, --master and --worker")
        assert environment.host
        assert environment.parsed_options
        data_dir = os.environ.get("ADAKRON_DATA_DIR")
        texts = read_texts(Path(data_dir), SEED) if data_dir else made_up_texts(SEED)
        _world = World.prepare(environment.host, environment.parsed_options.artefacts, texts)
    except Exception as error:
        # Locust logs what a listener raises and goes on with the run.
        line = f"the load test cannot start: {type(error).__name__}: {error}"
        print(line)
        _write_outcome(environment, {"cannot_start": line})
        environment.process_exit_code = 2
        if environment.runner:
            environment.runner.quit()


@events.request.add_listener
def _measure(
    name: str, response_time: float, response: Any, context: dict[str, Any], exception: Exception | None, **_: Any
) -> None:
    if _world is None:
        return
    outcome = context.get("outcome", "failed" if exception else "ok")
    rows = context["rows"] if outcome == "ok" else 0
    status = response.status_code if response is not None else 0
    started_s = context["started_s"] - _world.started_s
    _world.samples.append(Sample(started_s, response_time / 1000, name, status, rows, context["adapters"], outcome))


@events.quitting.add_listener
def _conclude(environment: Environment, **_: Any) -> None:
    if _world is None or environment.runner is None:
        return
    exceptions = [f"{known['msg']} ({known['count']} times)" for known in environment.runner.exceptions.values()]
    outcome = _world.outcome(exceptions)
    if outcome["wrong_rows"] or outcome["faults"] or exceptions:
        environment.process_exit_code = 1
    if folder := _write_outcome(environment, outcome):
        write_samples(folder / "samples.csv", _world.samples)


def _write_outcome(environment: Environment, outcome: dict[str, Any]) -> Path | None:
    """Write outcome.json into the folder that --outcome names, if it does, and return the folder."""
    folder: Path | None = environment.parsed_options.outcome if environment.parsed_options else None
    if folder:
        (folder / "outcome.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    return folder
