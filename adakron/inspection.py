"""What an artefact on disk is, for people and for programs. Reads and validates; runs no model."""

from pathlib import Path
from typing import Any

from adakron.artefact import Adapter


def inspect(path: str | Path) -> dict[str, Any]:
    """The facts of an artefact, file or folder, as JSON values; sizes in bytes, max_length in tokens.

    Raises FormatError or ConfigError with the reason if it is no valid adapter.
    """
    place = Path(path)
    adapter = Adapter.from_folder(place) if place.is_dir() else Adapter.from_file(place)
    config = adapter.config.to_dict()
    kept = (
        "format_version",
        "adakron_version",
        "base_model_name_or_path",
        "revision",
        "base_fingerprint",
        "problem_type",
        "num_labels",
        "text_fields",
        "max_length",
        "pooling",
        "head",
        "bottleneck",
        "factor",
        "order",
        "first_layer",
        "hidden_size",
        "num_hidden_layers",
        "calibration",
    )
    return {
        "path": str(place),
        "sha256": adapter.sha256,
        "size_bytes": adapter.size_bytes,
        "parameters": adapter.parameters,
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in adapter.tensors.values()}),
        "tensors": len(adapter.tensors),
        "golden_examples": len(adapter.expected),
        "labels": list(adapter.config.label_names),
        **{key: config[key] for key in kept},
    }


def table(facts: dict[str, Any]) -> str:
    """The facts in aligned lines, long lists cut."""
    shown = {
        "path": facts["path"],
        "sha256": facts["sha256"],
        "size": f"{facts['size_bytes']:,} bytes, {facts['parameters']:,} parameters, {', '.join(facts['dtypes'])}",
        "backbone": _backbone(facts),
        "weights": facts["base_fingerprint"]["weights_sha256"],
        "task": f"{facts['problem_type']} of {' + '.join(facts['text_fields'])}, at most {facts['max_length']} tokens",
        "labels": _labels(facts["labels"]),
        "method": f"r = {facts['bottleneck']}, k = {facts['factor']}, order {facts['order']}, "
        f"layers {facts['first_layer']} to {facts['num_hidden_layers'] - 1} of width {facts['hidden_size']}",
        "head": f"{facts['head']} on {facts['pooling']} pooling",
        "scores": _scores(facts["problem_type"], facts["calibration"]),
        "examples": f"{facts['golden_examples']} golden",
        "format": f"version {facts['format_version']}, written by adakron {facts['adakron_version']}",
    }
    return "\n".join(f"{key:<9} {value}" for key, value in shown.items())


def _backbone(facts: dict[str, Any]) -> str:
    revision = facts["revision"]
    return str(facts["base_model_name_or_path"]) + (f" at {revision[:12]}" if revision else "")


def _scores(problem_type: str, calibration: dict[str, float | None]) -> str:
    if problem_type == "regression":
        return "none: a value"
    threshold = calibration["threshold"]
    abstains = "" if threshold is None else f"; no label below {threshold:g}"
    return f"of logits / temperature {calibration['temperature']:g}{abstains}"


def _labels(labels: list[str]) -> str:
    more = f", and {len(labels) - 8} more" if len(labels) > 8 else ""
    return f"{len(labels)}: {', '.join(labels[:8])}{more}"
