"""The tutorial is what its readers can do; and whoever walks through it notices what it cannot."""

import json
import os
import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest

from loadtests import newcomer
from loadtests.newcomer import TUTORIAL, Newcomer, StepFailedError, Timed, table, walk
from loadtests.tutorial import Command, File, Program, sections_of

SMALL = """# Title

## First

Words.

```console
$ echo hello
hello
$ test -f data/x.csv
```

## Nothing to do

## Second

```csv data/x.csv
a,b
```

```python
open("made", "w").close()
```
"""


def test_a_tutorial_is_read_as_what_it_asks_for() -> None:
    first, second = sections_of(SMALL)
    assert (first.title, first.steps) == (
        "First",
        (Command("echo hello", "hello\n"), Command("test -f data/x.csv", None)),
    )
    assert second.steps == (File("data/x.csv", "a,b\n"), Program('open("made", "w").close()\n'))


@pytest.mark.parametrize("block", ["```console\nno command\n```\n", "```json\n{}\n```\n"])
def test_a_block_that_nobody_can_do_is_refused(block: str) -> None:
    with pytest.raises(ValueError, match=r"before any command|says not where"):
        sections_of(f"## x\n{block}")


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        (None, "anything", True),
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("a 0.9... b\n", "a 0.9721 b\n", True),
        ("a 0.9... b\n", "a 0.8 b\n", False),
        ("...\nlast (...\n", "one\ntwo\nlast (3)\n", True),
        ("(x)\n", "x\n", False),
    ],
)
def test_output_is_held_to_what_is_shown(shown: str | None, printed: str, fits: bool) -> None:
    assert Command("x", shown).fits(printed) is fits


@pytest.fixture
def reader(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path, os.environ, tmp_path / "server.log", ExitStack())


def test_steps_are_done_and_timed(reader: Newcomer, tmp_path: Path) -> None:
    sections = sections_of(SMALL)[::-1]
    timed = walk(sections, reader)
    assert [t.section for t in timed] == ["Second", "First"]
    assert (tmp_path / "made").exists()
    assert "| First | 0 s | 2 s |" in table([Timed("First", 0.3, 1.6)])


@pytest.mark.parametrize("step", [Command("echo b", "a"), Command("false", None), Program("1/0")])
def test_a_step_that_fails_is_noticed(reader: Newcomer, step: Command | Program) -> None:
    with pytest.raises(StepFailedError):
        reader.do(step)


def test_what_a_command_exports_later_ones_have(reader: Newcomer) -> None:
    reader.do(Command("export FRUIT=$(printf 'a\\npear')", None))
    reader.do(Command('unexported=1; echo "$FRUIT"', "a\npear"))
    reader.do(Command('echo "[$unexported]"', "[]"))
    reader.do(Program('import os; assert os.environ["FRUIT"] == "a\\npear"'))
    with pytest.raises(StepFailedError, match="exit code 3"):
        reader.do(Command("exit 3", None))


def test_what_is_only_shown_is_not_done() -> None:
    blocks = "".join(f"```{kind} shown\nrm -rf x\n```\n" for kind in ("console", "python", "ini"))
    assert sections_of(f"## x\n{blocks}") == []


def test_a_server_that_does_not_start_is_noticed_and_one_that_does_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "adakron"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with ExitStack() as opened:
        reader = Newcomer(tmp_path, environment, tmp_path / "log", opened)
        program.write_text("#!/bin/sh\necho no; exit 2\n")
        program.chmod(0o755)
        with pytest.raises(StepFailedError, match="no"):
            reader.do(Command("adakron serve", None))
        program.write_text("#!/bin/sh\necho $$ > pid; printf 'Listening\\nStop: x\\n'; exec sleep 60\n")
        reader.do(Command("adakron serve", None))
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_busy_ports_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(newcomer, "_is_busy", lambda port: port == 8404)
    assert newcomer.main([]) == 2
    assert "8404" in capsys.readouterr().err


# ---- the tutorial itself -------------------------------------------------------------------------------------------

SECTIONS = sections_of(TUTORIAL.read_text(encoding="utf-8"))
LINES = [step.line for section in SECTIONS for step in section.steps if isinstance(step, Command)]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("adakron ")])
def test_every_command_of_the_tutorial_is_understood(line: str) -> None:
    import typer.main

    from adakron.cli import main as offline
    from server import cli

    verb, *words = shlex.split(line)[1:]
    if verb in cli._ARGPARSE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("adakron.cli._train", lambda parsed: 0)
            assert verb == "serve" or offline([verb, *words]) == 0
        return
    group = typer.main.get_command(cli._app())
    command = group.get_command(None, verb)  # type: ignore[attr-defined, arg-type]
    assert command.make_context(verb, words).params


@pytest.mark.parametrize(
    "page", ["train-your-own", "operate", *(f"migrate-from-{x}" for x in ("lorax", "vllm", "tei", "triton"))]
)
def test_the_other_pages_say_of_each_block_what_it_is(project_dir: Path, page: str) -> None:
    """They are run in tests/e2e."""
    steps = [
        step for section in sections_of((project_dir / "docs" / f"{page}.md").read_text()) for step in section.steps
    ]
    assert len(steps) >= 3
    for step in steps:
        if isinstance(step, Program):
            compile(step.source, page, "exec")


def test_every_program_of_the_tutorial_compiles() -> None:
    programs = [step for section in SECTIONS for step in section.steps if isinstance(step, Program)]
    assert programs
    for program in programs:
        compile(program.source, "tutorial", "exec")


def test_the_times_are_those_of_a_run_and_name_every_section(project_dir: Path) -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    measured = json.loads((project_dir / "docs" / "first-ten-minutes.json").read_text())
    timed = [Timed(**section) for section in measured["sections"]]
    assert [t.section for t in timed] == [section.title for section in SECTIONS]
    assert table(timed) in text
    found = re.search(r"<!-- times -->(.*?)<!-- /times -->", text, re.DOTALL)
    assert found
    assert measured["at"][:10] in found[1]
