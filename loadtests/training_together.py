"""Adapters trained side by side against one process each: `python -m loadtests.training_together --data DIR`.

Both ways train the same tasks by the same settings, in turns, as a user would: whole processes of the command line.
Rows are bounded copies of a folder of labelled text that stays outside the project.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

SEPARATE, TOGETHER = "one process each", "side by side"
TASKS = ("sst2", "cola", "rte", "stsb", "mrpc", "tweeteval_emotion", "banking77", "snips", "sick", "sst5")
_SEED = 13


@dataclass(frozen=True, slots=True)
class Run:
    """One way, once. peak_mib: the resident set of the largest process; score: mean over tasks of each one's metric.

    start_s and start_cpu_s are what processes of this way take before they train: what a dry run of one task takes,
    once for each process.
    """

    system: str
    first_layer: int
    wall_s: float
    cpu_s: float
    start_s: float
    start_cpu_s: float
    peak_mib: float
    score: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What one process took."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def spend(arguments: Sequence[str]) -> Spent:
    """Run `python -m adakron ...` to its end. Raises RuntimeError with its last words where it fails."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "adakron", *arguments], stdout=said, stderr=said, stdin=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)  # its own peak: getrusage knows only the largest of all children
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise RuntimeError(f"adakron {arguments[0]} failed: {said.read().decode(errors='replace')[-500:]}")
    return Spent(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def copy_task(source: Path, target: Path, train: int, validation: int) -> None:
    """So many rows of each split, chosen by seed; the labels stay those of the whole task."""
    target.mkdir(parents=True)
    (target / "meta.json").write_bytes((source / "meta.json").read_bytes())
    for split, count in (("train", train), ("validation", validation)):
        lines = gzip.decompress((source / f"{split}.jsonl.gz").read_bytes()).decode().splitlines()
        chosen = random.Random(_SEED).sample(lines, min(count, len(lines)))
        (target / f"{split}.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")


def measure(system: str, first_layer: int, data: Path, flags: Sequence[str], out: Path) -> Run:
    """Train every task below `data` into `out`, one way."""
    tasks = sorted(path.name for path in data.iterdir())
    settings = [*flags, "--first-layer", str(first_layer)]
    start = spend(["train", "--data", str(data / tasks[0]), "--dry-run", *settings])
    if system == TOGETHER:
        spent = [spend(["train-many", "--data", str(data), "--out", str(out), *settings])]
    else:
        spent = [spend(["train", "--data", str(data / task), "--out", str(out / task), *settings]) for task in tasks]
    return Run(
        system,
        first_layer,
        wall_s=sum(one.wall_s for one in spent),
        cpu_s=sum(one.cpu_s for one in spent),
        start_s=start.wall_s * len(spent),
        start_cpu_s=start.cpu_s * len(spent),
        peak_mib=max(one.peak_mib for one in spent),
        score=sum(_score(out / task) for task in tasks) / len(tasks),
    )


def _score(folder: Path) -> float:
    found = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
    return float(found["adapter"]["scores"][found["metric"]])


def summary(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Medians over rounds, for each first layer and way."""
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.first_layer, run.system), []).append(run)
    found = []
    for (first_layer, system), rounds in sorted(groups.items()):
        line: dict[str, Any] = {"first_layer": first_layer, "system": system, "rounds": len(rounds)}
        for key in ("wall_s", "cpu_s", "start_s", "start_cpu_s", "peak_mib", "score"):
            line[key] = median(getattr(run, key) for run in rounds)
        line["training_s"] = median(run.wall_s - run.start_s for run in rounds)
        line["training_cpu_s"] = median(run.cpu_s - run.start_cpu_s for run in rounds)
        found.append(line)
    return found


def table(lines: Iterable[dict[str, Any]]) -> str:
    """A Markdown table of a summary."""
    text = [
        "| first layer | way | rounds | wall s | CPU s | without start: wall s | CPU s | peak MiB | mean score |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    text += [
        f"| {line['first_layer']} | {line['system']} | {line['rounds']} | {line['wall_s']:.0f} | {line['cpu_s']:.0f} | "
        f"{line['training_s']:.0f} | {line['training_cpu_s']:.0f} | {line['peak_mib']:.0f} | {line['score']:.4f} |"
        for line in lines
    ]
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write RESULTS/training-together.json, anew after each run."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.training_together", description=__doc__)
    parser.add_argument("--data", default=os.environ.get("ADAKRON_DATA_DIR"), help="labelled text ($ADAKRON_DATA_DIR)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="folders of it, with commas")
    parser.add_argument("--rows", type=int, default=512, help="training rows a task")
    parser.add_argument("--validation-rows", type=int, default=256)
    parser.add_argument("--first-layers", default="0,3")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder to write to")
    parser.add_argument("flags", nargs="*", help="settings of training, behind --")
    parsed = parser.parse_args(arguments)
    if not parsed.data:
        parser.error("name a folder of labelled text: --data, or ADAKRON_DATA_DIR")
    parsed.results.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        for task in parsed.tasks.split(","):
            copy_task(Path(parsed.data) / task, data / task, parsed.rows, parsed.validation_rows)
        for turn in range(parsed.rounds):
            for first_layer in map(int, parsed.first_layers.split(",")):
                for system in (SEPARATE, TOGETHER):
                    out = Path(scratch) / f"{turn}-{first_layer}-{system}"
                    runs.append(measure(system, first_layer, data, parsed.flags, out))
                    print(runs[-1], flush=True)
                    _write(parsed, runs)
    print(table(summary(runs)))
    return 0


def _write(parsed: argparse.Namespace, runs: Sequence[Run]) -> None:
    content = {
        "tasks": parsed.tasks.split(","),
        "rows": parsed.rows,
        "validation_rows": parsed.validation_rows,
        "flags": parsed.flags,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "summary": summary(runs),
        "runs": [asdict(run) for run in runs],
    }
    path = parsed.results / "training-together.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
