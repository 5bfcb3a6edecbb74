"""A folder of adapters described: a card each, and one table of all, made from what each run left on disk.

Knows wording and files; trains nothing.
"""

import re
from pathlib import Path

from adakron.artefact import Adapter
from adakron.errors import DataError
from adakron.training.card import CARD_FILE, METRIC_TITLES, write_card
from adakron.training.records import RESULTS_FILE, read_results, read_settings

TABLE = ("<!-- table -->", "<!-- /table -->")


def write_zoo(folder: Path) -> list[Path]:
    """Write the card of every adapter in `folder`, and the table between the marks of its README.md; the files written.

    Raises DataError where there is no adapter or no place for the table, FormatError, ConfigError.
    """
    page = folder / CARD_FILE
    begin, end = TABLE
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if text.count(begin) != 1 or text.count(end) != 1:
        raise DataError(f"{page}: expected the lines {begin} and {end} once each, around the table")
    folders = adapters_in(folder)
    if not folders:
        raise DataError(f"{folder}: no adapters here", hint=f"each is a folder with {RESULTS_FILE}")
    for path in folders:
        write_card(path)
    table = f"{begin}\n{index_table(folder)}\n{end}"
    page.write_text(re.sub(f"{begin}.*{end}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")
    return [*(path / CARD_FILE for path in folders), page]


def adapters_in(folder: Path) -> list[Path]:
    """The folders of trained adapters, by name."""
    return sorted(path.parent for path in folder.glob(f"*/{RESULTS_FILE}"))


def index_table(folder: Path) -> str:
    """The table of all adapters in `folder`."""
    lines = [
        "| name | data | input | labels | metric | adapter | full fine-tuning | linear probe | ECE | licence | size |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(_line(path) for path in adapters_in(folder))])


def _line(path: Path) -> str:
    found, about = read_results(path), read_settings(path).about
    adapter = Adapter.from_folder(path)
    config = adapter.config
    scores = [found[who]["scores"] if who in found else {} for who in ("adapter", "full_fine_tuning", "linear_probe")]
    calibration = found.get("calibration")
    cells = [
        f"[{path.name}]({path.name}/{CARD_FILE})",
        about.dataset,
        "pair" if config.takes_pair else "text",
        "value" if config.problem_type == "regression" else str(config.num_labels),
        METRIC_TITLES[found["metric"]],
        *(f"{each[found['metric']]:.3f}" if each else "" for each in scores),
        f"{calibration['ece_before']:.3f} → {calibration['ece_after']:.3f}" if calibration else "",
        about.licence_id,
        f"{adapter.size_bytes / 1e6:.2f} MB",
    ]
    return f"| {' | '.join(cells)} |"
