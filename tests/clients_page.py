"""docs/clients.md, made of what tests/e2e/test_clients.py found: `python -m tests.clients_page`.

The findings of the last run lie in runs/clients.json; this command keeps them as docs/clients.json and writes the page.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOUND = ROOT / "runs" / "clients.json"
KEPT = ROOT / "docs" / "clients.json"
PAGE = ROOT / "docs" / "clients.md"
CLIENTS = ("huggingface_hub", "@huggingface/inference", "tritonclient[http]", "kserve", "openai", "curl")

INTRODUCTION = """\
# Clients that work as they are

Unmodified, from PyPI and npm, against one running server of two replicas. The table is what `tests/e2e/test_clients.py`
found; `python -m tests.clients_page` writes it. A base URL, a name, and what else a client needs are in the
[README](../README.md).

tritonclient and kserve add headers of their own to the dictionary in `headers=`: give each call a new one.
"""


def page(findings: list[dict[str, Any]]) -> str:
    """The whole page."""
    lines = [INTRODUCTION, "| client | version | operation | passed |", "| --- | --- | --- | --- |"]
    for found in findings:
        for operation in found["operations"]:
            passed = "yes" if operation["passed"] else "**no**"
            lines.append(f"| {found['client']} | {found['version']} | {operation['operation']} | {passed} |")
    count = sum(len(found["operations"]) for found in findings)
    passed_count = sum(operation["passed"] for found in findings for operation in found["operations"])
    return "\n".join([*lines, "", f"{passed_count} of {count} passed.", ""])


def operations_of(found: dict[str, Any]) -> list[str]:
    """What one client was asked to do."""
    return [operation["operation"] for operation in found["operations"]]


def documented(client: str) -> list[str]:
    """What docs/clients.json says that this client was asked to do."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []
    return next((operations_of(found) for found in kept if found["client"] == client), [])


def main() -> int:
    """Keep the findings of the last run, and write the page; 1 where a client is missing in them."""
    findings = json.loads(FOUND.read_text(encoding="utf-8"))
    missing = set(CLIENTS) - {found["client"] for found in findings}
    if missing:
        print(f"{FOUND} lacks {', '.join(sorted(missing))}: run tests/e2e/test_clients.py where they can be installed")
        return 1
    KEPT.write_text(json.dumps(findings, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(findings), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
