"""How each client's script is run, installing the client first where this environment has none.

huggingface_hub, tritonclient and openai are pinned with the project. kserve pins packages that contradict ours, and
npm's client needs node: these two get folders of their own, kept in the user's cache, outside of the tree.
"""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
KSERVE = "kserve==0.21.0"
HUGGINGFACE_INFERENCE = "@huggingface/inference@4.13.30"
INSTALL_WITHIN_S = 300
# How pip and npm say that there is no registry, as against no such package.
UNREACHABLE = (
    *("from versions: none", "NewConnectionError", "ConnectTimeoutError", "Temporary failure in name resolution"),
    *("ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN", "ETIMEDOUT", "ENETUNREACH"),
)

Command = Callable[[str], Sequence[str]]
"""From the script's argument to the command line. Skips the test where the client cannot be had."""


def commands() -> dict[str, Command]:
    """Every client that is tested, by the name of its adapter's last segment."""
    return {
        "huggingface_hub": lambda facts: [sys.executable, str(HERE / "huggingface_hub_client.py"), facts],
        "huggingface_inference": _huggingface_inference,
        "tritonclient": lambda facts: [sys.executable, str(HERE / "tritonclient_client.py"), facts],
        "kserve": _kserve,
        "openai": lambda facts: [sys.executable, str(HERE / "openai_client.py"), facts],
        "curl": _curl,
    }


def _kserve(facts: str) -> Sequence[str]:
    def install(folder: Path) -> Sequence[str]:
        venv.create(folder, with_pip=True)
        return [str(folder / "bin/python"), "-m", "pip", "install", "-q", KSERVE]

    return [str(_cached(KSERVE, install) / "bin/python"), str(HERE / "kserve_client.py"), facts]


def _huggingface_inference(facts: str) -> Sequence[str]:
    _require("node")
    _require("npm")

    def install(folder: Path) -> Sequence[str]:
        return ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), HUGGINGFACE_INFERENCE]

    folder = _cached(HUGGINGFACE_INFERENCE, install)
    return ["node", str(HERE / "huggingface_inference_client.mjs"), facts, str(folder)]


def _curl(facts: str) -> Sequence[str]:
    _require("curl")
    return [sys.executable, str(HERE / "curl_client.py"), facts]


def _require(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def _cached(package: str, install: Callable[[Path], Sequence[str]]) -> Path:
    """The folder with this package, made by the command of `install` where it is not complete yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adakron-tests"
    folder = cache / package.replace("@", "", 1).replace("/", "-").replace("@", "-").replace("==", "-")
    complete = folder / "complete"
    if complete.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run(
        install(folder), capture_output=True, text=True, timeout=INSTALL_WITHIN_S, check=False, stdin=subprocess.DEVNULL
    )
    said = done.stdout + done.stderr
    if done.returncode and any(sign in said for sign in UNREACHABLE):
        pytest.skip(f"{package} is not installed, and its registry cannot be reached")
    assert done.returncode == 0, said
    complete.touch()
    return folder
