"""How fast the engine is, against the bare backbone and against what people use today: `make bench`.

    python -m loadtests.engine --quick                                  less than a minute on two cores
    python -m loadtests.engine --dtype bfloat16 float32                 everything on this machine, the CPU column
    python -m loadtests.engine --device cuda --backbone random:bert-base random:minilm

Prints a table a contest and writes engine-<device>.json and pictures; the last line lists every target as met, short
or not measured. Needs torch, transformers, safetensors and numpy (triton on CUDA); peft, ray and matplotlib only for
what is skipped, with a line, where they are missing. Texts come from ADAKRON_DATA_DIR where it is set.

Reading order: engine_plan.py says which contests are held; engine_contest.py how they are timed; engine_systems.py,
engine_rivals.py and engine_ray.py who takes part; engine_trace.py on which rows; engine_targets.py what is asked for.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.engine_outcome import PARTS

if TYPE_CHECKING:
    from adakron import Backbone
    from loadtests.engine_outcome import Case
    from loadtests.engine_trace import Trace

RESULTS = Path(__file__).resolve().parent / "results"
FIRST_PLAIN_TOKEN = 1000  # BERT's vocabulary has special and unused tokens below it
QUIET_LOAD = 0.5  # processes that run already, a core


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once. Returns the exit code: 0, whatever the figures; 2 if it could not run."""
    started_s = time.perf_counter()
    options = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of peft and transformers about each other
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    import torch

    from adakron import Backbone
    from adakron.errors import AdaKronError
    from adakron.precision import choose_dtype
    from loadtests import engine_machine, engine_report
    from loadtests.engine_plan import FULL, QUICK, Bench
    from loadtests.engine_targets import targets_line

    device = torch.device(_device(options.device))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("--device cuda: no CUDA device here", file=sys.stderr)
        return 2
    kept = engine_machine.keep_freed_memory()
    conditions = {**engine_machine.describe(device), "keeps_freed_memory": kept, "quick": options.quick}
    conditions["at"] = datetime.now(UTC).isoformat(timespec="seconds")
    print(", ".join(f"{key} {value}" for key, value in conditions.items()), flush=True)
    if device.type == "cpu" and conditions["load_average"] > QUIET_LOAD * (os.cpu_count() or 1):
        print("note: this machine is busy with something else; read the figures as rough")
    cases: list[Case] = []
    for name in options.backbone:
        try:
            backbone = Backbone.load(name)
            trace = _trace(name, backbone)
        except (AdaKronError, ValueError) as error:
            print(f"the benchmark could not run: {error}", file=sys.stderr)
            return 2
        for wanted in options.dtype:
            dtype = choose_dtype(wanted, device)
            print(f"== {name}, {str(dtype).removeprefix('torch.')}, rows: {trace.source}", flush=True)
            scale = (QUICK if options.quick else FULL).only(options.parts)
            if options.rivals is not None:
                scale = replace(scale, rivals=scale.rivals.intersection(options.rivals))
            if options.seconds is not None:
                scale = replace(scale, contest_s=options.seconds)
            bench = Bench(backbone, dtype, device, trace, scale, source=name, started_s=started_s, say=_say)
            cases.append(bench.run())
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"engine-{device.type}.json"
    engine_report.write_document(path, cases, conditions)
    print(f"report: {path}")
    for case in cases:
        _draw(case, options.results)
    print(targets_line(cases), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.engine", description="Measure the engine against the bare backbone and its rivals."
    )
    parser.add_argument("--quick", action="store_true", help="B0, B1, B5 and the floor alone, in less than a minute")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help=f"these alone: {', '.join(PARTS)} (default: all; ray is B4)",
    )
    parser.add_argument(
        "--backbone",
        nargs="+",
        default=["default"],
        metavar="NAME",
        help="hub ids, folders, random:minilm, random:bert-base, random:roberta-large (default: the default backbone)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", nargs="+", choices=("auto", "float32", "bfloat16"), default=["auto"])
    parser.add_argument(
        "--rivals", nargs="*", choices=("B1", "B2", "B3", "B4", "B5"), help="these alone (default: all that can run)"
    )
    parser.add_argument(
        "--seconds", type=float, help="seconds a contest takes at least (12, with --quick 2.4; less is enough on a GPU)"
    )
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the report is written")
    return parser


def _device(wanted: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def _trace(name: str, backbone: "Backbone") -> "Trace":
    """Real texts for a real backbone, where there are some; else tokens of the same lengths.

    Raises ValueError if ADAKRON_DATA_DIR does not hold the texts.
    """
    from adakron.random_backbone import PREFIX
    from loadtests.engine_trace import MAX_TOKENS, generated_trace, real_trace

    max_tokens = min(MAX_TOKENS, backbone.max_length)
    folder = os.environ.get("ADAKRON_DATA_DIR")
    if folder and not name.startswith(PREFIX):
        return real_trace(Path(folder), backbone.tokenizer, max_tokens)
    vocabulary = backbone.tokenizer.get_vocab_size()
    return generated_trace(range(min(FIRST_PLAIN_TOKEN, vocabulary // 2), vocabulary), max_tokens)


def _say(news: object) -> None:
    from loadtests.engine_outcome import Outcome
    from loadtests.engine_report import table

    print(table(news) if isinstance(news, Outcome) else f"note: {news}", flush=True)


def _draw(case: "Case", folder: Path) -> None:
    from loadtests.engine_report import plot

    picture = folder / f"engine-{case.device}-{_file_name(case.backbone)}-{case.dtype}.png"
    try:
        plot(case, picture)
    except ImportError:
        print("note: no picture, matplotlib is not installed")
    else:
        print(f"picture: {picture}")


def _file_name(backbone: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in backbone.rpartition("/")[2])


if __name__ == "__main__":
    sys.exit(main())
