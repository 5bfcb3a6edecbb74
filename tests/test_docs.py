"""The documents tell the truth about the tree, the settings, the routes and the commands."""

import ast
import re
from pathlib import Path

import pytest

PACKAGES = ("adakron", "server", "loadtests")


def summary(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def file_map(root: Path) -> str:
    """What ARCHITECTURE.md has to say below "Files": every module with the first line of its docstring."""
    lines = []
    for package in PACKAGES:
        modules = [path for path in sorted((root / package).rglob("*.py")) if path.read_text(encoding="utf-8").strip()]
        names = [str(path.relative_to(root)) for path in modules]
        lines += [f"* `{name}`: {summary(path)}" for name, path in zip(names, modules, strict=True)]
        lines.append("")
    return "\n".join(lines)


def test_the_file_map_is_the_tree(project_dir):
    text = (project_dir / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert text.partition("## Files\n\n")[2].strip() == file_map(project_dir).strip()


def test_every_setting_is_in_the_readme(project_dir):
    from server.settings import Settings

    readme = (project_dir / "README.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert f"| `ADAKRON_{name.upper()}` | {field.description} |" in readme


def test_every_route_is_in_the_readme_and_no_other(project_dir):
    from server.admin import admin_openapi
    from tests.server.test_app import Bench

    readme = (project_dir / "README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `((?:GET|POST|PUT|DELETE) /\S+)` \|", readme, re.MULTILINE))
    served = {
        f"{method.upper()} {path}"
        for path, methods in (Bench().app.openapi()["paths"] | admin_openapi()["paths"]).items()
        for method in methods
    }
    assert documented == served


@pytest.mark.parametrize("command", ["make serve", "make test", "make load", "make train"])
def test_commands_of_the_readme_exist(project_dir, command):
    makefile = (project_dir / "Makefile").read_text(encoding="utf-8")
    assert f"\n{command.removeprefix('make ')}:" in makefile
    assert command in (project_dir / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"])
def test_nothing_is_left_to_fill_in(project_dir, name):
    text = (project_dir / name).read_text(encoding="utf-8")
    assert "@@" not in text
    assert "TODO" not in text


def test_links_to_files_lead_somewhere(project_dir):
    for document in (
        project_dir / "README.md",
        project_dir / "ARCHITECTURE.md",
        project_dir / "adapters" / "README.md",
        *(project_dir / "docs").glob("*.md"),
    ):
        for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
