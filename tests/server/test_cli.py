"""The command line: every setting has a flag, flags win, refusals are one line, the offline verbs are mounted."""

from pathlib import Path
from typing import Any

import pytest

from server.cli import main
from server.settings import Settings


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
    "log_level": "DEBUG",
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


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["serve", "--nonsense"]])
def test_what_is_not_understood_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in Settings.model_fields)


def test_offline_verbs_are_mounted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    verbs = capsys.readouterr().out
    assert "serve" in verbs
    assert "inspect" in verbs
