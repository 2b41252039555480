"""What tells a table (JSON lines, CSV, TSV) from text: its name, and its first lines."""

from __future__ import annotations

import csv
import json
import re
from pathlib import PurePosixPath

from rnnnas.data.compressed import plain_name

JSON_SUFFIXES, CSV_SUFFIXES = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
SUFFIXES = (*JSON_SUFFIXES, *CSV_SUFFIXES)
USUAL = ("text", "sentence")


def is_table(name: str) -> bool:
    """Whether a file's name is that of JSON lines, CSV or TSV, compressed or not."""
    return PurePosixPath(plain_name(name)).suffix.lower() in SUFFIXES


def delimiter_of(header: str) -> str:
    """The separator of a header: the most frequent of tab, semicolon, comma."""
    return max("\t;,", key=header.count) if header else ","


def csv_columns(lines: list[str]) -> list[str]:
    """The header's names where the first lines of a text look like CSV with a header, else none.

    Short names, one of them a usual one, and as many fields in each of the lines that follow.
    """
    delimiter = delimiter_of(lines[0]) if lines else ","
    try:
        rows = list(csv.reader((f"{line}\n" for line in lines), delimiter=delimiter))
    except csv.Error:
        return []
    if len(rows) < 3 or len(rows[0]) < 2:
        return []
    names = [cell.strip() for cell in rows[0]]
    usual = {"text", "sentence", "label", "id", "content", "title", "review", "body", "target"}
    plain = all(re.fullmatch(r"[^\W\d][\w .-]{0,30}", name) for name in names)
    if plain and usual & {n.lower() for n in names} and all(len(r) == len(names) for r in rows[1:]):
        return names
    return []


def json_columns(lines: list[str]) -> list[str]:
    """The keys where the first lines of a text are JSON objects, else none."""
    keys: list[str] = []
    for line in lines:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return []
        if not isinstance(found, dict):
            return []
        keys = keys or list(map(str, found))
    return keys


def are_arrays(lines: list[str]) -> bool:
    """Whether the first lines of a text, several of them, are JSON arrays."""

    def is_array(line: str) -> bool:
        try:
            return isinstance(json.loads(line), list)
        except (ValueError, RecursionError):
            return False

    return len(lines) > 1 and lines[0].lstrip().startswith("[") and all(map(is_array, lines))
