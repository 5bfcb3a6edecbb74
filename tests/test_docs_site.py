"""The site of the documentation is built without a warning, holds every page, and asks nobody else for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")

BUILT_WITHIN_S = 240


class Asked(HTMLParser):
    """What a browser fetches by itself when it opens a page: styles, scripts, pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if "src" in given:
            self.addresses.append(given["src"])
        if tag == "link" and given.get("rel") not in ("author", "next", "prev", "index", "search", "canonical"):
            self.addresses.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, project_dir: Path) -> Path:
    """Built as `make docs` does it: warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs", "."]
    assert " ".join(command[3:]) in (project_dir / "Makefile").read_text(encoding="utf-8")
    done = subprocess.run(
        [*command, str(folder)],
        cwd=project_dir,
        capture_output=True,
        text=True,
        timeout=BUILT_WITHIN_S,
        check=False,
        env=os.environ | {"PYTHONPATH": str(project_dir)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site_and_in_its_navigation(site: Path, project_dir: Path) -> None:
    index = (site / "docs" / "index.html").read_text(encoding="utf-8")
    for page in sorted((project_dir / "docs").glob("*.md")):
        assert (site / "docs" / page.with_suffix(".html").name).exists()
        assert page.stem == "index" or f'href="{page.stem}.html"' in index, page.name
    for part in ("Tutorials", "How to", "Reference", "Explanation"):
        assert f'<span class="caption-text">{part}</span>' in index
    assert 'url=docs/index.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        asked = Asked(page.read_text(encoding="utf-8")).addresses
        assert asked or page == site / "index.html"
        assert [address for address in asked if re.match(r"(?:https?:)?//", address)] == [], page
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", text), style


def test_docstrings_keep_their_shape(site: Path) -> None:
    engine = (site / "docs" / "python-api.html").read_text(encoding="utf-8")
    assert "<pre>" in engine.partition("adakron.Engine")[2]
    tree = (site / "docs" / "client-api.html").read_text(encoding="utf-8")
    assert "├── ConfigurationError" in tree
