"""How rows of text are written in files. Apart from `server.text_rows`, whose imports --help need not wait for."""

from enum import StrEnum


class Format(StrEnum):
    """JSON lines, CSV, or a text a line."""

    jsonl = "jsonl"
    csv = "csv"
    text = "text"
