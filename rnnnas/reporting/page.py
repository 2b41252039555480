"""A report as one HTML file that opens from disk and asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path

import rnnnas
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.space import RECURRENT_OPS
from rnnnas.reporting.cells import op_colours, operations
from rnnnas.reporting.leaders import history_of
from rnnnas.reporting.read import RunData, StudyData, genotype_from, read_all
from rnnnas.reporting.sections import Detail, about, run_section
from rnnnas.reporting.side_by_side import compared
from rnnnas.reporting.study_section import about_study, result_of, study_section
from rnnnas.runs.files import write_where_told

MOST_BYTES = 500_000
# What is left out, step by step, where a report would be larger.
_DETAILS = (Detail(), Detail(frames=30), Detail(frames=12, numbers=False),
            Detail(frames=2, numbers=False))  # fmt: skip


def report(paths: Sequence[Path], out: Path) -> Path:
    """Write a report of the runs and studies at `paths` to `out`; returns `out`.

    A path may be a run folder, a study's folder, or a folder of such. Runs need not be finished.

    Raises:
        UsageError: where a path holds neither, or all of them are too much for one report.
        CheckpointError: where a file of theirs is damaged.
        DiskError: where `out` cannot be written.
    """
    found = read_all(paths)
    for detail in _DETAILS:
        data = page(found, detail).encode("utf-8", "backslashreplace")
        if len(data) <= MOST_BYTES:
            write_where_told(out, data, (".html", ".htm"))
            return out
    raise UsageError(
        f"a report of {len(found)} runs and studies would have {len(data):,} bytes, and it may "
        f"have {MOST_BYTES:,}",
        "give fewer of them",
    )


def page(found: Sequence[RunData | StudyData], detail: Detail) -> str:
    """The whole document."""
    runs = [item for item in found if isinstance(item, RunData)]
    sections, links = [], []
    if len(runs) > 1:
        sections.append(compared(runs))
        links.append(("compared", "Side by side"))
    alone = len(found) == 1
    for i, item in enumerate(found, 1):
        key = f"r{i}"
        links.append((key, item.name))
        if isinstance(item, RunData):
            sections.append(run_section(item, key, detail, alone))
        else:
            sections.append(study_section(item, key, alone))
    title = _title(found)
    menu = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in links)
    nav = f'<nav aria-label="Contents">{menu}</nav>' if len(links) > 1 else ""
    style = _file("page.css") + _colours(found)
    script = _file("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} · rnnnas</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><button type="button" class="theme" hidden>dark</button>'
        f"</header>{nav}<main>{''.join(sections)}</main>"
        f"<footer>rnnnas {escape(rnnnas.__version__)}</footer>"
        f"<script>{script}</script></body></html>\n"
    )


def _title(found: Sequence[RunData | StudyData]) -> str:
    if len(found) > 1:
        runs = sum(isinstance(item, RunData) for item in found)
        return " and ".join(
            f"{count} {word if count == 1 else many}"
            for count, word, many in ((runs, "run", "runs"),
                                      (len(found) - runs, "study", "studies"))
            if count
        )  # fmt: skip
    item = found[0]
    words = about(item) if isinstance(item, RunData) else about_study(item)
    return words[:1].upper() + words[1:]


def _file(name: str) -> str:
    return (resources.files("rnnnas.reporting") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _genotypes(found: Iterable[RunData | StudyData]) -> list[Genotype]:
    """Every cell that is drawn."""
    cells: list[Genotype | None] = []
    for item in found:
        if isinstance(item, RunData):
            cells += [item.genotype, *(frame.genotype for frame in history_of(item).frames)]
        elif (result := result_of(item)) is not None:
            chosen = (own["chosen"] or {} for own in result.get("methods", {}).values())
            cells += [genotype_from(str(one.get("cell", ""))) for one in chosen]
    return [cell for cell in cells if cell is not None]


def _colours(found: Sequence[RunData | StudyData]) -> str:
    """The operations' colours: variables in both themes, and a class for their heat maps."""
    tables = {
        op
        for item in found
        if isinstance(item, RunData) and item.frames
        for cell, table in item.frames[-1].tables.items()
        for op in item.names_of(cell, table)[1]
    }
    light, dark, classes = op_colours(
        sorted({*RECURRENT_OPS, *operations(_genotypes(found)), *tables})
    )
    return (
        f":root{{{light}}}:root[data-theme=dark]{{{dark}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}{classes}"
    )
