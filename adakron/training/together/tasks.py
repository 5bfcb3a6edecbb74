"""Which adapters to train together: from folders, names and a TOML file to one entry an adapter.

Knows names and settings; reads no rows.

    [reviews]                   a table an adapter, named as its adapter
    data = "data/sst2"          folder, seen from the file, or hub data set; left out where --data names it
    lr = 5e-4                   any setting of a recipe, for this adapter alone; start_from seen from the file
    about = "reviews.json"      and examples: files, as the flags of `adakron train`
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adakron.errors import ConfigError, DataError
from adakron.training.data import SUFFIXES


@dataclass(frozen=True, slots=True)
class Entry:
    """source: as `load_task` takes it; settings: keys of a recipe that are this adapter's own."""

    name: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: Path | None = None
    examples: Path | None = None


def entries(sources: Sequence[str], file: Path | None = None) -> list[Entry]:
    """One entry an adapter, those of `sources` first.

    sources  each a folder of one task, a folder of such folders, NAME=FOLDER, or a hub data set
    file     TOML as above; its tables add adapters, or say more of those that sources name

    Raises ConfigError for a bad name, one that comes twice or a key that is not known, DataError for a file that cannot
    be read, a folder without data or a table without any.
    """
    found: dict[str, Entry] = {}
    for source in sources:
        for name, place in _tasks_at(source):
            if name in found:
                raise ConfigError(
                    f"data: {name!r} comes twice, as {found[name].source} and {place}",
                    key="data",
                    hint="name one of them yourself: NAME=FOLDER",
                )
            found[name] = Entry(name, place)
    if file is not None:
        for name, table in _tables(file).items():
            known = found.get(name)
            found[name] = _entry(name, table, file, known.source if known else None)
    for name in found:
        if name in ("", "..") or Path(name).name != name or not name.isprintable():
            raise ConfigError(f"name: expected one that can name a folder; found {name!r}", key="name")
    return list(found.values())


def _tasks_at(source: str) -> list[tuple[str, str]]:
    folder = Path(source).expanduser()
    if folder.is_dir():
        if _holds_train(folder):
            return [(folder.resolve().name, source)]
        inner = [child for child in sorted(folder.iterdir()) if child.is_dir() and _holds_train(child)]
        if not inner:
            raise DataError(f"{folder}: no train split, and no folder in it has one")
        return [(child.name, str(child)) for child in inner]
    name, separator, place = source.partition("=")
    if separator:
        return [(name, place)]
    return [(source.rpartition("/")[2].replace(":", "-"), source)]


def _holds_train(folder: Path) -> bool:
    return any((folder / f"train{suffix}").is_file() for suffix in SUFFIXES)


def _tables(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not TOML: {error}") from error


def _entry(name: str, table: object, file: Path, source: str | None) -> Entry:
    if not isinstance(table, dict):
        raise DataError(f"{file}: expected a table for each adapter; found {name} = {str(table)[:40]}")
    settings = {key: value for key, value in table.items() if key not in ("data", "about", "examples")}
    if "name" in settings:
        raise ConfigError(f"{file}: [{name}] is the adapter's name already", key="name")
    for key in ("data", "about", "examples", "start_from"):
        if not isinstance(table.get(key, ""), str):
            raise DataError(f"{file}: [{name}]: expected text for {key}; found {str(table[key])[:40]}")
    if "start_from" in settings:
        settings["start_from"] = str(file.parent / settings["start_from"])
    if "data" in table:
        beside = file.parent / table["data"]
        source = str(beside) if beside.exists() else table["data"]
    if source is None:
        raise DataError(f"{file}: [{name}] has no data", hint=f'write data = "FOLDER", or --data {name}=FOLDER')
    about, examples = (file.parent / table[key] if key in table else None for key in ("about", "examples"))
    return Entry(name, source, settings, about, examples)
