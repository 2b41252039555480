"""Tables of figures as text, CSV, LaTeX or Markdown: columns and notes in, text out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Format = Literal["text", "csv", "latex", "markdown", "json"]
FORMATS: tuple[str, ...] = get_args(Format)
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "–": "--",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table: what it is about, the names of its columns, and its rows; "-" for what is not
    known.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def rendered(sheets: Sequence[Sheet], notes: Sequence[str], form: Format) -> str:
    """Tables and the notes below them in a format but "json", which is the figures themselves.

    csv: each table with its head, a blank line between them, without notes. latex: a booktabs
    table each, the notes as comments. markdown: the notes as one paragraph.
    """
    sheets = [sheet for sheet in sheets if sheet.rows]
    if form == "csv":
        return "\n".join(_csv(sheet) for sheet in sheets).rstrip("\n")
    if form == "latex":
        return "\n\n".join([*(_latex(sheet) for sheet in sheets), *(f"% {n}" for n in notes)])
    if form == "markdown":
        return "\n\n".join([*(_markdown(sheet) for sheet in sheets), " ".join(notes)]).rstrip()
    return "\n\n".join([*(_text(sheet) for sheet in sheets), "\n".join(notes)]).rstrip()


def _text(sheet: Sheet) -> str:
    table = [sheet.head, *sheet.rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(sheet.head))]
    lines = ("  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def _csv(sheet: Sheet) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([sheet.head, *sheet.rows])
    return out.getvalue()


def _latex(sheet: Sheet) -> str:
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (sheet.head, *sheet.rows)]
    return "\n".join(
        [
            f"% {sheet.title}",
            rf"\begin{{tabular}}{{l{'r' * (len(sheet.head) - 1)}}}",
            r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
            r"\end{tabular}",
        ]
    )  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _markdown(sheet: Sheet) -> str:
    rows = [sheet.head, ["---"] * len(sheet.head), *sheet.rows]
    return "\n".join(
        "| " + " | ".join(text.replace("|", r"\|") for text in row) + " |" for row in rows
    )
