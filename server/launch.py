"""`adakron serve`: check everything that can be checked, start, say where, wait for a signal, stop.

What an operator can get wrong is found before Ray starts, and told in one line. What was started is stopped, whatever
happens in between. Knows nothing of requests.
"""

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from transformers.utils import logging as transformers_logging

from adakron import AdapterConfig
from adakron.backbone import Backbone
from adakron.errors import AdaKronError, BackboneError
from server import processes, ray_environment, state
from server.catalogue import Catalogue
from server.errors import ServerError
from server.seed import seed, shipped_adapters, write_down_configs
from server.settings import Settings
from server.telemetry import logs
from server.telemetry.environment import TracingError, check_exporters, wanted_exporters
from server.telemetry.follower import following

READY_WITHIN_S = 60.0
END_WITHIN_S = 5.0
EXIT_REFUSED = 2
Handler: TypeAlias = Callable[[int, FrameType | None], object] | signal.Handlers
# Ray and its HAProxy open these besides ours; (variable that moves it, default, what it is for)
HAPROXY_PORTS = (
    ("RAY_SERVE_HAPROXY_STATS_PORT", 8404, "HAProxy's statistics"),
    ("RAY_SERVE_HAPROXY_METRICS_PORT", 9101, "HAProxy's metrics"),
)


OPEN = "none; whoever reaches this machine's loopback may do everything. `adakron keys create` closes it"
KEYS_NEEDED = "every call needs one, as 'Authorization: Bearer ...'; `adakron keys list` shows them"

log = logging.getLogger(__name__)


class StartError(Exception):
    """The server cannot start; the message is the one line to show."""


def serve(settings: Settings) -> int:
    """Run until SIGINT or SIGTERM. Returns 0 then, and 2 with one line on stderr if it could not start."""
    logs.configure(logs.LineStream(_log_writer(settings)), level=settings.log_level, process="launcher")
    try:
        with _interrupted_by_signals(), state.locked(settings.state_dir):
            _run(settings)
    except (KeyboardInterrupt, SystemExit):  # while it connects, Ray turns SIGTERM into SystemExit
        return 0
    except (AdaKronError, ServerError) as error:
        _complain(f"{error}; {error.hint}" if error.hint else str(error))
        return EXIT_REFUSED
    except StartError as error:
        _complain(str(error))
        return EXIT_REFUSED
    return 0


