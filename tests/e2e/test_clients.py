"""Other servers' clients, unmodified, against the one running server: operation by operation.

What they found lies in runs/clients.json afterwards; `python -m tests.clients_page` makes docs/clients.md of it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import clients_page
from tests.e2e.clients.environments import commands
from tests.e2e.cluster import Server, Signature

RUN_WITHIN_S = 120
LABELS = ("ham", "spam")


@pytest.fixture(scope="module")
def findings() -> Iterator[list[dict[str, Any]]]:
    """What each client found, written down at the end."""
    found: list[dict[str, Any]] = []
    yield found
    clients_page.FOUND.parent.mkdir(exist_ok=True)
    clients_page.FOUND.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("client", commands())
def test_client_works_unmodified(
    client: str,
    server: Server,
    make: Callable[..., Signature],
    findings: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    # Two versions that give different labels, and a third artefact: which one answered is never in doubt.
    mark = 2 * list(commands()).index(client) + 2
    versions = {1: make(mark, labels=LABELS), 2: make(mark + 1, labels=LABELS)}
    name = f"clients/{client.replace('_', '-')}"
    for signature in versions.values():
        assert server.put(name, signature.adapter).status_code == 201
    artefact = tmp_path / "adapter_model.safetensors"
    artefact.write_bytes(versions[2].adapter.to_bytes())
    facts = {
        "url": server.url,
        "key": "no-keys-here",
        "adapter": name,
        "labels": LABELS,
        "versions": {number: {"label": s.label, "score": s.score} for number, s in versions.items()},
        "artefact": str(artefact),
    }
    # Nothing of ours in its environment: it runs as it would elsewhere.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        commands()[client](json.dumps(facts)),
        capture_output=True,
        text=True,
        timeout=RUN_WITHIN_S,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    failed = [operation for operation in found["operations"] if not operation["passed"]]
    assert not failed, "\n".join(f"{operation['operation']}\n{operation['error']}" for operation in failed)
    findings.append(found)
    assert clients_page.operations_of(found) == clients_page.documented(found["client"]), (
        "docs/clients.json is of other operations: python -m tests.clients_page"
    )


def test_examples_of_the_readme_run(
    server: Server, make: Callable[..., Signature], project_dir: Path, tmp_path: Path
) -> None:
    assert server.put("readme", make(1).adapter).status_code in (200, 201)
    section = (project_dir / "README.md").read_text(encoding="utf-8").partition("## Use the client you have")[2]
    blocks = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        script = block.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").replace("sst2", "readme")
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=RUN_WITHIN_S,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"},
        )
        assert done.returncode == 0, done.stderr
        assert make(1).label in done.stdout
