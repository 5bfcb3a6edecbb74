"""The catalogue: versions, generations, preconditions, durability of the file, one writer and many readers."""

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.catalogue import Catalogue
from server.errors import (
    AdapterNotFoundError,
    ConflictError,
    PreconditionFailedError,
    StorageFullError,
    StorageUnavailableError,
    VersionNotFoundError,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    opened = Catalogue(tmp_path / "catalogue.sqlite", is_writer=True)
    yield opened
    opened.close()


def test_new_catalogue_is_empty_at_generation_zero(catalogue: Catalogue) -> None:
    snapshot = catalogue.snapshot()
    assert (snapshot.generation, dict(snapshot.adapters)) == (0, {})


def test_first_version_is_one_and_active(catalogue: Catalogue) -> None:
    change = catalogue.add_version("sst2", A, 10)
    assert (change.version, change.is_new, change.is_active, change.generation) == (1, True, True, 1)
    entry = catalogue.snapshot().adapters["sst2"]
    assert (entry.active, entry.versions[1].sha256, entry.versions[1].size_bytes) == (1, A, 10)


def test_generation_is_one_counter_over_all_names(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    assert catalogue.add_version("y", A, 1).generation == 2
    assert {name: entry.generation for name, entry in catalogue.snapshot().adapters.items()} == {"x": 1, "y": 2}
    assert catalogue.generation() == 2


def test_same_bytes_are_the_same_version_and_change_nothing(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    again = catalogue.add_version("x", A, 1)
    assert (again.version, again.is_new, again.generation, catalogue.generation()) == (1, False, 1, 1)


def test_same_bytes_as_an_older_version_activate_it(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1)
    again = catalogue.add_version("x", A, 1)
    assert (again.version, again.is_new, again.is_active, again.generation) == (1, False, True, 3)


def test_same_bytes_as_an_older_version_stay_staged_if_asked(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1)
    again = catalogue.add_version("x", A, 1, activate=False)
    assert (again.is_active, again.generation, catalogue.snapshot().adapters["x"].active) == (False, 2, 2)


def test_staged_first_version_leaves_the_name_without_active_version(catalogue: Catalogue) -> None:
    assert not catalogue.add_version("x", A, 1, activate=False).is_active
    assert catalogue.snapshot().adapters["x"].active is None


def test_version_number_is_never_used_twice_even_after_delete(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1)
    catalogue.delete_name("x")
    assert catalogue.add_version("x", A, 1).version == 3
    assert list(catalogue.snapshot().adapters["x"].versions) == [3]


def test_activate_rolls_back(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1)
    assert catalogue.activate("x", 1).generation == 3
    assert catalogue.snapshot().adapters["x"].active == 1


def test_activate_of_the_active_version_changes_nothing(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    assert catalogue.activate("x", 1).generation == catalogue.generation() == 1


def test_activate_unknown_name_raises(catalogue: Catalogue) -> None:
    with pytest.raises(AdapterNotFoundError):
        catalogue.activate("x", 1)


def test_activate_unknown_version_raises_and_names_those_kept(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    with pytest.raises(VersionNotFoundError) as caught:
        catalogue.activate("x", 2)
    assert "1" in str(caught.value.hint)


def test_delete_of_active_version_alone_raises(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    with pytest.raises(ConflictError):
        catalogue.delete_version("x", 1)
    assert catalogue.generation() == 1


def test_delete_of_another_version_removes_it(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1)
    removal = catalogue.delete_version("x", 1)
    assert ([row.sha256 for row in removal.versions.values()], removal.generation) == ([A], 3)
    assert list(catalogue.snapshot().adapters["x"].versions) == [2]


def test_delete_of_the_last_staged_version_removes_the_name(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1, activate=False)
    catalogue.delete_version("x", 1)
    assert "x" not in catalogue.snapshot().adapters
    with pytest.raises(AdapterNotFoundError):
        catalogue.delete_name("x")


def test_delete_twice_raises(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    assert list(catalogue.delete_name("x").versions) == [1]
    with pytest.raises(AdapterNotFoundError):
        catalogue.delete_name("x")


def test_names_ever_held_include_deleted_ones(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("y", A, 1)
    catalogue.delete_name("x")
    assert catalogue.names_ever_held() == {"x", "y"}


def test_content_is_referenced_while_any_name_keeps_it(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("y", A, 1)
    catalogue.delete_name("x")
    assert catalogue.is_referenced(A)
    catalogue.delete_name("y")
    assert not catalogue.is_referenced(A)
    assert not catalogue.is_referenced(C)


@pytest.mark.parametrize("operation", ["add_version", "activate", "delete_version", "delete_name"])
def test_write_with_another_generation_raises_and_changes_nothing(catalogue: Catalogue, operation: str) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1)
    arguments = {"add_version": ("x", C, 1), "activate": ("x", 1), "delete_version": ("x", 1), "delete_name": ("x",)}
    before = catalogue.snapshot()
    with pytest.raises(PreconditionFailedError, match='ETag is "2"'):
        getattr(catalogue, operation)(*arguments[operation], if_match=frozenset({1}))
    assert catalogue.snapshot() == before
    getattr(catalogue, operation)(*arguments[operation], if_match=frozenset({1, 2}))
    assert catalogue.generation() == 3


def test_star_matches_only_an_existing_adapter(catalogue: Catalogue) -> None:
    with pytest.raises(PreconditionFailedError):
        catalogue.add_version("x", A, 1, if_match="*")
    catalogue.add_version("x", A, 1)
    assert catalogue.add_version("x", B, 1, if_match="*").version == 2


def test_two_writers_on_one_generation_one_wins(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    outcomes: list[str] = []

    def write(sha256: str) -> None:
        try:
            catalogue.add_version("x", sha256, 1, if_match=frozenset({1}))
            outcomes.append("won")
        except PreconditionFailedError:
            outcomes.append("lost")

    threads = [threading.Thread(target=write, args=(sha256,)) for sha256 in (B, C)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost", "won"]


def test_concurrent_writes_lose_nothing(catalogue: Catalogue) -> None:
    def write(index: int) -> None:
        for step in range(5):
            catalogue.add_version(f"n{index}", f"{index:032x}{step:032x}", 1)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = catalogue.snapshot()
    assert snapshot.generation == 20
    assert {name: list(entry.versions) for name, entry in snapshot.adapters.items()} == {
        f"n{index}": [1, 2, 3, 4, 5] for index in range(4)
    }


def test_acknowledged_change_is_there_after_reopening(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.close()
    again = Catalogue(catalogue.path, is_writer=True)
    assert again.snapshot().adapters["x"].active == 1
    again.close()


def test_reader_sees_what_the_writer_committed(catalogue: Catalogue) -> None:
    reader = Catalogue(catalogue.path, is_writer=False)
    catalogue.add_version("x", A, 1)
    assert reader.generation() == 1
    assert list(reader.snapshot().adapters) == ["x"]
    reader.close()


def test_reader_cannot_write(catalogue: Catalogue) -> None:
    reader = Catalogue(catalogue.path, is_writer=False)
    with pytest.raises(StorageUnavailableError):
        reader.add_version("x", A, 1)
    reader.close()
    assert catalogue.generation() == 0


def test_reader_of_a_missing_file_raises_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError):
        Catalogue(tmp_path / "none.sqlite", is_writer=False)
    assert list(tmp_path.iterdir()) == []


def test_file_settings_are_the_durable_ones(catalogue: Catalogue) -> None:
    with catalogue._transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 3


def test_newer_format_is_refused_by_number(catalogue: Catalogue) -> None:
    catalogue.close()
    with sqlite3.connect(catalogue.path) as connection:
        connection.execute("UPDATE meta SET format_version = 7")
    connection.close()
    with pytest.raises(StorageUnavailableError, match="format_version 7; this release reads 1"):
        Catalogue(catalogue.path, is_writer=True)


def test_torn_file_is_refused(catalogue: Catalogue) -> None:
    for index in range(60):
        catalogue.add_version(f"n{index}", A, 1)
    catalogue.close()
    data = bytearray(catalogue.path.read_bytes())
    data[4096:12288] = b"\xff" * 8192
    catalogue.path.write_bytes(data)
    with pytest.raises(StorageUnavailableError, match="damaged"):
        Catalogue(catalogue.path, is_writer=True)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageUnavailableError, match="damaged"):
        Catalogue(path, is_writer=True)
    assert path.read_bytes().startswith(b"not a database")


def test_full_disk_is_named_and_changes_nothing(catalogue: Catalogue) -> None:
    with catalogue._transaction() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for index in range(2000):
            catalogue.add_version(f"n{index}", f"{index:064x}", 1)

    with pytest.raises(StorageFullError):
        fill()
    snapshot = catalogue.snapshot()
    assert snapshot.generation == len(snapshot.adapters)


def test_killed_writer_leaves_whole_transactions(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    Catalogue(path, is_writer=True).close()
    program = (
        "import sys; from pathlib import Path; from server.catalogue import Catalogue\n"
        "c = Catalogue(Path(sys.argv[1]), is_writer=True)\n"
        "for i in range(10**6):\n"
        "    print(c.add_version(f'n{i % 7}', f'{i:064x}', i).generation, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = 0
    for line in child.stdout:
        acknowledged = int(line)
        if acknowledged >= 25:
            break
    child.kill()
    rest = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    acknowledged = int(rest[-1]) if rest else acknowledged
    survived = Catalogue(path, is_writer=True)
    snapshot = survived.snapshot()
    survived.close()
    assert snapshot.generation in (acknowledged, acknowledged + 1)
    assert sum(len(entry.versions) for entry in snapshot.adapters.values()) == snapshot.generation


def test_journal_of_a_killed_writer_is_rolled_back_by_a_reader(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.close()
    torn = sqlite3.connect(catalogue.path, isolation_level=None)
    torn.execute("PRAGMA cache_size = 1")
    torn.execute("PRAGMA cache_spill = ON")
    torn.execute("BEGIN IMMEDIATE")
    for index in range(3000):
        torn.execute("INSERT INTO versions VALUES (?, 1, ?, 1, '', 'kept')", (f"half{index}", A))
    left = tmp_path / "left"
    left.mkdir()
    for path in tmp_path.glob("catalogue.sqlite*"):
        shutil.copy(path, left)
    torn.execute("ROLLBACK")
    torn.close()
    assert (left / "catalogue.sqlite-journal").exists()
    reader = Catalogue(left / "catalogue.sqlite", is_writer=False)
    assert list(reader.snapshot().adapters) == ["x"]
    assert not any(reader.is_referenced(f"{index:064x}") for index in range(2))
    reader.close()
