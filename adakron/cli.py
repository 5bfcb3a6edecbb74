"""The verbs that need no server: train, train-many, eval, calibrate, inspect, zoo, import, to-peft, glue.

Exit codes: 0 done, 1 refused or failed (one line on stderr, with a hint where there is one), 2 wrong usage,
130 interrupted. Heavy modules are imported by the verb that needs them.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from adakron.cli_glue import add_glue
from adakron.cli_many import add_train_many
from adakron.errors import AdaKronError, ConfigError, DataError

if TYPE_CHECKING:
    from adakron.text import TextOrPair
    from adakron.training.recipe import Recipe
    from adakron.training.records import About

Verb = Callable[[argparse.Namespace], int]
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_TRAINING_EXTRA = {"datasets", "accelerate", "peft", "sklearn", "scipy"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Raises SystemExit(2) for wrong usage, SystemExit(0) for --help."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="adakron", description="AdaKron adapters: train, evaluate, inspect, exchange, compare."
    )
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    adders = {
        "train": add_train,
        "train-many": add_train_many,
        "eval": add_eval,
        "calibrate": add_calibrate,
        "inspect": add_inspect,
        "zoo": add_zoo,
        "import": add_import,
        "to-peft": add_to_peft,
        "glue": add_glue,
    }
    # The flags of `train` come from a recipe, whose import takes seconds: only for those who ask for it, or for all.
    for add in [adders[words[0]]] if words and words[0] in adders else adders.values():
        add(subparsers)
    parsed = parser.parse_args(words)
    return run(parsed.run, parsed)


def run(verb: Verb, parsed: argparse.Namespace) -> int:
    """Call a verb and turn its errors into one line and an exit code."""
    try:
        return verb(parsed)
    except AdaKronError as error:
        complain(str(error), error.hint)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in _TRAINING_EXTRA:
            raise
        complain(f"this verb needs the package {error.name}", 'pip install "adakron[train]"')
        return 1
    except OSError as error:
        complain(f"{error.filename or 'input/output'}: {error.strerror or error}", None)
        return 1
    except KeyboardInterrupt:
        complain("interrupted", None)
        return 130


def add_train(subparsers: Verbs) -> None:
    """Add the verb; as each of these it sets `run`, which takes the parsed arguments and returns an exit code."""
    _add_train(subparsers.add_parser("train", help="train an adapter on labelled text", allow_abbrev=False))


def add_eval(subparsers: Verbs) -> None:
    """Add the verb."""
    _add_eval(subparsers.add_parser("eval", help="score an adapter on labelled text", allow_abbrev=False))


def add_calibrate(subparsers: Verbs) -> None:
    """Add the verb."""
    _add_calibrate(
        subparsers.add_parser("calibrate", help="fit an adapter's temperature on labelled text", allow_abbrev=False)
    )


def add_inspect(subparsers: Verbs) -> None:
    """Add the verb."""
    inspect = subparsers.add_parser("inspect", help="say what an artefact is, or why it is none", allow_abbrev=False)
    inspect.add_argument("path", metavar="FILE|FOLDER")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)


def add_zoo(subparsers: Verbs) -> None:
    """Add the verb."""
    zoo = subparsers.add_parser("zoo", help="write the cards and the table of a folder of adapters", allow_abbrev=False)
    zoo.add_argument("path", metavar="FOLDER")
    zoo.set_defaults(run=_zoo)


def add_import(subparsers: Verbs) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "import",
        help="make an artefact of a checkpoint of the authors' code, or of a folder in PEFT's layout",
        description="Make an artefact of a checkpoint of the authors' code (pytorch_model.bin), which needs --base and "
        "--labels, or of a folder in PEFT's layout, which says all of it. Pickles are read by a child process that "
        "takes tensors alone.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="FILE|FOLDER", help="pytorch_model.bin or a folder")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the artefact goes")
    parser.add_argument("--base", help="hub id or folder of the encoder that the checkpoint was trained on")
    parser.add_argument("--labels", metavar="NAMES", help="in index order, with commas; one makes it a regression")
    parser.add_argument(
        "--order",
        choices=("a2_a1", "a1_a2"),
        help="the 4-wide factor first (GLUE code) or last (NLG code); default: that of the code which names its "
        "tensors so. Needed where both are 4 wide, r = 16: there shapes cannot confirm the names",
    )
    parser.add_argument("--pair", action="store_true", help="it takes two texts")
    parser.add_argument("--max-length", type=int, default=128, metavar="N", help="tokens a row may have (128)")
    parser.add_argument("--json", action="store_true", help="print JSON, with the names of all unused tensors")
    parser.set_defaults(run=_import)


def add_to_peft(subparsers: Verbs) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "to-peft",
        help="write an artefact as a folder in PEFT's layout",
        description="Write an artefact as a folder in PEFT's layout: its file names, configuration keys and names of "
        "tensors. PEFT itself has no method ADAKRON; `adakron import` reads the folder back, to the byte.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="FILE|FOLDER", help="the artefact")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--base", help="hub id or folder of its encoder (default: the one that the artefact names)")
    parser.set_defaults(run=_to_peft)


def complain(message: str, hint: str | None) -> None:
    """One line on stderr."""
    line = " ".join(message.split())
    print(f"adakron: {line}{f' ({hint})' if hint else ''}", file=sys.stderr)


def _inspect(parsed: argparse.Namespace) -> int:
    from adakron.inspection import inspect, table

    facts = inspect(parsed.path)
    print(json.dumps(facts, ensure_ascii=False, indent=1) if parsed.json else table(facts))
    return 0


def _import(parsed: argparse.Namespace) -> int:
    path = Path(parsed.path)
    from adakron.peft_folder import is_peft_folder, read_peft_folder

    if path.is_dir() and is_peft_folder(path):
        surplus = [flag for flag in ("base", "labels", "order") if getattr(parsed, flag) is not None]
        if surplus or parsed.pair:
            raise ConfigError(f"--{(*surplus, 'pair')[0]}: the folder itself says it", hint="leave it out")
        adapter = read_peft_folder(path)
        adapter.write(parsed.out)
        facts = {"folder": parsed.out, "sha256": adapter.sha256}
        print(json.dumps(facts) if parsed.json else f"wrote {parsed.out} (sha256 {adapter.sha256})")
        return 0
    for flag in ("base", "labels"):
        if getattr(parsed, flag) is None:
            raise ConfigError(f"--{flag}: a checkpoint does not say it", hint=f"add --{flag}")
    from adakron.backbone import Backbone
    from adakron.importing.authors import convert
    from adakron.importing.checkpoint import read_checkpoint

    quiet_libraries()
    checkpoint = read_checkpoint(path / "pytorch_model.bin" if path.is_dir() else path)
    made = convert(
        checkpoint,
        Backbone.load(parsed.base),
        _comma_separated(parsed.labels),
        order=parsed.order,
        takes_pair=parsed.pair,
        max_length=parsed.max_length,
    )
    made.adapter.write(parsed.out)
    config = made.adapter.config
    if parsed.json:
        facts = {"folder": parsed.out, "sha256": made.adapter.sha256, "code": made.code, "order": config.order}
        print(json.dumps(facts | {"experts": made.experts, "unused": [*made.frozen, *made.unused]}))
        return 0
    print(f"{made.code} code: r = {config.bottleneck}, order {config.order}, experts averaged: {made.experts}")
    if made.frozen:
        print(f"not used: {len(made.frozen)} tensors of the frozen encoder, equal to those of {parsed.base}")
    else:
        print(f"the checkpoint holds nothing of the encoder: that it belongs to {parsed.base} is your word")
    if made.unused:
        print(f"not used: {', '.join(made.unused)}")
    print(f"wrote {parsed.out} (sha256 {made.adapter.sha256})")
    return 0


def _to_peft(parsed: argparse.Namespace) -> int:
    from adakron.artefact import Adapter
    from adakron.backbone import DEFAULT, DEFAULT_NAME, model_type_of
    from adakron.peft_folder import write_peft_folder

    path = Path(parsed.path)
    adapter = Adapter.from_folder(path) if path.is_dir() else Adapter.from_file(path)
    named = adapter.config.base_model_name_or_path
    write_peft_folder(adapter, model_type_of(parsed.base or (DEFAULT if named == DEFAULT_NAME else named)), parsed.out)
    print(f"wrote {parsed.out}")
    return 0


_RECIPE_HELP = {
    "name": "name of the adapter",
    "backbone": "hub id or folder of the encoder",
    "method": "train one adapter a layer, or several experts that are averaged on export",
    "experts": "experts of MAdaKron",
    "bottleneck": "r, the width of the bottleneck",
    "factor": "k, the rows of the smaller factor; r must be a multiple of it",
    "first_layer": "leave the layers below without adapter",
    "start": "the paper's, or an adapter that begins as a plain bottleneck and learns from fewer steps",
    "start_from": "folder of a trained adapter whose layers it begins with; the head is new",
    "head": "one linear map, or RoBERTa's two with tanh",
    "pooling": "what the head sees",
    "max_length": "tokens a row may have",
    "problem_type": "default: told by the labels",
    "metric": "chooses the best epoch; default: accuracy, macro_f1 or pearson",
    "train_splits": "splits to train on, with commas",
    "max_rows": "train on so many rows, chosen by seed",
    "lr": "learning rate",
    "layer_decay": "learning rate of a layer's adapter as a share of the next higher one's",
    "schedule": "of the learning rate",
    "warmup": "share of the steps in which the learning rate rises",
    "weight_decay": "of AdamW",
    "dropout": "before the head",
    "encoder_dropout": "inside the encoder",
    "label_smoothing": "share of the target spread over all labels",
    "epochs": "at most so many",
    "evaluations": "in an epoch; the best of all is kept",
    "batch": "rows in a step",
    "patience": "stop after so many epochs without a better score",
    "seed": "of everything random",
    "dtype": "of the matrix products; without it and without --like the faster one here, and otherwise",
    "abstain_below": "score below which the adapter gives no label",
    "full_lr": "learning rate of the full fine-tuning of --baselines",
    "full_epochs": "its epochs",
}


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, help="folder, task file, or hub data set as owner/name or owner/name:configuration"
    )
    parser.add_argument("--out", help="folder to write (runs/NAME)")
    parser.add_argument("--like", metavar="FOLDER", help="take settings and golden texts from a folder trained before")
    parser.add_argument("--examples", metavar="FILE", help="golden texts as in expected.json; logits there are ignored")
    parser.add_argument("--about", metavar="FILE", help="JSON for the card: data, licence, limits")
    parser.add_argument("--baselines", action="store_true", help="also train the whole encoder and a linear probe")
    parser.add_argument(
        "--work", metavar="DIR", help="where finished baselines are kept and found again (OUT/baselines)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what the data is and stop")
    add_recipe(parser.add_argument_group("settings, each with its default"))
    parser.set_defaults(run=_train)


def add_recipe(group: "argparse._ArgumentGroup", without: Sequence[str] = ()) -> None:
    """One flag a field of Recipe; a flag that is not given leaves no trace, so that --like can fill it."""
    import types
    from typing import Literal, Union, get_origin, get_type_hints

    from adakron.training.recipe import Recipe

    hints = get_type_hints(Recipe)
    for item in fields(Recipe):
        if item.name in without:
            continue
        kind: Any = hints[item.name]
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        default = None if item.default is MISSING else item.default
        shown = ",".join(default) if isinstance(default, tuple) else default
        flag: dict[str, Any] = {
            "dest": f"recipe_{item.name}",
            "default": argparse.SUPPRESS,
            "help": _RECIPE_HELP[item.name] + (f" ({shown})" if shown is not None else ""),
        }
        if get_origin(kind) is Literal:
            flag["choices"] = get_args(kind)
        elif get_origin(kind) is tuple:
            flag["type"], flag["metavar"] = _comma_separated, "NAMES"
        else:
            flag["type"], flag["metavar"] = kind, {int: "N", float: "X", str: "TEXT"}[kind]
        group.add_argument(f"--{item.name.replace('_', '-')}", **flag)


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _train(parsed: argparse.Namespace) -> int:
    from adakron.backbone import Backbone
    from adakron.training.calibration import calibrate_trained
    from adakron.training.card import write_card
    from adakron.training.records import results, settings, write_folder
    from adakron.training.run import full_fine_tuning, linear_probe, train_adapter
    from adakron.training.statistics import measure
    from adakron.training.task_file import is_task_file, load_for

    quiet_libraries()
    recipe, about = _recipe(parsed)
    examples = _examples(parsed)
    data, metric = load_for(recipe, parsed.data)
    print(f"{recipe.name}: {data.problem_type}, best epoch by {metric}")
    backbone = Backbone.load(recipe.backbone)
    print("\n".join(measure(data, backbone.tokenizer, recipe.max_length).lines()), flush=True)
    if parsed.dry_run:
        return 0
    out = Path(parsed.out or f"runs/{recipe.name}")
    out.mkdir(parents=True, exist_ok=True)  # before hours of training, not after
    trained = train_adapter(recipe, data, metric, examples)
    print("calibration", flush=True)
    trained, measured = calibrate_trained(trained, recipe, data)
    baselines: dict[str, dict[str, Any]] = {}
    if parsed.baselines:
        work = Path(parsed.work) if parsed.work else out / "baselines"
        print("linear probe", flush=True)
        baselines["linear_probe"] = linear_probe(recipe, data, metric, work)
        print("full fine-tuning", flush=True)
        baselines["full_fine_tuning"] = full_fine_tuning(recipe, data, metric, work)
    found = results(trained, data, metric, baselines, measured)
    task_file = Path(parsed.data).expanduser() if is_task_file(parsed.data) else None
    write_folder(out, trained, settings(recipe, about, data, by_task_file=task_file is not None), found, task_file)
    write_card(out)
    if measured is not None:
        print(f"temperature {measured.temperature:g}, ECE {measured.ece_before:.4f} -> {measured.ece_after:.4f}")
    for who in ("adapter", *baselines):
        print(f"{who.replace('_', ' ')}: {', '.join(f'{k} {v:.4f}' for k, v in found[who]['scores'].items())}")
    print(f"wrote {out} ({trained.adapter.size_bytes:,} bytes, sha256 {trained.adapter.sha256})")
    return 0


def _recipe(parsed: argparse.Namespace) -> "tuple[Recipe, About]":
    from adakron.training.precision import faster_precision
    from adakron.training.recipe import Recipe
    from adakron.training.records import About, read_settings

    given = {key.removeprefix("recipe_"): value for key, value in vars(parsed).items() if key.startswith("recipe_")}
    base: dict[str, Any] = {}
    about = About()
    if parsed.like:
        before = read_settings(Path(parsed.like))
        base, about = before.recipe.to_dict(), before.about
    if parsed.about:
        about = About.from_dict(json_object(Path(parsed.about)))
    base.setdefault("name", Path(parsed.data).name)
    if "dtype" not in base | given:
        base["dtype"] = faster_precision()
    return Recipe.from_dict(base | given), about


def _examples(parsed: argparse.Namespace) -> "list[TextOrPair] | None":
    """Golden texts of --examples, or of --like's expected.json where it has one."""
    beside = Path(parsed.like) / "expected.json" if parsed.like else None
    path = Path(parsed.examples) if parsed.examples else beside if beside and beside.is_file() else None
    return None if path is None else golden_texts_in(path)


