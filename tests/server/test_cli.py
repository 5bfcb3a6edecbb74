"""The command line: every setting has a flag, flags win, refusals are one line, the offline verbs are mounted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adakron.errors import ConfigError
from server import cli
from server.cli import main
from server.cli_errors import CommandError, explain
from server.client import AccessError, ConfigurationError, DeadlineError, NotFoundError, UnreachableError
from server.errors import InvalidRequestError, StorageUnavailableError
from server.settings import Settings
from tests.server.fakes import tiny_adapter


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that `serve` was called with; nothing is started."""
    calls: list[Settings] = []

    def serve(settings: Settings) -> int:
        calls.append(settings)
        return 7

    monkeypatch.setattr("server.launch.serve", serve)
    return calls


def test_serve_without_flags_uses_the_defaults_and_returns_the_exit_code(served: list[Settings]) -> None:
    assert main(["serve"]) == 7
    assert served == [Settings()]


EVERY_FLAG: dict[str, Any] = {
    "host": "::1",
    "port": 9000,
    "replicas": 3,
    "backbone": "x/y",
    "device": "cpu",
    "dtype": "float32",
    "state_dir": Path("/tmp/x"),
    "catalogue_url": "postgresql://me@db/x",
    "blob_url": "s3://bucket/prefix",
    "cache_budget_bytes": 1_000_000,
    "batch_budget_tokens": 4096,
    "device_budget_bytes": 10_000,
    "host_budget_bytes": 20_000,
    "pinned": "sst2,acme/x",
    "keep_versions": 3,
    "rate_limit_rows": 600,
    "rate_limit_url": "redis://host:6379/0",
    "tenant_adapters": 10,
    "tenant_bytes": 1_000_000,
    "cors_origins": "https://app.example.org",
    "adapters_dir": Path("/tmp/y"),
    "metrics_adapters": 7,
    "log_level": "DEBUG",
    "log_format": "text",
    "access_log": 0.25,
}


def test_every_setting_has_a_flag(served: list[Settings]) -> None:
    assert EVERY_FLAG.keys() | {"batch_invariant", "plain"} == Settings.model_fields.keys()
    flags = [word for name, value in EVERY_FLAG.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    main(["serve", *flags, "--batch-invariant", "--plain"])
    assert served == [Settings(**EVERY_FLAG, batch_invariant=True, plain=True)]


def test_flag_wins_over_variable(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAKRON_PORT", "9000")
    monkeypatch.setenv("ADAKRON_REPLICAS", "2")
    main(["serve", "--port", "9001"])
    assert (served[0].port, served[0].replicas) == (9001, 2)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--port", "70000"], "ADAKRON_PORT"),
        (["--port", "x"], "ADAKRON_PORT"),
        (["--host", "a b"], "ADAKRON_HOST"),
        (["--cors-origins", "*"], "ADAKRON_CORS_ORIGINS"),
        (["--replicas", "0"], "ADAKRON_REPLICAS"),
    ],
)
def test_wrong_value_is_refused_in_one_line(
    served: list[Settings], capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    assert main(["serve", *flags]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), served) == (1, [])
    assert expected in error


def test_wrong_variable_is_refused_in_one_line(
    served: list[Settings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAKRON_DEVICE", "tpu")
    assert main(["serve"]) == 2
    assert "ADAKRON_DEVICE" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nonsense"], ["serve", "--nonsense"], ["list", "--nonsense"], ["show"]])
def test_what_is_not_understood_is_said_in_one_line_with_a_way_out(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), error.startswith("adakron: ")) == (1, True)
    assert "--help`" in error


def test_a_verb_that_is_nearly_one_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rolback", "x"]) == 2
    assert "Did you mean 'rollback'" in capsys.readouterr().err


def test_nothing_at_all_shows_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "rollback" in capsys.readouterr().err


def test_help_of_serve_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in Settings.model_fields)


VERBS = {
    *(
        "serve",
        "classify",
        "keys",
        "train",
        "train-many",
        "eval",
        "calibrate",
        "inspect",
        "zoo",
        "glue",
        "doctor",
        "bench",
    ),
    *("push", "list", "show", "activate", "rollback", "split", "rm", "export", "sync"),
}


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)
    assert "Exit codes" in text


@pytest.mark.parametrize("verb", sorted(VERBS - {"train", "train-many", "eval", "calibrate", "inspect", "zoo"}))
def test_every_verb_has_help_without_heavy_imports(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(("Usage: adakron ", "usage: adakron "))


def test_help_imports_nothing_that_takes_its_time() -> None:
    heavy = ("torch", "ray", "transformers", "fastapi", "sqlalchemy", "httpx", "rich", "adakron")
    code = (
        "import contextlib, io, sys; from server.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['--help']), main(['classify', '--help'])\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_offline_verbs_run_and_fail_as_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nothing.safetensors")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    tiny_adapter(1).write(tmp_path / "one")
    assert main(["inspect", str(tmp_path / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_labels"] == 2


def test_debug_shows_where_from_and_may_stand_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--debug", "inspect", str(tmp_path)], ["inspect", str(tmp_path), "--debug"]):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert "Traceback" in error
        assert error.splitlines()[-1].startswith("adakron: ")
    assert cli._without_debug(["classify", "--", "--debug"]) == (["classify", "--", "--debug"], False)


def test_a_bug_is_named_and_leaves_no_traceback(
    served: list[Settings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(settings: Settings) -> int:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("server.launch.serve", serve)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "adakron: ZeroDivisionError: planted (this is a bug; --debug shows where)\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CommandError("no", hint="yes", code=2), 2, "no (yes)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "x.csv"), 1, "x.csv: No such file"),
        (ModuleNotFoundError("x", name="sklearn"), 1, 'pip install "adakron[train]"'),
        (ModuleNotFoundError("x", name="ray"), 1, 'pip install "adakron[serve]"'),
        (UnreachableError("nobody"), 4, "nobody"),
        (DeadlineError("late"), 4, "late"),
        (ConfigurationError("bad"), 2, "bad"),
        (NotFoundError(404, "ADAPTER_NOT_FOUND", "no"), 3, "ADAPTER_NOT_FOUND: no"),
        (AccessError(401, "UNAUTHORIZED", "no key"), 1, "no key"),
        (InvalidRequestError("not a name", hint="a name is"), 2, "not a name (a name is)"),
        (StorageUnavailableError("in use"), 1, "in use"),
        (ConfigError("not a number"), 1, "not a number"),
    ],
)
def test_every_kind_of_error_has_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert explain(error) == code
    line = capsys.readouterr().err
    assert (line.startswith("adakron: "), line.count("\n"), said in line) == (True, 1, True)


def test_bench_runs_the_benchmark_with_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr("server.cli_bench.subprocess.run", run)
    assert main(["bench", "http", "--seconds", "3", "--users", "7"]) == 5
    assert main(["bench", "engine", "--help"]) == 5
    assert [command[2:] for command in commands] == [
        ["loadtests.run", "--seconds", "3", "--users", "7"],
        ["loadtests.engine", "--help"],
    ]


def test_bench_without_the_benchmarks_says_where_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("server.cli_bench.find_spec", lambda name: None)
    assert main(["bench", "engine"]) == 1
    assert "checkout" in capsys.readouterr().err
    assert main(["bench", "moon"]) == 2
