"""What `import adakron` offers is what its `__all__` says."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import adakron


def test_all_is_sorted_and_without_repetition() -> None:
    assert adakron.__all__ == sorted(set(adakron.__all__))


def test_all_equals_what_is_there() -> None:
    for name in adakron.__all__:
        getattr(adakron, name)
    helpers = {"import_module", "TYPE_CHECKING", "Any"}
    public = {
        name for name, value in vars(adakron).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public - helpers == set(adakron.__all__)
    assert set(adakron.__all__) <= set(dir(adakron))


def test_types_and_values_come_from_the_same_modules(project_dir: Path) -> None:
    """What a type checker reads are imports; what runs is a table."""
    tree = ast.parse((project_dir / "adakron" / "__init__.py").read_text(encoding="utf-8"))
    for_types = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adakron.")
        for alias in node.names
    }
    assert for_types == {name: f"adakron.{module}" for name, module in adakron._MODULES.items()}
    assert sorted(for_types) == adakron.__all__


def test_no_module_has_the_name_of_what_it_offers(project_dir: Path) -> None:
    """Importing a module sets its name in the package, in place of what was there."""
    modules = {path.stem for path in (project_dir / "adakron").iterdir()}
    assert not modules & set(adakron.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'adakron' has no attribute 'Model'"):
        adakron.Model  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "program",
    [
        "import adakron",
        "from adakron import cli; cli.add_inspect(argparse.ArgumentParser().add_subparsers())",
        "from server import cli; cli.main(['list', '--url', 'http://127.0.0.1:9'])",
    ],
)
def test_package_and_command_line_load_no_tensor_library(program: str) -> None:
    program = f"import argparse, sys; {program}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_reading_an_artefact_needs_no_transformers() -> None:
    program = "import sys; from adakron import Adapter, AdapterConfig; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


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
