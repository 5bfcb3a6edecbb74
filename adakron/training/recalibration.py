"""An artefact that is finished, calibrated: a new artefact, since its bytes and so its sha256 are others.

Knows folders; the arithmetic is in `adakron.training.calibration`.
"""

import json
import shutil
from pathlib import Path

from adakron.artefact import Adapter
from adakron.training.calibration import Measured, calibrate
from adakron.training.card import write_card
from adakron.training.inference import engine_for
from adakron.training.records import (
    RESULTS_FILE,
    SETTINGS_FILE,
    calibration_record,
    read_results,
    write_records,
)
from adakron.training.task_file import TASK_FILE, load_data


def recalibrate(
    folder: Path, out: Path, source: str, backbone: str | None = None, abstain_below: float | None = None
) -> tuple[Adapter, Measured]:
    """Fit the temperature of the adapter in `folder` on the validation rows of `source`, and write it to `out`.

    Settings, results and card are brought up to date where the folder has them. Raises what
    `adakron.training.calibration.calibrate` does, FormatError, DataError, BackboneError, OSError.
    """
    adapter = Adapter.from_folder(folder)
    config = adapter.config
    data = load_data(source, problem_type=config.problem_type)
    engine = engine_for(config, backbone, "auto", "float32")
    calibrated, found = calibrate(adapter, data, engine, abstain_below=abstain_below)
    calibrated.write(out)
    if (folder / SETTINGS_FILE).is_file() and (folder / RESULTS_FILE).is_file():
        written = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        written["recipe"]["abstain_below"] = calibrated.config.calibration.threshold
        results = read_results(folder)
        results["adapter"]["sha256"] = calibrated.sha256
        results["calibration"] = calibration_record(found)
        write_records(out, written, results)
        if (folder / TASK_FILE).is_file() and not (out / TASK_FILE).exists():
            shutil.copyfile(folder / TASK_FILE, out / TASK_FILE)
        write_card(out)
    return calibrated, found
