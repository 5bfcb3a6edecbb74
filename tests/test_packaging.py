"""The environment is pinned completely, and by name and version alone."""

import re
import tomllib
from pathlib import Path

import pytest


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def pins(project_dir: Path) -> dict[str, str]:
    lines = (project_dir / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.partition("==") for line in lines if not line.startswith("#")]
    return {normalised(name): version for name, _, version in pinned}


def test_every_pin_is_a_plain_version(pins: dict[str, str]) -> None:
    assert [name for name, version in pins.items() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)] == []


def test_every_requirement_is_pinned(project_dir: Path, pins: dict[str, str]) -> None:
    project = tomllib.loads((project_dir / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    names = {normalised(re.match(r"[\w.-]+", line)[0]) for line in required}  # type: ignore[index]
    assert names - pins.keys() == {"adakron"}, "only the project itself goes without"
