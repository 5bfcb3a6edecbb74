"""The model card: README.md beside an artefact, for people and model hubs, written from the other files of its folder.

Knows wording; trains nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from adakron.artefact import Adapter
from adakron.config import ProblemType
from adakron.training.recipe import Recipe
from adakron.training.records import About, Settings, read_results, read_settings
from adakron.training.task_file import TASK_FILE

CARD_FILE = "README.md"

_ALWAYS_SHOWN = {"bottleneck", "pooling", "max_length", "lr", "epochs", "batch", "seed"}

_COMPARED = {"adapter": "this adapter", "full_fine_tuning": "full fine-tuning", "linear_probe": "linear probe"}
_FUNCTIONS = {"single_label_classification": "softmax", "multi_label_classification": "sigmoid"}
_METHODS = {"adakron": "AdaKron", "madakron-partial": "MAdaKron (partial)", "madakron-full": "MAdaKron (full)"}

METRIC_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "f1": "F1 of the label with index 1",
    "matthews": "Matthews correlation",
    "in_scope_accuracy": "in-scope accuracy",
    "oos_recall": "out-of-scope recall",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}


def write_card(folder: Path) -> None:
    """Write README.md from the other files of the folder. Raises FormatError, ConfigError, DataError if one is bad."""
    text = render(Adapter.from_folder(folder), read_settings(folder), read_results(folder))
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def render(adapter: Adapter, settings: Settings, found: Mapping[str, Any]) -> str:
    """The model card: front matter for hubs, then one section a question."""
    recipe, about = settings.recipe, settings.about
    parts = [
        _front_matter(adapter, recipe, about, found),
        f"# {recipe.name}",
        about.does or f"An AdaKron adapter for {_kind(adapter.config.problem_type)}.",
        _what(adapter, recipe),
        "## Labels",
        _labels(adapter),
        "## Data and licence",
        _data(settings),
        "## Scores",
        _scores(found),
        *(["### Recipes tried", about.attempts] if about.attempts else []),
        *_calibration(adapter, found),
        "## How it was trained",
        _training(settings, found),
        "## Limits",
        about.limits
        or "Scores hold for text like the validation rows. Nothing was measured on other domains, dialects or "
        "languages, nor for harm to any group of people.",
        "## How to call it",
        _call(adapter, recipe),
        "## Citation",
        "Marco Braga, Alessandro Raganato, Gabriella Pasi: AdaKron: An Adapter-based Parameter Efficient Model Tuning "
        "with Kronecker Product. LREC-COLING 2024, pages 350-357. https://aclanthology.org/2024.lrec-main.32",
        *([about.citation] if about.citation else []),
    ]
    return "\n\n".join(parts) + "\n"


def command(recipe: Recipe, data: str, out: str) -> str:
    """The `adakron train` line that repeats the recipe; defaults are left out, but for those that matter most."""
    plain = {item.name: item.default for item in fields(Recipe)}
    flags = [f"--name {recipe.name}", f"--data {data}"]
    for key, value in recipe.to_dict().items():
        default = plain[key]
        usual = value == (list(default) if isinstance(default, tuple) else default)
        if key == "name" or (usual and key not in _ALWAYS_SHOWN):
            continue
        flags.append(f"--{key.replace('_', '-')} {','.join(value) if isinstance(value, list) else value}")
    return " ".join(["adakron train", *flags, f"--out {out}"])


def _kind(problem_type: ProblemType) -> str:
    return problem_type.replace("_", " ").replace("single label", "single-label").replace("multi label", "multi-label")


def _what(adapter: Adapter, recipe: Recipe) -> str:
    config = adapter.config
    averaged = f", trained with {recipe.experts} experts and averaged into one adapter"
    layers = f"layers {config.first_layer} to {config.num_hidden_layers - 1}"
    return (
        f"{_METHODS[recipe.method]} adapter with r = {config.bottleneck}, k = {config.factor} in {layers}"
        f"{averaged if recipe.method != 'adakron' else ''}, and a {config.head} head on {config.pooling} pooling: "
        f"{adapter.parameters:,} parameters, {adapter.size_bytes / 1e6:.2f} MB. The backbone, "
        f"{config.base_model_name_or_path}, stays frozen and is shared with other adapters. "
        f"Texts over {config.max_length} tokens are cut."
    )


def _labels(adapter: Adapter) -> str:
    if adapter.config.problem_type == "regression":
        return "One value; the logit is the value itself."
    return ", ".join(f"{index} `{name}`" for index, name in enumerate(adapter.config.label_names))


def _data(settings: Settings) -> str:
    recipe, about, rows = settings.recipe, settings.about, settings.data
    where = f" ({about.dataset_url})" if about.dataset_url else ""
    held_out = ", held out of train" if rows["validation_held_out"] else ""
    splits = " and ".join(f"`{split}`" for split in recipe.train_splits)
    lines = [
        f"Data: {about.dataset or 'not named by the person who trained it'}{where}. {rows['train_rows']:,} rows of "
        f"{splits} for training, {rows['validation_rows']:,} for validation{held_out}. sha256 of the rows: "
        f"`{rows['sha256']}`.",
        about.data_note,
        _begun_from(recipe),
        f"Licence of the data: {about.licence or 'not stated by the person who trained it'}.",
    ]
    return "\n\n".join(line for line in lines if line)


def _begun_from(recipe: Recipe) -> str:
    if recipe.start_from is None:
        return ""
    return (
        f"Training began with the layers of the adapter `{Path(recipe.start_from).name}`: these weights hold what that "
        "one was trained on, so the licence of its data counts for them too."
    )


def _scores(found: Mapping[str, Any]) -> str:
    present = [who for who in _COMPARED if who in found]
    names = list(found["adapter"]["scores"])
    lines = [
        f"On {found['rows']:,} validation rows, in float32, {found['date']}. The best epoch of each was chosen on the "
        f"same rows, by {METRIC_TITLES[found['metric']]}.",
        "",
        f"| metric | {' | '.join(_COMPARED[who] for who in present)} |",
        f"| --- |{' --- |' * len(present)}",
    ]
    for name in names:
        values = [f"{found[who]['scores'][name]:.4f}" for who in present]
        lines.append(f"| {METRIC_TITLES[name]} | {' | '.join(values)} |")
    if "full_fine_tuning" in found:
        full = found["full_fine_tuning"]
        epochs = "one epoch" if full["epochs"] == 1 else f"best of {full['epochs']:g} epochs"
        lines += [
            "",
            f"Full fine-tuning trains {full['parameters']:,} parameters (learning rate {full['lr']:g}, {epochs}). "
            f"The linear probe is {_probe(found)} on the frozen backbone's pooled features.",
        ]
    return "\n".join(lines)


def _probe(found: Mapping[str, Any]) -> str:
    return "ridge regression" if "pearson" in found["adapter"]["scores"] else "logistic regression"


def _calibration(adapter: Adapter, found: Mapping[str, Any]) -> list[str]:
    """The section with its heading; nothing where nothing was measured."""
    measured = found.get("calibration")
    if measured is None:
        return []
    temperature = adapter.config.calibration.temperature
    on = f"{measured['rows']:,} validation rows"
    if temperature == 1:
        how = f"Scores are as trained: a temperature fitted on half of the {on} did not help the other half"
        after = "Epochs"
    else:
        function = _FUNCTIONS[adapter.config.problem_type]
        how = (
            f"Scores are the {function} of logits / {temperature:g}, a temperature fitted by negative log-likelihood "
            f"on the {on} and stored in the artefact"
        )
        after = "After: each half of the rows with the temperature that was fitted on the other half. Epochs"
    rows = [
        "| | before | after |",
        "| --- | --- | --- |",
        f"| expected calibration error, 15 bins | {measured['ece_before']:.4f} | {measured['ece_after']:.4f} |",
        f"| negative log-likelihood | {measured['nll_before']:.4f} | {measured['nll_after']:.4f} |",
    ]
    return [
        "## Calibration",
        f"{how} ({measured['date']}).",
        "\n".join(rows),
        f"{after} were chosen on the same rows, so that scores of other text may be less sound.",
        *_abstention(measured["abstention"], adapter.config.calibration.threshold),
    ]


def _abstention(entries: Sequence[Mapping[str, float | None]], threshold: float | None) -> list[str]:
    if not entries:
        return []
    own = "has no threshold of its own" if threshold is None else f"withholds those below {threshold:g} by itself"
    rows = ["| `abstain_below` | answered | accuracy of the answers |", "| --- | --- | --- |"]
    for entry in entries:
        accuracy = "" if entry["accuracy"] is None else f"{entry['accuracy']:.1%}"
        rows.append(f"| {entry['below']:g} | {entry['coverage']:.1%} | {accuracy} |")
    return [
        f"`abstain_below` in a request withholds labels of a lower score; this adapter {own}. On the same rows:",
        "\n".join(rows),
    ]


def _training(settings: Settings, found: Mapping[str, Any]) -> str:
    recipe = settings.recipe
    out = f"adapters/{recipe.name}"
    data = f"{out}/{TASK_FILE}" if settings.data.get("task_file") else f"$ADAKRON_DATA_DIR/{recipe.name}"
    adapter = found["adapter"]
    return "\n".join(
        [
            "```sh",
            command(recipe, data, out),
            "```",
            "",
            f"`adakron train --like {out} --data {data} --out runs/{recipe.name}` repeats it with the same golden "
            f"examples. {adapter['epochs']:g} epochs, the weights after {adapter['best_epoch']:g} kept. AdamW, weight "
            f"decay {recipe.weight_decay:g}, {recipe.schedule} schedule with a warm-up of {recipe.warmup:.0%}, "
            f"seed {recipe.seed}.{_beside(adapter.get('beside', 0))}",
        ]
    )


def _beside(others: int) -> str:
    if not others:
        return ""
    return (
        f" It was trained beside {others} other{'s' if others > 1 else ''} by `adakron train-many`, in one process: "
        "alone, the same settings draw other batches and other dropout."
    )


def _call(adapter: Adapter, recipe: Recipe) -> str:
    example, name = adapter.expected[0], recipe.name
    given: dict[str, str] = {"text": example.text}
    if example.text_pair is not None:
        given["text_pair"] = example.text_pair
    inputs = [given if example.text_pair is not None else example.text]
    body = json.dumps({"adapter": name, "inputs": inputs}, ensure_ascii=False).replace("'", "'\\''")
    row = ", ".join([f'adapter="{name}"', *(f"{key}={json.dumps(text)}" for key, text in given.items())])
    return "\n".join(
        [
            "```sh",
            "curl -s $ADAKRON_URL/v1/classify -H 'content-type: application/json' \\",
            f"  -d '{body}'",
            "```",
            "",
            "```python",
            "from adakron import Engine, Row",
            "",
            f"engine = Engine.load({'' if recipe.backbone == 'default' else json.dumps(recipe.backbone)})",
            f'engine.add("{name}", "adapters/{name}")',
            f"print(engine.classify([Row({row})]))",
            "```",
        ]
    )


def _front_matter(adapter: Adapter, recipe: Recipe, about: About, found: Mapping[str, Any]) -> str:
    metric = found["metric"]
    lines = ["---", "library_name: adakron", f"base_model: {json.dumps(adapter.config.base_model_name_or_path)}"]
    lines += ["base_model_relation: adapter", "pipeline_tag: text-classification"]
    lines.append(f"language: {json.dumps(about.language)}")
    if about.licence_id:
        lines.append(f"license: {json.dumps(about.licence_id)}")
    lines += _listed("tags", ["adakron", "adapter", "parameter-efficient", "text-classification"])
    if about.dataset_id:
        lines += _listed("datasets", [about.dataset_id])
    lines += _listed("metrics", [metric])
    dataset = json.dumps(about.dataset or recipe.name)
    dataset_id = json.dumps(about.dataset_id or recipe.name)
    lines += [
        "model-index:",
        f"  - name: {json.dumps(recipe.name)}",
        "    results:",
        "      - task: {type: text-classification}",
        f"        dataset: {{name: {dataset}, type: {dataset_id}, split: validation}}",
        "        metrics:",
    ]
    lines += [f"          - {{type: {name}, value: {value}}}" for name, value in found["adapter"]["scores"].items()]
    return "\n".join([*lines, "---"])


def _listed(key: str, values: Sequence[str]) -> list[str]:
    return [f"{key}:", *(f"  - {json.dumps(value)}" for value in values)]
