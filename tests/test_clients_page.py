"""docs/clients.md says what was found, of every client, and nothing there failed. Needs no network and no server."""

import json

from tests import clients_page


def test_page_is_made_of_the_kept_findings() -> None:
    findings = json.loads(clients_page.KEPT.read_text(encoding="utf-8"))
    assert clients_page.PAGE.read_text(encoding="utf-8") == clients_page.page(findings)


def test_every_client_is_there_and_passed() -> None:
    findings = json.loads(clients_page.KEPT.read_text(encoding="utf-8"))
    assert [found["client"] for found in findings] == list(clients_page.CLIENTS)
    assert all(operation["passed"] for found in findings for operation in found["operations"])


def test_a_failure_shows() -> None:
    found = {"client": "c", "version": "1", "operations": [{"operation": "o", "passed": False, "error": "x"}]}
    text = clients_page.page([found])
    assert "| c | 1 | o | **no** |" in text
    assert "0 of 1 passed." in text


def test_findings_without_a_client_are_not_kept(monkeypatch, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(clients_page, "FOUND", tmp_path / "found.json")
    clients_page.FOUND.write_text("[]")
    before = clients_page.KEPT.read_text(encoding="utf-8")
    assert clients_page.main() == 1
    assert "lacks" in capsys.readouterr().out
    assert clients_page.KEPT.read_text(encoding="utf-8") == before