def default_replicas(*, gpus: int, cores: int) -> int:
    """One a GPU; without one, half the cores: one half computes, the other takes requests."""
    return gpus or max(1, cores // 2)


def check_port(host: str, port: int, what: str, variable: str) -> None:
    """Raises StartError if nobody could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"cannot listen on {host}:{port} ({what}): {error.strerror}; {variable} moves it"
            ) from error


def _run(settings: Settings) -> None:
    uses_haproxy = not settings.plain and ray_environment.has_haproxy()
    if not uses_haproxy and not settings.plain:
        _say("No HAProxy here: Ray's Python proxy takes the requests, which is slower.")
    _check_ports(settings, uses_haproxy)
    exporters = _trace_exporters()
    _say("Checking the backbone and the stored adapters ...")
    _prepare_state(settings)
    gpus = _count_gpus(settings)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    replicas = settings.replicas or default_replicas(gpus=gpus, cores=cores)
    threads = max(1, cores // replicas)
    token_path = settings.state_dir / "ray_token"
    ray_environment.make_token(token_path)
    ray_environment.apply(
        ray_environment.ray_environment(token_path=token_path, uses_haproxy=uses_haproxy, cores=cores, threads=threads)
    )
    processes.adopt_orphans()
    _say(f"Starting {replicas} replica{'s' if replicas > 1 else ''} ...")
    from server import deployment  # ray reads the environment when it is imported, so not before here

    try:
        try:
            session = deployment.start(settings, replicas=replicas, threads=threads, gpus=min(1.0, gpus / replicas))
        except Exception as error:  # Ray raises anything, plain Exception among them
            raise StartError(f"the replicas could not start: {_first_line(error)}; see {_log_folder()}") from error
        with _interrupted_by_signals():  # again: Ray has put a handler of its own there
            _await_ready(_url(settings))
            _announce(settings, session, deployment.info(), exporters)
            with following(Path(session) / "logs", _log_writer(settings)):
                while True:
                    signal.pause()
    finally:
        with _handling_signals(signal.SIG_IGN):
            _say("Stopping ...")
            deployment.stop()
            processes.end_descendants(grace_s=END_WITHIN_S)


def _trace_exporters() -> tuple[str, ...]:
    """Those that OTEL_* variables ask for. Raises StartError where one is not installed."""
    try:
        exporters = wanted_exporters()
        check_exporters(exporters)
    except TracingError as error:
        raise StartError(str(error)) from error
    return exporters


def _check_ports(settings: Settings, uses_haproxy: bool) -> None:
    check_port(settings.host, settings.port, "the service", "ADAKRON_PORT or --port")
    if uses_haproxy:
        for variable, default, what in HAPROXY_PORTS:
            check_port("", int(os.environ.get(variable, default)), what, variable)


def _prepare_state(settings: Settings) -> None:
    folder = settings.adapters_dir or shipped_adapters()
    if settings.adapters_dir is not None and not folder.is_dir():
        raise StartError(f"ADAKRON_ADAPTERS_DIR: {folder} is not a folder")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers gives it no types
    fingerprint = Backbone.load(settings.backbone).fingerprint
    blobs = settings.open_blobs()
    with state.opened(settings.catalogue, blobs) as catalogue:
        _check_access(settings)
        write_down_configs(catalogue, blobs)
        seeded = seed(catalogue, blobs, folder, fingerprint)
    if seeded.misfits:
        _say(f"Left out, made for another backbone: {', '.join(seeded.misfits)}")


def _check_access(settings: Settings) -> None:
    """Raises StartError for an address that others reach while no key is there to keep anybody out."""
    keys = settings.open_keys()
    try:
        _, known = keys.all()
    finally:
        keys.close()
    if settings.is_loopback:
        if not known:
            log.info("no API key was ever made: whoever can reach %s may do everything", settings.host)
    elif not any(key.is_live(time.time()) for key in known):
        raise StartError(
            f"others can reach {settings.host}, and there is no key: make one with `adakron keys create --scopes "
            "classify read admin` for the same state folder, or listen on 127.0.0.1"
        )


def _count_gpus(settings: Settings) -> int:
    if settings.device == "cpu":
        return 0
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device == "cuda" and gpus == 0:
        raise BackboneError("ADAKRON_DEVICE is cuda, and there is no CUDA device", hint="use auto or cpu")
    return gpus


def _await_ready(url: str) -> None:
    """Wait for /readyz. Raises StartError after READY_WITHIN_S."""
    deadline_s = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=10):  # noqa: S310 (our own http address)
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline_s:
                raise StartError(
                    f"not ready within {READY_WITHIN_S:.0f} s ({_first_line(error)}); see {_log_folder()}"
                ) from error
        time.sleep(0.1)


def _announce(settings: Settings, session: str, info: dict[str, Any], exporters: Sequence[str]) -> None:
    url = _url(settings)
    has_keys = info["access"] == "keys"
    count = info["names"]
    _say(f"Listening on {url} with {count} adapter{'' if count == 1 else 's'}; documentation: {url}/docs")
    _say("Runs:  {backbone} on {device} in {dtype}, {path} tokens, {kernels} kernels".format(**info["engine"]))
    _say(f"Keys:  {KEYS_NEEDED if has_keys else OPEN}")
    _say(f"Try:   {example_call(url, _examples(settings), has_keys=has_keys)}")
    if exporters:
        _say(f"Traces: {', '.join(exporters)}, as OTEL_* variables ask for")
    _say(f"Logs:  stderr; those of Ray: {session}/logs")
    _say("Stop:  Ctrl-C, or SIGTERM to this process")


def _examples(settings: Settings) -> list[dict[str, object]]:
    """Some adapters to try, from the catalogue itself: with keys, the routes would ask us for one."""
    catalogue = Catalogue(settings.catalogue, is_writer=False)
    try:
        listed = [adapter for adapter in catalogue.page(100) if adapter.entry.active is not None]
    finally:
        catalogue.close()
    return [
        {"name": adapter.name, "takes_pair": AdapterConfig.from_json(adapter.config).takes_pair}
        for adapter in listed
        if adapter.config is not None
    ]


def example_call(url: str, adapters: list[dict[str, object]], *, has_keys: bool = False) -> str:
    """A command to paste: a text through the first adapter, or how to register one where there is none."""
    key = ' -H "authorization: Bearer $ADAKRON_API_KEY"' if has_keys else ""
    if not adapters:
        return f"curl -T adapter_model.safetensors {url}/v1/adapters/my-adapter{key}"
    chosen = next((adapter for adapter in adapters if not adapter["takes_pair"]), adapters[0])
    inputs: object = "My new card still has not arrived."
    if chosen["takes_pair"]:
        inputs = [{"text": "A man plays a guitar.", "text_pair": "Somebody makes music."}]
    body = json.dumps({"adapter": chosen["name"], "inputs": inputs})
    return f"curl -s {url}/v1/classify{key} -H 'content-type: application/json' -d '{body}'"


def _url(settings: Settings) -> str:
    """Where this machine reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 (read, not bound)
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{settings.port}"


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does, and both work even if a shell started us in the background."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling_signals(interrupt):
        yield


@contextmanager
def _handling_signals(handler: Handler) -> Iterator[None]:
    former = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in former.items():
            signal.signal(number, earlier)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _log_folder() -> Path:
    return Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "session_latest" / "logs"


def _log_writer(settings: Settings) -> Callable[[str], None]:
    """What prints a line of the log: as it is, or as text."""
    is_terminal = sys.stderr.isatty()
    is_text = settings.log_format == "text" or (settings.log_format == "auto" and is_terminal)
    render: Callable[[str], str] = logs.TextRenderer(colors=is_terminal) if is_text else str
    return lambda line: print(render(line), file=sys.stderr, flush=True)


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(line: str) -> None:
    print(f"adakron: {' '.join(line.split())}", file=sys.stderr, flush=True)
