"""A real server as its operator starts it, in a process of its own; and adapters whose answers prove who made them."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adakron import Adapter
from adakron.artefact import expected_shapes
from adakron.config import AdaKronConfig, AdapterConfig, Fingerprint
from loadtests.server_process import free_port
from server.access.keys import Scope
from server.settings import Settings
from server.state import make_folder

READY_WITHIN_S = 420.0
STOP_WITHIN_S = 60.0
PROJECT = Path(__file__).resolve().parents[2]


class Server:
    """`python -m server` on a state folder; may be stopped and started again on it."""

    def __init__(self, state_dir: Path, log: Path, *, replicas: int = 2) -> None:
        self.state_dir, self.log = state_dir, log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.replicas = replicas
        self.process: subprocess.Popen[bytes] | None = None
        self.keys: dict[str, str] = {}  # by any name; with "all" the calls below are made

    def make_key(self, scopes: Iterable[Scope], **options: Any) -> str:
        """A new key in its database, whether it runs or not."""
        make_folder(self.state_dir)
        store = Settings(state_dir=self.state_dir).open_keys(is_writer=True)
        try:
            return store.create(scopes, **options)[0]
        finally:
            store.close()

    def revoke(self, key: str) -> None:
        store = Settings(state_dir=self.state_dir).open_keys(is_writer=True)
        try:
            assert store.revoke(key.split("_")[1])
        finally:
            store.close()

    def command(self, *flags: str) -> list[str]:
        seeds = self.state_dir.parent / "no-seeds"
        seeds.mkdir(exist_ok=True)
        settings = {
            "port": self.port,
            "replicas": self.replicas,
            "state-dir": self.state_dir,
            "adapters-dir": seeds,
            "device": "cpu",
        }
        return [sys.executable, "-m", "server", *(f"--{name}={value}" for name, value in settings.items()), *flags]

    def launch(self) -> int:
        """Start the process without waiting; where in the log its lines begin."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ADAKRON_"))}
        with self.log.open("ab") as output:
            began_at: int = output.tell()
            # Not from the project's folder: Ray's workers must find the packages wherever the server is started.
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.state_dir.parent,
                env=environment | {"PYTHONPATH": str(PROJECT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return began_at

    def ensure_running(self) -> None:
        """Start it unless it runs, and wait until it says that it is ready."""
        if self.process is None:
            self.wait_for_line("Stop:", self.launch())

    def wait_for_line(self, beginning: str, began_at: int) -> None:
        assert self.process is not None
        deadline_s = time.monotonic() + READY_WITHIN_S
        while not any(line.startswith(beginning) for line in self.log.read_text()[began_at:].splitlines()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.2)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_WITHIN_S)
        self.process = None
        return code

    def processes(self) -> dict[int, str]:
        """pid -> command line of this server's process and of all below it."""
        assert self.process is not None
        parents, commands = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it ended while we looked
        found, level = {}, {self.process.pid}
        while level:
            found.update({pid: commands[pid] for pid in level if pid in commands})
            level = {pid for pid, parent in parents.items() if parent in level}
        return found

    def client(self, *, headers: Mapping[str, str] | None = None) -> httpx.Client:
        sent = {**bearer(self.keys.get("all")), **(headers or {})}
        return httpx.Client(base_url=self.url, timeout=30, headers=sent)

    def classify(self, adapter: str, inputs: object = "hello", **more: object) -> httpx.Response:
        """One call on a connection of its own, so that it may reach any replica."""
        with self.client() as client:
            return client.post("/v1/classify", json={"adapter": adapter, "inputs": inputs, **more})

    def put(self, name: str, adapter: Adapter, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.put(f"/v1/adapters/{name}", content=adapter.to_bytes(), **options)

    def info(self) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = client.get("/v1/info").json()
            return found


def bearer(key: str | None) -> dict[str, str]:
    """The header that carries a key."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


@dataclass(frozen=True)
class Signature:
    """An adapter that gives the same label and score for every text: they tell which bytes answered."""

    adapter: Adapter
    label: str
    score: float

    def made(self, result: dict[str, Any]) -> bool:
        return bool(result["label"] == self.label and math.isclose(result["score"], self.score, abs_tol=1e-3))


def signature(info: dict[str, Any], mark: int, labels: Sequence[str] = ("no", "yes")) -> Signature:
    """The adapter with this mark, for the backbone that `info` (GET /v1/info) describes. Marks 1 to 40 differ."""
    import torch

    engine = info["engine"]
    config = AdapterConfig(
        adakron=AdaKronConfig(bottleneck=12),
        hidden_size=engine["hidden_size"],
        num_hidden_layers=engine["num_layers"],
        base_model_name_or_path=engine["backbone"],
        base_fingerprint=Fingerprint(**engine["fingerprint"]),
        label_names=tuple(labels),
        pooling="mean",
    )
    generator = torch.Generator().manual_seed(mark)
    tensors = {n: 0.02 * torch.randn(shape, generator=generator) for n, shape in expected_shapes(config).items()}
    tensors["head.weight"].zero_()
    bias = 0.1 * mark
    tensors["head.bias"].zero_()[mark % len(labels)] = bias
    score = math.exp(bias) / (math.exp(bias) + len(labels) - 1)
    return Signature(Adapter.build(config, tensors), labels[mark % len(labels)], score)
