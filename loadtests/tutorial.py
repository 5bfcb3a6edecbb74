"""A tutorial as what it asks its reader to do: commands with the output they should have, files, and programs.

    ```console          lines with `$ ` are commands; those after one are its output, where `...` stands for anything
    ```csv some/file    a file to save
    ```python           a program
    ```python shown     of any kind: to be read, as what one has elsewhere, or what needs another machine; never run

Sections begin with `## `. Knows text; runs nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"^```(?P<kind>\w+) ?(?P<path>\S*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = "shown"
_SECTION = re.compile(r"^## (.+)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Command:
    """A line for the shell, and the output it should have; None where the tutorial shows none."""

    line: str
    output: str | None

    def fits(self, printed: str) -> bool:
        """Whether what was printed is what the tutorial shows."""
        if self.output is None:
            return True
        pattern = ".*".join(re.escape(part) for part in self.output.strip().split("..."))
        return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


@dataclass(frozen=True, slots=True)
class File:
    """A file to save, by its path from where the commands run."""

    path: str
    content: str


@dataclass(frozen=True, slots=True)
class Program:
    """Python to run."""

    source: str


Step = Command | File | Program


@dataclass(frozen=True, slots=True)
class Section:
    """What one heading has its reader do."""

    title: str
    steps: tuple[Step, ...]


def sections_of(text: str) -> list[Section]:
    """Those that ask for something, in order. Raises ValueError for a block that says not what it is."""
    _, *parts = _SECTION.split(text)
    found = [Section(title, tuple(_steps(body))) for title, body in zip(parts[::2], parts[1::2], strict=True)]
    return [section for section in found if section.steps]


def _steps(text: str) -> Iterator[Step]:
    for block in _FENCE.finditer(text):
        kind, path, body = block["kind"], block["path"], block["body"]
        if path == SHOWN:
            continue
        if kind == "console":
            yield from _commands(body)
        elif kind == "python":
            yield Program(body)
        elif path:
            yield File(path, body)
        else:
            raise ValueError(f"a block of {kind} says not where it goes")


def _commands(block: str) -> Iterator[Command]:
    before, *commands = re.split(r"^\$ ", block, flags=re.MULTILINE)
    if before.strip():
        raise ValueError(f"output before any command: {before.splitlines()[0]}")
    for command in commands:
        line, _, output = command.partition("\n")
        yield Command(line, output if output.strip() else None)
