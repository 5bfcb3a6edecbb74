"""The whole load test, locust in its own process, against a fake server that behaves and one that does not."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests import run
from tests.loadtests.artefact import artefact_bytes
from tests.loadtests.fake_server import FakeServer, serving


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters"
    (folder / "one").mkdir(parents=True)
    (folder / "one" / "adapter_model.safetensors").write_bytes(artefact_bytes(example_logits=(0, 1, 2, 3, 4)))
    return folder


def load(fake: FakeServer, artefacts: Path, tmp_path: Path, seconds: int = 2) -> tuple[int, dict[str, Any], Path]:
    with serving(fake) as url:
        options = ["--url", url, "--seconds", str(seconds), "--users", "6", "--artefacts", str(artefacts)]
        code = run.main([*options, "--results", str(tmp_path / "results")])
    (folder,) = (tmp_path / "results").iterdir()
    return code, json.loads((folder / "summary.json").read_text()), folder


def test_a_good_server_passes_and_every_page_is_written(
    artefacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeServer()
    code, summary, folder = load(fake, artefacts, tmp_path)
    assert code == 0, summary["problems"]
    assert summary["passed"]
    assert summary["conditions"]["server"] == {"server": "fake"}
    assert {"load.png", "locust.html", "locust_stats.csv", "samples.csv", "summary.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert "all classify" in capsys.readouterr().out
    assert fake.active == {}, "what the registrar made is left on the server"


def test_answers_of_another_adapter_fail_the_run_and_are_counted_apart(artefacts: Path, tmp_path: Path) -> None:
    fake = FakeServer()
    fake.swap_every = 23  # more than the probes before the load, of which each asks one row alone
    code, summary, _ = load(fake, artefacts, tmp_path)
    assert code == 1
    assert summary["classify"]["wrong"] > 0
    assert summary["classify"]["failed"] == 0
    assert "wrong adapter" in summary["problems"][0]


def test_a_version_that_lives_on_after_its_replacement_fails_the_run(artefacts: Path, tmp_path: Path) -> None:
    fake = FakeServer()
    fake.is_stale = True
    code, summary, _ = load(fake, artefacts, tmp_path, seconds=5)  # long enough for the registrar to replace some
    assert code == 1
    assert summary["outcome"]["wrong_rows"] > 0


def test_a_server_that_fails_now_and_then_fails_the_run(artefacts: Path, tmp_path: Path) -> None:
    fake = FakeServer()
    fake.fail_every = 50
    code, summary, _ = load(fake, artefacts, tmp_path)
    assert code == 1
    assert "HTTP 503 NOT_READY" in summary["problems"][0]


def test_a_load_test_that_cannot_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with serving(FakeServer()) as url:
        code = run.main(
            [
                "--url",
                url,
                "--seconds",
                "2",
                "--artefacts",
                str(tmp_path / "empty"),
                "--results",
                str(tmp_path / "results"),
            ]
        )
    assert code == 2
    assert "cannot start: FileNotFoundError" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeServer()) as url:
        pass
    assert run.main(["--url", url, "--results", str(tmp_path)]) == 2
    assert "could not run" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://example.org", "https://127.0.0.1", "http://10.0.0.1:8000", "127.0.0.1:8000"])
def test_servers_on_other_machines_are_refused(url: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(["--url", url])


@pytest.mark.parametrize("option", [("--seconds", "0"), ("--seconds", "99999"), ("--users", "1"), ("--users", "x")])
def test_unbounded_options_are_refused(option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(option)
