"""How Sphinx makes a site of the Markdown of this project: `make docs`.

The sources are the files where they lie, with the links between them that a forge follows too: the folder that Sphinx
reads is the project's. Nothing is fetched, neither for building nor for reading.
"""

import re
import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

project = "AdaKron server"
copyright = "the authors of AdaKron server, Apache-2.0"
root_doc = "docs/index"
include_patterns = ["docs/*.md", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "adapters/*.md", "adapters/*/*.md"]
exclude_patterns = [".*", "build", "runs", "data", "tests", "server", "adakron", "loadtests", "dist"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]

# Shell commands that go on over a line are more than the lexer of `console` knows; it shows them all the same.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = "AdaKron server"
html_extra_path = ["site"]  # index.html above docs/, for whoever opens the folder
html_static_path = ["static"]
html_css_files = ["narrow.css"]
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3
copybutton_prompt_text = "$ "  # and of a block with prompts only the lines that have one are copied

highlight_language = "text"  # of blocks that do not say
default_role = "code"  # a word in single backticks is code, as in Markdown
autodoc_typehints = "none"  # the signature has them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

# Of docstrings: a paragraph with columns, an indented one, or a drawn tree keeps its shape.
_SHAPED = re.compile(r"^\s|\S {2,}\S|[├└│]", re.MULTILINE)
_MARKUP = re.compile(r"(?<!\\)([*|_])")


def _as_written(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Docstrings here are plain text for `help()`: prose becomes prose, whatever is laid out stays as it is."""
    written: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        if _SHAPED.search(paragraph):
            written += ["::", "", *(f"    {line}" for line in paragraph.splitlines()), ""]
        else:
            code = re.split(r"(`[^`]*`)", paragraph)
            escaped = [part if part.startswith("`") else _MARKUP.sub(r"\\\1", part) for part in code]
            written += ["".join(escaped), ""]
    lines[:] = "\n".join(written).splitlines()


def _leave_cards_out_of_the_tree(app: Sphinx, doctree: object) -> None:
    """The card of an adapter is found from the list of them, and from nowhere else."""
    if re.fullmatch(r"adapters/\w+/README", app.env.docname):
        app.env.metadata[app.env.docname]["orphan"] = ""


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", _leave_cards_out_of_the_tree)
    app.connect("autodoc-process-docstring", _as_written)
    for name in ("csv", "jsonl"):
        app.add_lexer(name, TextLexer)
