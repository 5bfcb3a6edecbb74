"""What `server.client` offers: both clients the same, typed for callers, and light to import."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import server.client
from server.client import AdaKron, AsyncAdaKron, errors

HEAVY = ("torch", "transformers", "ray", "fastapi", "pydantic", "numpy", "sqlalchemy", "adakron")


def methods(kind: type) -> dict[str, object]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


def test_all_is_sorted_and_is_what_is_there() -> None:
    assert server.client.__all__ == sorted(server.client.__all__)
    assert all(hasattr(server.client, name) for name in server.client.__all__)
    kinds = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert kinds <= set(server.client.__all__)


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    one, other = methods(AdaKron), methods(AsyncAdaKron)
    assert one.keys() == other.keys()
    for name in one:
        mine, its = inspect.signature(one[name]), inspect.signature(other[name])  # type: ignore[arg-type]
        assert [str(p) for p in mine.parameters.values()] == [str(p) for p in its.parameters.values()], name


@pytest.mark.parametrize("name", methods(AdaKron))
def test_every_method_is_documented_and_shows_its_arguments(name: str) -> None:
    method = getattr(AdaKron, name)
    assert method.__doc__
    assert next(iter(inspect.signature(method).parameters)) == "self"
    assert "Generator" not in str(inspect.signature(method))


def test_importing_it_brings_nothing_heavy() -> None:
    code = f"import server.client, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CALLER = """
from typing import assert_type
from server.client import AdaKron, AdapterResults, AsyncAdaKron, Outcome, Result
from server.client.replies import AdapterSummary, PutReply

def blocking(client: AdaKron) -> None:
    assert_type(client.classify("a", "sst2", top_k=None), Result)
    assert_type(client.classify_many(["a", ("a", "b")], "sst2"), list[Outcome])
    assert_type(client.fan_out("a", ["sst2"]), list[AdapterResults])
    assert_type(client.put("x", b""), PutReply)
    assert_type([adapter for adapter in client.adapters()], list[AdapterSummary])
    client.classify("a", "sst2", top="1")  # type: ignore[call-arg]
    client.put(3, b"")  # type: ignore[arg-type]

async def awaited(client: AsyncAdaKron) -> None:
    assert_type(await client.classify("a", "sst2"), Result)
    assert_type([outcome async for outcome in client.stream(["a"], "sst2")], list[Outcome])
    assert_type(await client.put("x", b""), PutReply)
"""


@pytest.mark.slow
def test_callers_are_type_checked(tmp_path: Path, project_dir: Path) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(tmp_path)]
    done = subprocess.run(command, cwd=project_dir, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
