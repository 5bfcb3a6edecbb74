"""The command as a whole, on a tiny random backbone."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adakron import Backbone
from loadtests import engine, engine_machine, engine_plan
from loadtests.engine_outcome import B0, B1, B5, BASE, ENGINE, FLOOR, ONE, PARTS, UNIFORM, ZIPF
from loadtests.engine_plan import FULL, Bench, Scale
from loadtests.engine_trace import generated_trace
from tests.tiny import tiny_backbone

SMALL = Scale(
    adapters=12,
    tokens=(64,),
    distinct=(2,),
    rivals=frozenset({"B1", "B5"}),
    contest_s=0.05,
    min_rounds=2,
    bottlenecks=(8,),
    registered=(20,),
    fan_out=True,
    exact_texts=8,
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick scale is a tiny one, peft is not installed, and this process keeps its allocator as it is."""
    monkeypatch.setattr(Backbone, "load", lambda name: tiny_backbone())
    monkeypatch.setattr(engine_plan, "QUICK", SMALL)
    monkeypatch.setattr(engine_machine, "keep_freed_memory", lambda: False)
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delenv("ADAKRON_DATA_DIR", raising=False)


@pytest.mark.usefixtures("small")
def test_a_run_prints_tables_writes_its_report_and_ends_with_the_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--device", "cpu", "--dtype", "float32", "--results", str(tmp_path)]
    assert engine.main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("targets: 1,000 adapters vs B0: not measured; ")
    assert f"note: {B1}: skipped, peft is not installed" in printed
    (case,) = json.loads((tmp_path / "engine-cpu.json").read_text(encoding="utf-8"))["cases"]
    systems: dict[str, list[str]] = {}
    for point in case["points"]:
        systems.setdefault(point["contest"], []).append(point["system"])
    assert systems == {
        "64 tokens": [FLOOR, B0, UNIFORM, ZIPF, ONE, BASE, B5],
        "2 distinct": [FLOOR, B0, ENGINE, ONE, B5],
        "r = 8": [B0, ENGINE],
        "20 registered": ["engine, 10 registered", ENGINE],
        "fan-out to 8": ["engine, 8 texts", "engine, 1 text"],
    }
    assert case["exactness"]["texts"] == 8
    assert (tmp_path / "engine-cpu-tiny-bert-float32.png").exists()


@pytest.mark.usefixtures("small")
def test_two_dtypes_are_two_cases_of_one_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    least = Scale(adapters=3, tokens=(8,), distinct=(), rivals=frozenset(), contest_s=0.01, min_rounds=1)
    monkeypatch.setattr(engine_plan, "QUICK", least)
    engine.main(["--quick", "--device", "cpu", "--dtype", "float32", "bfloat16", "--results", str(tmp_path)])
    cases = json.loads((tmp_path / "engine-cpu.json").read_text(encoding="utf-8"))["cases"]
    assert [case["dtype"] for case in cases] == ["float32", "bfloat16"]
    assert "not measured [tiny-bert float32], not measured [tiny-bert bfloat16]" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_run_out_of_time_stops_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_plan, "QUICK", replace(SMALL, total_s=0.0))
    assert engine.main(["--quick", "--device", "cpu", "--dtype", "float32", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "note: the time was over in 64 tokens" in printed
    assert "met" not in printed.splitlines()[-1].split()


@pytest.mark.usefixtures("small")
def test_parts_are_measured_by_themselves(tmp_path: Path) -> None:
    arguments = ["--quick", "--device", "cpu", "--dtype", "float32", "--results", str(tmp_path)]
    assert engine.main([*arguments, "--parts", "bottlenecks", "exact_texts"]) == 0
    (case,) = json.loads((tmp_path / "engine-cpu.json").read_text(encoding="utf-8"))["cases"]
    assert {point["contest"] for point in case["points"]} == {"r = 8"}
    assert case["exactness"]["texts"] == 8


def test_all_parts_are_the_whole_scale() -> None:
    assert FULL.only(PARTS) == FULL
    assert "B4" in FULL.only(["ray"]).rivals
    assert FULL.only(["tokens"]).rivals == FULL.rivals - {"B4"}


def test_an_unknown_backbone_cannot_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert engine.main(["--backbone", "random:gpt", "--results", str(tmp_path)]) == 2
    assert "gpt" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = "import sys, loadtests.engine; loadtests.engine._parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_adapters_that_do_not_fit_are_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_plan, "available_bytes", lambda device: 1000)
    said: list[object] = []
    backbone = tiny_backbone()
    bench = Bench(
        backbone,
        torch.float32,
        torch.device("cpu"),
        generated_trace(range(4, 60), max_tokens=backbone.max_length),
        SMALL,
        source="tiny",
        started_s=time.perf_counter(),
        say=said.append,
    )
    assert (bench._affordable(10_000), bench._affordable(256)) == (256, 256)
    assert said == bench.case.notes
    assert "10000 adapters would take" in bench.case.notes[0]
