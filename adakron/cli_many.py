"""The verb `train-many`: several adapters trained side by side in one process.

`adakron.training.together` does the work, and is imported when it is asked for.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from adakron.errors import ConfigError

if TYPE_CHECKING:
    from adakron.training.records import About
    from adakron.training.together.run import Task
    from adakron.training.together.tasks import Entry

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_MIB = 1 << 20


def add_train_many(subparsers: Verbs) -> None:
    """Add the verb."""
    from adakron.cli import add_recipe

    parser = subparsers.add_parser(
        "train-many",
        help="train several adapters side by side on one backbone",
        description="Trains an adapter for each task, all in one process, and writes OUT/NAME as `adakron train` does. "
        "An adapter that is there already, of the same settings and data, is not trained again.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="SOURCE",
        help="a task's folder, a folder of such folders, NAME=FOLDER, or a hub data set; may be given several times",
    )
    parser.add_argument(
        "--tasks", metavar="FILE", help="TOML, a table an adapter: its data, about, examples, and settings of its own"
    )
    parser.add_argument("--out", default="runs", help="folder to write a folder an adapter into (runs)")
    parser.add_argument("--probe", action="store_true", help="also score a linear probe of every task")
    parser.add_argument(
        "--pass-tokens", type=int, metavar="N", help="tokens of several adapters' rows in one batch, padding counted"
    )
    parser.add_argument(
        "--cache-mib", type=int, metavar="N", help="MiB of hidden states below --first-layer that are kept (1024)"
    )
    add_recipe(parser.add_argument_group("settings of all of them, each with its default"), without=("name",))
    parser.set_defaults(run=_train_many)


def _train_many(parsed: argparse.Namespace) -> int:
    from adakron.cli import complain, quiet_libraries
    from adakron.training.calibration import calibrate_trained
    from adakron.training.card import write_card
    from adakron.training.records import results, settings, write_folder
    from adakron.training.run import Trained
    from adakron.training.together.run import CACHE_BYTES, PASS_TOKENS, probe_together, train_together
    from adakron.training.together.tasks import entries

    quiet_libraries()
    found = entries(parsed.data, Path(parsed.tasks) if parsed.tasks else None)
    if not found:
        raise ConfigError("expected tasks; found none", hint="name them with --data or --tasks")
    given = {key.removeprefix("recipe_"): value for key, value in vars(parsed).items() if key.startswith("recipe_")}
    out = Path(parsed.out)
    tasks, abouts = [], {}
    for entry in found:
        task, about = _task(entry, given)
        if _is_finished(out / entry.name, task, about, with_probe=parsed.probe):
            print(f"{entry.name}: {out / entry.name} holds it already")
            continue
        (out / entry.name).mkdir(parents=True, exist_ok=True)  # before hours of training, not after
        tasks.append(task)
        abouts[entry.name] = about
    if parsed.probe and tasks:
        print("linear probes", flush=True)
    probes = probe_together(tasks) if parsed.probe else {}

    def write(task: "Task", trained: Trained) -> None:
        name, folder = task.recipe.name, out / task.recipe.name
        baselines = {"linear_probe": probes[name]} if name in probes else {}
        trained, measured = calibrate_trained(trained, task.recipe, task.data)
        outcome = results(trained, task.data, task.metric, baselines, measured)
        outcome["adapter"]["beside"] = len(tasks) - 1
        write_folder(folder, trained, settings(task.recipe, abouts[name], task.data), outcome)
        write_card(folder)
        scores = ", ".join(f"{key} {value:.4f}" for key, value in trained.scores.items())
        print(f"wrote {folder} ({scores})", flush=True)

    failures = train_together(
        tasks,
        write,
        pass_tokens=PASS_TOKENS if parsed.pass_tokens is None else parsed.pass_tokens,
        cache_bytes=CACHE_BYTES if parsed.cache_mib is None else parsed.cache_mib * _MIB,
    )
    for name, why in failures.items():
        complain(f"{name}: {why}", None)
    print(f"{len(found) - len(failures)} of {len(found)} adapters are in {out}")
    return 1 if failures else 0


def _task(entry: "Entry", given: dict[str, Any]) -> "tuple[Task, About]":
    from adakron.cli import golden_texts_in, json_object
    from adakron.training.precision import faster_precision
    from adakron.training.recipe import Recipe
    from adakron.training.records import About
    from adakron.training.task_file import load_for
    from adakron.training.together.run import Task

    try:
        chosen = {**given, **entry.settings, "name": entry.name}
        recipe = Recipe.from_dict(chosen if "dtype" in chosen else chosen | {"dtype": faster_precision()})
    except ConfigError as error:
        raise ConfigError(f"{entry.name}: {error}", key=error.key, hint=error.hint) from error
    except TypeError as error:  # a text where a number belongs: only TOML can say that
        raise ConfigError(f"{entry.name}: a setting is of the wrong type: {error}") from error
    about = About.from_dict(json_object(entry.about)) if entry.about else About()
    examples = golden_texts_in(entry.examples) if entry.examples else None
    data, metric = load_for(recipe, entry.source)
    print(
        f"{recipe.name}: {data.problem_type}, {len(data.train):,} rows, best epoch by {metric}",
        flush=True,
    )
    return Task(recipe, data, metric, examples), about


def _is_finished(folder: Path, task: "Task", about: "About", *, with_probe: bool) -> bool:
    """Whether `folder` holds, whole, what this task would give: saying an interrupted run again takes it up."""
    from adakron.artefact import Adapter
    from adakron.errors import AdaKronError
    from adakron.training.card import CARD_FILE
    from adakron.training.records import read_results, read_settings

    try:
        before, found = read_settings(folder), read_results(folder)
        adapter = Adapter.from_folder(folder)
    except (AdaKronError, OSError):
        return False
    texts = [row.text if row.text_pair is None else (row.text, row.text_pair) for row in adapter.expected]
    return (
        (folder / CARD_FILE).is_file()
        and (before.recipe, before.about) == (task.recipe, about)
        and before.data.get("sha256") == task.data.digest()
        and found.get("adapter", {}).get("sha256") == adapter.sha256
        and (task.examples is None or list(task.examples) == texts)
        and (not with_probe or "linear_probe" in found)
    )