def golden_texts_in(path: Path) -> "list[TextOrPair]":
    """The texts of a file like expected.json. Raises DataError."""
    rows = json_object(path).get("examples")
    try:
        return [row["text"] if row.get("text_pair") is None else (row["text"], row["text_pair"]) for row in rows or []]
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected examples with text and text_pair") from error


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises DataError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object")
    return content


def quiet_libraries() -> None:
    """Leave the terminal to what the verbs say."""
    from transformers.utils import logging

    # Of loading weights; training has its own bar.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers gives it no types
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers gives it no types


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FOLDER", help="folder or file of the adapter")
    parser.add_argument("--data", required=True, help="folder or hub data set, as for train")
    parser.add_argument("--backbone", help="default: the one that the adapter names")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_eval)


def _eval(parsed: argparse.Namespace) -> int:
    from adakron.training.evaluation import evaluate

    quiet_libraries()
    found = evaluate(Path(parsed.path), parsed.data, parsed.backbone, parsed.device, parsed.dtype)
    if parsed.json:
        print(json.dumps(found))
    else:
        print(f"{found['rows']:,} rows, {found['dtype']} on {found['device']}")
        print("\n".join(f"{name:<18} {value:.4f}" for name, value in found["scores"].items()))
    return 0


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FOLDER", help="folder of the adapter")
    parser.add_argument("--data", required=True, help="as for train; its validation rows are used")
    parser.add_argument("--out", metavar="FOLDER", help="where the new artefact is written (in place)")
    parser.add_argument("--abstain-below", type=float, metavar="X", help=_RECIPE_HELP["abstain_below"])
    parser.add_argument("--backbone", help="default: the one that the adapter names")
    parser.set_defaults(run=_calibrate)


def _calibrate(parsed: argparse.Namespace) -> int:
    from adakron.training.recalibration import recalibrate

    quiet_libraries()
    folder = Path(parsed.path)
    out = Path(parsed.out) if parsed.out else folder
    adapter, found = recalibrate(folder, out, parsed.data, parsed.backbone, parsed.abstain_below)
    print(
        f"{found.rows:,} rows: temperature {found.temperature:g}, ECE {found.ece_before:.4f} -> {found.ece_after:.4f}"
    )
    print(f"wrote {out} ({adapter.size_bytes:,} bytes, sha256 {adapter.sha256})")
    return 0


def _zoo(parsed: argparse.Namespace) -> int:
    from adakron.training.zoo import write_zoo

    for path in write_zoo(Path(parsed.path)):
        print(f"wrote {path}")
    return 0
