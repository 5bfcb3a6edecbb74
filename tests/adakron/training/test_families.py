"""The script of docs/backbones.md trains on every family, and its adapters answer through one Engine API."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from adakron import Adapter, Backbone, Engine, Row
from adakron.training.classifier import reference_logits
from tests.adakron.training.labelled import save_backbone, save_task
from tests.tiny import FAMILIES


@pytest.fixture(scope="module")
def script(project_dir: Path) -> str:
    page = (project_dir / "docs" / "backbones.md").read_text(encoding="utf-8")
    [code] = re.findall(r"<!-- train\.py -->\n```python\n(.*?)```", page, re.DOTALL)
    return code


def test_the_script_has_seven_lines(script: str) -> None:
    assert len(script.splitlines()) == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_script_trains_on_every_family_and_one_engine_serves_what_it_wrote(
    family: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, out = save_backbone(tmp_path / "encoder", family), tmp_path / "run"
    task = save_task(tmp_path / "task", "single", train=32, validation=8)
    monkeypatch.setattr("sys.argv", ["train.py", str(task), str(backbone), str(out)])
    exec(compile(script, "train.py", "exec"), {})
    engine = Engine.load(str(backbone), device="cpu", dtype="float32")
    adapter = Adapter.from_folder(out)
    assert engine.check(adapter).examples == len(adapter.expected) > 0
    engine.add("tickets", adapter)
    texts = [json.loads(line)["text"] for line in (task / "validation.jsonl").read_text().splitlines()]
    answers = engine.classify([Row("tickets", text) for text in texts])
    wanted = reference_logits(Backbone.load(str(backbone)), adapter, texts, batch=1)
    assert {answer.label for answer in answers} <= {"warm", "cold"}
    for answer, logits in zip(answers, wanted, strict=True):
        assert np.abs(answer.logits - logits).max() <= 1e-5 * max(1.0, np.abs(logits).max())
