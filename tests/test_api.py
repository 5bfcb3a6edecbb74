"""What `import adakron` offers is what its `__all__` says."""

import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import adakron


def test_all_is_sorted_and_without_repetition() -> None:
    assert adakron.__all__ == sorted(set(adakron.__all__))


def test_all_equals_what_is_there() -> None:
    public = {
        name for name, value in vars(adakron).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(adakron.__all__)


@pytest.mark.parametrize("name", adakron.__all__)
def test_public_name_has_a_docstring_of_its_own(name: str) -> None:
    documentation = getattr(adakron, name).__doc__
    assert documentation
    assert not documentation.startswith(f"{name}("), "that is the signature which dataclasses write by themselves"


@pytest.mark.parametrize("name", adakron.__all__)
def test_public_name_is_written_in_this_package(name: str) -> None:
    assert getattr(adakron, name).__module__.startswith("adakron.")


def test_version_is_the_one_of_the_distribution_and_of_new_artefacts(project_dir: Path) -> None:
    written = tomllib.loads((project_dir / "pyproject.toml").read_text())["project"]["version"]
    assert adakron.__version__ == written
    assert adakron.AdapterConfig.__dataclass_fields__["adakron_version"].default == written
