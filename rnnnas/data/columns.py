"""Text in a column: JSON lines, CSV, TSV, parquet."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from rnnnas.data.compressed import plain_name
from rnnnas.data.table_kinds import CSV_SUFFIXES, JSON_SUFFIXES, USUAL, delimiter_of
from rnnnas.data.text_files import (
    LINE_LIMIT,
    TABLE_LIMIT,
    NoText,
    Text,
    broken_long,
    check_line,
    shown,
    without_marks,
)
from rnnnas.errors import DataError

_ROWS = 1000  # rows read at a time


def column_text(text: Text, file: str, column: str) -> Text:
    """The text of one column; a row may hold several lines.

    Args:
        text: the table, whose lines are not taken for text. file: its name, which tells its kind;
            where it does not, a first line that begins with `{` or `[{` is JSON.
    """
    suffix = PurePosixPath(plain_name(file)).suffix.lower()

    def lines() -> Iterator[str]:
        rows = text.lines()
        first = next((line for line in rows if line.strip()), "")
        rows = itertools.chain((first,), rows)
        as_json = suffix in JSON_SUFFIXES or (
            suffix not in CSV_SUFFIXES and re.match(r"\s*(\{|\[\s*(\{|$))", first)
        )
        values = _json(rows, text.name, column) if as_json else _csv(rows, text.name, column)
        yield from value_lines(values, text.name, column)

    return Text(text.name, lines)


def value_lines(values: Iterator[str | None], name: str, column: str) -> Iterator[str]:
    """The lines of a column's values. Raises DataError: a value that is no text, or none is."""
    blank, number = True, 0
    for number, value in enumerate(values, 1):
        if value is None:
            raise DataError(
                f"{name}: row {number}: no text (null) in column {column!r}",
                "Remove such rows, or choose another column.",
            )
        # A final line end belongs to the row; what it ends is one line, not two.
        for line in value.removesuffix("\n").split("\n"):
            line = without_marks(line.removesuffix("\r"))
            blank = blank and not line.strip()
            try:
                encoded = line.encode("utf-8") if len(line) * 4 > LINE_LIMIT else b""
                line.encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{name}: row {number}: half a character (a lone surrogate)", "Correct the row."
                ) from error
            if len(encoded) > LINE_LIMIT:
                for piece in broken_long(encoded, name, number):
                    yield check_line(piece.decode("utf-8"), name, number)
            else:
                yield check_line(line, name, number)
    if blank:
        raise NoText(
            f"{name}: {'holds white space only' if number else 'has no rows'}",
            "Give text in every split, or choose another column.",
        )


def _no_column(name: str, column: str, there: list[str]) -> DataError:
    listed = ", ".join(map(shown, there[:20])) + (", ..." if len(there) > 20 else "")
    cause = f"{name}: no column {column!r}; columns: {listed}"
    return DataError(cause, "Choose one with --column.")


def _json(rows: Iterator[str], name: str, column: str) -> Iterator[str | None]:
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            found = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{name}: line {number}: not JSON ({error})",
                "Give one JSON object a line; jq -c '.[]' FILE > NEW makes such out of an array.",
            ) from error
        if not isinstance(found, dict):
            array = isinstance(found, list) and all(isinstance(one, dict) for one in found)
            raise DataError(
                f"{name}: line {number}: {'a JSON array' if array else 'no JSON object'}",
                "Make it one object a line: jq -c '.[]' FILE > NEW.jsonl"
                if array
                else 'Give one object a line, such as {"text": "..."}.',
            )
        if column not in found:
            raise _no_column(f"{name}: line {number}", column, list(found))
        if not isinstance(found[column], str | None):
            raise DataError(
                f"{name}: line {number}: column {column!r} holds no text", "Choose another column."
            )
        yield found[column]


def _csv(rows: Iterator[str], name: str, column: str) -> Iterator[str | None]:
    csv.field_size_limit(TABLE_LIMIT)
    header = next(rows, "")
    dialect = delimiter_of(header)
    reader = csv.reader((f"{row}\n" for row in itertools.chain((header,), rows)),
                        delimiter=dialect, strict=True)  # fmt: skip
    try:
        names = [cell.strip() for cell in next(reader, [])]
        if column not in names:
            raise _no_column(name, column, names)
        at = names.index(column)
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{name}: line {reader.line_num}: {len(row)} fields, the header has "
                    f"{len(names)}",
                    "Quote fields that hold the separator.",
                )
            yield row[at]
    except csv.Error as error:
        raise DataError(
            f"{name}: line {reader.line_num}: not CSV ({error})", "Check the quotes."
        ) from error


def parquet_text(root: Path, file: str, column: str | None) -> Text:
    """The text column of a parquet file; by default `text`, `sentence`, or the only text column.

    Raises DataError at once where the file or its column cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    path, name = root / file, f"{shown(root)}/{shown(file)}"

    def broken(error: Exception) -> DataError:
        return DataError(
            f"{name}: not a parquet file that can be read ({' '.join(str(error).split())})",
            "Check or repeat the download.",
        )

    try:
        with pyarrow.parquet.ParquetFile(path) as opened:
            schema = opened.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise broken(error) from error
    texts = {field.name for field in schema if _is_text(field.type)}
    chosen = choose_column(list(schema.names), texts, name, column)

    def values() -> Iterator[str | None]:
        try:
            with pyarrow.parquet.ParquetFile(path) as opened:
                for batch in opened.iter_batches(_ROWS, columns=[chosen]):
                    yield from batch.column(0).to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise broken(error) from error

    return Text(name, lambda: value_lines(values(), name, chosen))


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def choose_column(names: list[str], texts: set[str], called: str, wanted: str | None) -> str:
    """The column that holds the text: the one wanted, a usual one, or the only one.

    Raises DataError, which lists the columns.
    """
    if wanted is not None:
        if wanted in texts:
            return wanted
    else:
        for column in USUAL:
            if column in texts:
                return column
        if len(texts) == 1:
            return next(iter(texts))
    which = "no column that is clearly the text" if wanted is None else f"no text column {wanted!r}"
    listed = ", ".join(f"{shown(c)} (text)" if c in texts else shown(c) for c in names)
    raise DataError(f"{called}: {which}; columns: {listed}", "Choose one with --column.")
