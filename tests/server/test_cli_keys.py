"""`adakron keys`: it works on the database itself, shows a key once, and says in one line what is wrong."""

import json
from pathlib import Path

import pytest

from server import state
from server.access.keys import id_in
from server.cli import main
from server.settings import Settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAKRON_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def create(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[str, str]:
    """The key, and what was said beside it."""
    assert main(["keys", "create", *flags]) == 0
    shown = capsys.readouterr()
    return shown.out.strip(), shown.err


def test_create_prints_the_key_alone_and_makes_a_private_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, beside = create(capsys, "--scopes", "read", "classify")
    key_id = id_in(key.encode())
    assert key_id is not None
    assert f"key {key_id}: classify read" in beside
    assert key not in beside
    assert folder.stat().st_mode & 0o777 == 0o700
    [kept] = Settings().open_keys().all()[1]
    assert (kept.id, kept.scopes) == (key_id, frozenset({"classify", "read"}))


def test_create_takes_tenant_end_limit_and_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prefix", "acme", "--expires-days", "30", "--rows-per-minute", "600", "--note", "the build"]
    create(capsys, "--scopes", "admin", *flags)
    assert main(["keys", "list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["prefix"], shown["rows_per_minute"], shown["note"]) == ("acme/", 600, "the build")
    assert shown["expires_at"] > shown["created_at"]


def test_list_shows_ids_and_no_secret(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, _ = create(capsys, "--scopes", "admin", "--prefix", "acme")
    for flags in ([], ["--json"]):
        assert main(["keys", "list", *flags]) == 0
        shown = capsys.readouterr().out
        assert key.split("_")[1] in shown
        assert key.split("_")[2] not in shown
        assert "live" in shown


def test_revoke_ends_a_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, _ = create(capsys, "--scopes", "read")
    assert main(["keys", "revoke", key.split("_")[1]]) == 0
    main(["keys", "list"])
    assert "revoked" in capsys.readouterr().out


def test_keys_are_written_while_a_server_holds_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with state.locked(folder), state.opened(Settings().catalogue, Settings().open_blobs()) as catalogue:
        create(capsys, "--scopes", "read")
        assert catalogue.add_version("x", "a" * 64, 1).generation == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["create"],
        ["create", "--scopes", "root"],
        ["create", "--scopes", "read", "--prefix", "Acme"],
        ["create", "--scopes", "read", "--prefix", "a/b"],
        ["create", "--scopes", "read", "--expires-days", "0"],
        ["create", "--scopes", "read", "--rows-per-minute", "-1"],
        ["create", "--scopes", "read", "--rows-per-minute", "9" * 5000],
    ],
)
def test_wrong_flag_is_refused(folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["keys", *flags])
    assert caught.value.code == 2
    assert not folder.exists()


@pytest.mark.parametrize("note", ["x" * 129, "two\nlines", "\x1b[31m"])
def test_note_that_could_upset_a_list_is_refused(folder: Path, note: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "--scopes", "read", "--note", note]) == 1
    assert "128" in capsys.readouterr().err


def test_unknown_id_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "revoke", "nobody"]) == 1
    assert "there is no key 'nobody'" in capsys.readouterr().err


def test_lost_catalogue_is_not_replaced_by_one_of_keys_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob = folder / "blobs" / "ab" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"")
    assert main(["keys", "create", "--scopes", "read"]) == 1
    assert "is missing" in capsys.readouterr().err
    assert not (folder / "catalogue.sqlite").exists()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["keys", "list", "--state-dir", str(tmp_path / "file" / "x")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_database_of_another_kind_is_refused_without_being_quoted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "list", "--catalogue-url", "mysql://me:secret@host/x"]) == 1
    assert "secret" not in capsys.readouterr().err
