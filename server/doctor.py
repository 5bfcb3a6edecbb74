"""What an operator should know before a server is started here: each a finding, with what to do about it.

Looks and changes nothing: no folder is made, no lock is kept, no Ray is started. Knows nothing of printing.
"""

import fcntl
import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers.utils import logging

from adakron import Backbone
from adakron.errors import AdaKronError
from adakron.kernels import compiler
from server.client import AdaKron, ClientError
from server.database import Database, holds_catalogue
from server.errors import ServerError
from server.launch import HAPROXY_PORTS, StartError, check_port, default_replicas
from server.ray_environment import has_haproxy
from server.settings import Settings

MIN_FREE_BYTES = 2**30
_PACKAGES = ("adakron", "torch", "transformers", "ray", "fastapi")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `fix` is what to do: always there where it is broken.

    ok      as it should be
    note    works, and could be better
    broken  a server will not start here, or not serve
    """

    check: str
    verdict: Literal["ok", "note", "broken"]
    found: str
    fix: str | None = None


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; some seconds, most of them the backbone's. A check that fails by itself is a finding too."""
    return [_checked(name, check, settings) for name, check in CHECKS.items()]


def _checked(name: str, check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    try:
        return check(settings)
    except (AdaKronError, ServerError) as error:
        return Finding(name, "broken", str(error), error.hint or "see the message")
    except Exception as error:  # whatever a driver or a file system comes up with
        return Finding(name, "broken", f"{type(error).__name__}: {error}", "see the message")


def packages(settings: Settings) -> Finding:
    """Which versions are here."""
    found, missing = [f"Python {platform.python_version()}"], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", "broken", f"missing: {', '.join(missing)}", 'pip install "adakron[serve]"')
    return Finding("packages", "ok", ", ".join(found))


def device(settings: Settings) -> Finding:
    """What the encoder will run on."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    if settings.device == "cuda" and not names:
        return Finding("device", "broken", "ADAKRON_DEVICE is cuda, and there is no CUDA device", "use auto or cpu")
    replicas = settings.replicas or default_replicas(gpus=len(names), cores=cores)
    many = f"{replicas} replica{'' if replicas == 1 else 's'}"
    if names and settings.device != "cpu":
        return Finding("device", "ok", f"{', '.join(names)}; {many}")
    found = f"CPU with {cores} cores; {many}"
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        return Finding("device", "note", f"{found}; this build of torch cannot use the GPU", "install torch for CUDA")
    return Finding("device", "ok", found)


def kernels(settings: Settings) -> Finding:
    """Whether the native kernels compile here; they are kept for the server."""
    wanted = os.environ.get("CXX") or "g++"
    if compiler.native_library() is not None:
        return Finding("kernels", "ok", f"native, compiled by {shutil.which(wanted)}")
    if shutil.which(wanted) is None:
        fix = "install a C++ compiler (Debian, Ubuntu: apt install g++), or set CXX"
        return Finding("kernels", "note", f"no C++ compiler {wanted!r}: plain torch runs instead, slower", fix)
    return Finding("kernels", "note", "native kernels do not compile: plain torch runs instead", "the log says why")


def proxy(settings: Settings) -> Finding:
    """What will take the requests."""
    if settings.plain:
        return Finding("proxy", "note", "ADAKRON_PLAIN: Ray's Python proxy, which is slower", "leave it out")
    if has_haproxy():
        return Finding("proxy", "ok", "HAProxy")
    return Finding("proxy", "note", "no HAProxy: Ray's Python proxy, which is slower", "install haproxy")


def ports(settings: Settings) -> Finding:
    """Whether a server could listen, or one does already."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    if _listens(settings.host, settings.port):
        try:
            with AdaKron(url, timeout_s=5, attempts=1) as client:
                backbone = client.info()["engine"]["backbone"]
        except (ClientError, KeyError, TypeError):
            fix = "stop what listens there; ADAKRON_PORT or --port moves the server"
            return Finding("ports", "broken", f"something else listens on {settings.host}:{settings.port}", fix)
        return Finding("ports", "ok", f"a server answers at {url}, with {backbone}")
    wanted = [(settings.host, settings.port, "the service", "ADAKRON_PORT or --port")]
    if not settings.plain and has_haproxy():
        wanted += [("", int(os.environ.get(name, port)), what, name) for name, port, what in HAPROXY_PORTS]
    try:
        for place in wanted:
            check_port(*place)
    except StartError as error:
        found, _, fix = str(error).partition("; ")
        return Finding("ports", "broken", found, fix)
    return Finding("ports", "ok", f"free: {', '.join(str(port) for _, port, *_ in wanted)}")


def state_folder(settings: Settings) -> Finding:
    """Whether the folder can be written, has room, and is nobody else's."""
    folder = settings.state_dir
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    fix = "give ADAKRON_STATE_DIR another folder"
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding("state", "broken", f"{folder} cannot be written", fix)
    free_bytes = shutil.disk_usage(nearest).free
    if free_bytes < MIN_FREE_BYTES:
        return Finding("state", "note", f"{folder}: {free_bytes:,} bytes free", "make room, or " + fix)
    what = "in use by a running server" if _is_locked(folder / "lock") else "ready" if folder.exists() else "to be made"
    return Finding("state", "ok", f"{folder}: {what}, {free_bytes / 2**30:.0f} GiB free")


def catalogue(settings: Settings) -> Finding:
    """Whether the catalogue opens."""
    place = "in PostgreSQL" if settings.catalogue_url is not None else str(settings.state_dir / "catalogue.sqlite")
    if not holds_catalogue(settings.catalogue):
        return Finding("catalogue", "ok", f"{place}: none yet, the first start makes it")
    Database(settings.catalogue, is_writer=False).close()
    return Finding("catalogue", "ok", f"{place}: opens")


def backbone(settings: Settings) -> Finding:
    """Whether the encoder is here, and its digest, by which adapters know it."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers gives it no types
    found = Backbone.load(settings.backbone)
    return Finding("backbone", "ok", f"{found.name}, weights {found.fingerprint.weights_sha256[:12]}")


CHECKS: dict[str, Callable[[Settings], Finding]] = {
    "packages": packages,
    "device": device,
    "kernels": kernels,
    "proxy": proxy,
    "ports": ports,
    "state": state_folder,
    "catalogue": catalogue,
    "backbone": backbone,
}


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def _is_locked(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
