"""The catalogue: versions, generations, preconditions, splits, the log, repeated requests; on both databases alike."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.catalogue import Catalogue
from server.database import sqlite_url
from server.errors import (
    AdapterNotFoundError,
    ConflictError,
    PreconditionFailedError,
    StorageUnavailableError,
    VersionNotFoundError,
)
from server.records import Addition, Once, Origin, Snapshot
from server.split import Split
from tests.server.postgres import new_database

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "catalogue.sqlite")
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def catalogue(url: str) -> Iterator[Catalogue]:
    opened = Catalogue(url, is_writer=True)
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


@pytest.mark.parametrize("operation", ["add_version", "activate", "split", "delete_version", "delete_name"])
def test_write_with_another_generation_raises_and_changes_nothing(catalogue: Catalogue, operation: str) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1)
    arguments = {
        "add_version": ("x", C, 1),
        "activate": ("x", 1),
        "split": ("x", Split({1: 100})),
        "delete_version": ("x", 1),
        "delete_name": ("x",),
    }
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


def test_writers_of_many_servers_lose_no_generation(catalogue: Catalogue, url: str) -> None:
    """Catalogues of their own, as several servers have them: on SQLite the file's lock keeps them apart."""
    others = [Catalogue(url, is_writer=True) for _ in range(3)]

    def write(other: Catalogue, index: int) -> None:
        for step in range(8):
            other.add_version(f"n{index}", f"{index:032x}{step:032x}", 1)
            other.add_version("shared", f"{index:032x}{step:032x}", 1)

    threads = [threading.Thread(target=write, args=(other, index)) for index, other in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    snapshot = catalogue.snapshot()
    assert snapshot.generation == 3 * 8 * 2
    assert list(snapshot.adapters["shared"].versions) == list(range(1, 25))
    generations = [event.generation for name in snapshot.adapters for event in catalogue.history(name, 100)]
    assert sorted(generations) == list(range(1, 49))


def test_changes_since_a_generation_lead_to_the_snapshot(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("gone", A, 1)
    before = catalogue.snapshot()
    catalogue.add_version("x", B, 1, activate=False)
    catalogue.add_version("new", C, 1)
    catalogue.delete_name("gone")
    changes = catalogue.changes_since(before.generation)
    assert {name: entry is None for name, entry in changes.adapters.items()} == {"gone": True, "new": False, "x": False}
    assert before.after(changes) == catalogue.snapshot()
    assert catalogue.changes_since(changes.generation).adapters == {}


def test_many_versions_in_one_change_have_one_generation(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    changes = catalogue.add_versions([Addition("x", A, 1), Addition("y", B, 1), Addition("y", C, 1)])
    assert [(change.version, change.generation, change.is_new) for change in changes] == [
        (1, 1, False),
        (1, 2, True),
        (2, 2, True),
    ]
    assert (catalogue.generation(), catalogue.snapshot().adapters["y"].active) == (2, 2)


def test_nothing_new_in_one_change_leaves_the_generation(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_versions([Addition("x", A, 1)])
    assert catalogue.generation() == 1


def test_version_whose_bytes_are_gone_is_not_added(catalogue: Catalogue) -> None:
    with pytest.raises(StorageUnavailableError, match="removed from the store meanwhile"):
        catalogue.add_version("x", A, 1, is_stored=lambda sha256: False)
    assert catalogue.snapshot() == Snapshot(0, {})


def test_collect_deletes_only_what_no_version_needs(catalogue: Catalogue) -> None:
    deleted: list[str] = []

    delete = deleted.append
    catalogue.add_version("x", A, 1)
    catalogue.collect(A, delete)
    catalogue.collect(B, delete)
    assert deleted == [B]


def test_content_collected_while_it_is_registered_again_is_never_lost(catalogue: Catalogue, url: str) -> None:
    """Whoever comes second sees what the first did: either the bytes are kept, or the version is refused."""
    other = Catalogue(url, is_writer=True)
    for step in range(20):
        stored, outcomes = {A}, []

        def collect(stored: set[str] = stored) -> None:
            other.collect(A, stored.discard)

        def register(stored: set[str] = stored, outcomes: list[bool] = outcomes, name: str = f"n{step}") -> None:
            try:
                catalogue.add_version(name, A, 1, is_stored=stored.__contains__)
                outcomes.append(True)
            except StorageUnavailableError:
                outcomes.append(False)

        threads = [threading.Thread(target=work) for work in (collect, register)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == [A in stored]
        if outcomes[0]:
            catalogue.delete_name(f"n{step}")
    other.close()


def test_pages_are_in_the_order_of_bytes_with_the_configuration_of_the_shown_version(catalogue: Catalogue) -> None:
    for name in ("b", "a-b", "a.b", "a/b", "a0", "a"):
        catalogue.add_version(name, A, 1, config=f'"{name}"')
    catalogue.add_version("b", B, 1, config="2", activate=False)
    names = [listed.name for listed in catalogue.page(10)]
    assert names == sorted(names)
    assert names[0] == "a"
    assert [(listed.name, listed.config) for listed in catalogue.page(2, "a/b")] == [("a0", '"a0"'), ("b", '"b"')]
    assert catalogue.page(10, "b") == []


def test_get_of_one_name_is_that_of_the_page(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1, config="1", no_effect=True)
    assert catalogue.get("x") == catalogue.page(1)[0]
    assert catalogue.get("y") is None
    catalogue.delete_name("x")
    assert catalogue.get("x") is None


def test_configuration_can_be_written_down_later(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    assert catalogue.without_config() == {A}
    catalogue.set_config(A, "{}")
    assert (catalogue.without_config(), catalogue.page(1)[0].config) == (set(), "{}")


def test_log_holds_each_change_with_who_made_it(catalogue: Catalogue) -> None:
    me = Origin("key1", "127.0.0.1", "request-1")
    catalogue.add_version("x", A, 1, origin=me)
    catalogue.add_version("x", B, 1, activate=False)
    catalogue.activate("x", 2)
    catalogue.split("x", Split({1: 50, 2: 50}))
    catalogue.activate("x", 2)
    catalogue.delete_version("x", 1, origin=me)
    catalogue.delete_name("x")
    history = catalogue.history("x", 10)
    assert [(e.generation, e.action, e.version, e.active_version) for e in reversed(history)] == [
        (1, "register", 1, 1),
        (2, "register", 2, 1),
        (3, "activate", 2, 2),
        (4, "split", None, 2),
        (5, "activate", 2, 2),
        (6, "delete", 1, 2),
        (7, "delete", 2, None),
    ]
    assert (history[-1].key_id, history[-1].source, history[-1].request_id) == ("key1", "127.0.0.1", "request-1")
    assert [event.generation for event in catalogue.history("x", 2)] == [7, 6]


def test_refused_change_is_not_in_the_log(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    with pytest.raises(ConflictError):
        catalogue.delete_version("x", 1)
    assert len(catalogue.history("x", 10)) == 1


def test_request_sent_again_is_not_done_again(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    once = [Once(f"key{n}", f"request{n}") for n in range(4)]
    added = catalogue.add_version("x", B, 1, if_match=frozenset({1}), once=once[0], no_effect=False)
    split = catalogue.split("x", Split({1: 10, 2: 90}, 1), once=once[1])
    activated = catalogue.activate("x", 1, once=once[2])
    removed = catalogue.delete_name("x", once=once[3])
    generation = catalogue.generation()
    assert catalogue.add_version("x", B, 1, if_match=frozenset({1}), once=once[0], no_effect=False) == added
    assert catalogue.split("x", Split({1: 10, 2: 90}, 1), once=once[1]) == split
    assert catalogue.activate("x", 1, once=once[2]) == activated
    assert catalogue.delete_name("x", once=once[3]) == removed
    assert catalogue.outcome_of(once[0]) == added
    assert catalogue.generation() == generation


def test_refused_request_may_be_sent_again(catalogue: Catalogue) -> None:
    once = Once("key", "request")
    with pytest.raises(AdapterNotFoundError):
        catalogue.activate("x", 1, once=once)
    catalogue.add_version("x", A, 1, activate=False)
    assert catalogue.activate("x", 1, once=once).is_active


def test_key_with_another_request_raises_and_does_nothing(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1, once=Once("key", "one"))
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        catalogue.add_version("y", A, 1, once=Once("key", "other"))
    assert catalogue.names_ever_held() == {"x"}


def test_keys_are_forgotten_after_a_day(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    once = Once("key", "one")
    catalogue.add_version("x", A, 1, once=once)
    assert catalogue.forget_requests() == 0
    monkeypatch.setattr("server.catalogue.REPEATABLE_FOR_S", -1)
    assert catalogue.forget_requests() == 1
    assert catalogue.outcome_of(once) is None


def test_split_is_an_entry_of_the_snapshot_until_a_version_is_activated(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1, activate=False)
    split = Split({1: 90, 2: 10}, shadow=2)
    assert catalogue.split("x", split).generation == 3
    assert catalogue.split("x", split).generation == 3
    assert catalogue.snapshot().adapters["x"].split == split
    catalogue.add_version("x", C, 1, activate=False)
    assert catalogue.snapshot().adapters["x"].split == split
    assert catalogue.activate("x", 1).generation == 5
    assert catalogue.snapshot().adapters["x"].split is None


def test_upload_of_the_active_bytes_ends_the_split(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.split("x", Split({}, shadow=1))
    assert catalogue.add_version("x", A, 1).generation == 3
    assert catalogue.snapshot().adapters["x"].split is None


def test_split_without_weights_leaves_all_to_the_active_version(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1, activate=False)
    assert catalogue.split("x", Split({}, shadow=2)).split == Split({1: 100}, 2)


def test_split_without_weights_of_a_name_without_active_version_raises(catalogue: Catalogue) -> None:
    catalogue.add_version("x", A, 1, activate=False)
    with pytest.raises(ConflictError):
        catalogue.split("x", Split({}, shadow=1))


@pytest.mark.parametrize("split", [Split({1: 50, 9: 50}), Split({1: 100}, shadow=9)])
def test_split_with_an_unknown_version_raises(catalogue: Catalogue, split: Split) -> None:
    catalogue.add_version("x", A, 1)
    with pytest.raises(VersionNotFoundError):
        catalogue.split("x", split)


@pytest.mark.parametrize("split", [Split({1: 50, 2: 50}), Split({2: 100}), Split({1: 100}, shadow=2)])
def test_delete_of_a_version_in_the_split_raises(catalogue: Catalogue, split: Split) -> None:
    catalogue.add_version("x", A, 1)
    catalogue.add_version("x", B, 1, activate=False)
    catalogue.split("x", split)
    with pytest.raises(ConflictError, match="split"):
        catalogue.delete_version("x", 2)


def test_names_are_told_by_how_much_they_are_called(catalogue: Catalogue) -> None:
    for name in ("x", "y", "z", "gone"):
        catalogue.add_version(name, A, 1)
    generation = catalogue.generation()
    assert catalogue.hottest() == []
    catalogue.note_uses({"x": 2, "y": 5, "gone": 9, "nobody": 7})
    catalogue.note_uses({"x": 4})
    catalogue.delete_name("gone")
    assert catalogue.hottest() == ["x", "y"]
    assert catalogue.generation() == generation + 1


def test_heat_halves_every_day_and_a_clock_set_back_makes_nothing_hotter(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1_000_000_000.0
    monkeypatch.setattr("server.catalogue.time.time", lambda: now_s)
    for name in ("x", "y"):
        catalogue.add_version(name, A, 1)
    catalogue.note_uses({"x": 10})
    now_s += 2 * 24 * 3600
    catalogue.note_uses({"y": 3})
    assert catalogue.hottest() == ["y", "x"]
    now_s -= 30 * 24 * 3600
    catalogue.note_uses({"x": 1})
    assert catalogue.hottest() == ["x", "y"]  # 11 as nothing was halved, but not 10 times 2 ** 28
    now_s += 30 * 24 * 3600
    catalogue.note_uses({"y": 1})
    assert catalogue.hottest()[0] == "y"


def test_only_so_many_versions_are_kept_beside_those_that_answer(url: str) -> None:
    catalogue = Catalogue(url, is_writer=True, keep_versions=2)
    for number in range(1, 4):
        catalogue.add_version("x", f"{number:064x}", 1)
    catalogue.activate("x", 1)
    catalogue.split("x", Split({1: 50, 2: 50}, None))
    for number in range(4, 8):
        catalogue.add_version("x", f"{number:064x}", 1, activate=False)
    entry = catalogue.snapshot().adapters["x"]
    assert list(entry.versions) == [1, 2, 6, 7]  # 1 and 2 answer
    assert [event.version for event in catalogue.history("x", 20) if event.action == "retire"] == [5, 4, 3]
    assert catalogue.add_version("x", f"{3:064x}", 1, activate=False).version == 8  # numbers are never used again
    catalogue.add_versions([Addition("x", f"{9:064x}", 1, None, None)])
    assert list(catalogue.snapshot().adapters["x"].versions) == [7, 8, 9]
    catalogue.close()
