"""How a search's shares moved: heat maps an operation, and the data of their slider over epochs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from rnnnas.draw.layout import grid_of
from rnnnas.draw.text_svg_dot import css_name
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.space import NONE
from rnnnas.reporting.cells import cell_svg, frame_data
from rnnnas.reporting.charts import Series, line_chart
from rnnnas.reporting.leaders import History, history_of
from rnnnas.reporting.read import Frame, RunData

_SIDE = 128.0  # of a heat map
_EDGE = 22.0  # beside it, for the names of its first and last row
_HEADINGS = {
    "epoch": "The cell, epoch by epoch",
    "round": "The cell, round by round",
    "rung": "The best cell, rung by rung",
    "cell": "The best cell so far",
}
_FLOOR = 0.05  # opacity of the least share: an empty place and a small share differ


def kept_frames(frames: Sequence[Frame], most: int) -> list[Frame]:
    """At most `most` of the frames: the first, the last, and evenly many between them."""
    if len(frames) <= most:
        return list(frames)
    return [frames[round(i * (len(frames) - 1) / (most - 1))] for i in range(most)]


def changes(frames: Sequence[Frame]) -> int:
    """How often the cell was another one than in the epoch before."""
    return sum(a.cell != b.cell for a, b in pairwise(frames))


def chosen(
    genotype: Genotype | None, cell: str, rows: Sequence[str], ops: Sequence[str]
) -> set[tuple[int, int]]:
    """(row, operation) of every gene of a cell, in its table of shares."""
    if genotype is None or cell not in genotype.cells:
        return set()
    gene_cell = genotype.cells[cell]
    found = set()
    for i, node in enumerate(gene_cell.nodes):
        for gene in node:
            row = f"s{gene.source} > s{i + gene_cell.inputs}"
            if row in rows and gene.op in ops:
                found.add((rows.index(row), ops.index(gene.op)))
    return found


def span_of(frames: Sequence[Frame]) -> tuple[float, float]:
    """The least and the greatest share of all frames: the ends of the colours."""
    values = [v for f in frames for t in f.tables.values() for row in t for v in row]
    return min(values, default=0.0), max(values, default=1.0)


def slider(run: RunData, key: str, most: int) -> str:
    """The cell of a search with a slider over its epochs, rungs or trials, and the heat maps of one
    that moves alphas, as HTML.
    """
    history = history_of(run)
    noun = history.noun
    frames = kept_frames(history.frames, most)
    if not frames:
        return ""
    last = frames[-1]
    low, high = span_of(frames)
    names = {cell: run.names_of(cell, table) for cell, table in last.tables.items()}
    cells: dict[str, int] = {}
    drawings: list[dict[str, Any]] = []
    plain = []
    for frame in frames:
        if frame.cell not in cells:
            cells[frame.cell] = len(drawings)
            assert frame.genotype is not None
            drawings.append(frame_data(frame.genotype))
        plain.append(_frame(frame, cells[frame.cell], names))
    data = {
        "noun": noun, "total": history.total, "low": low, "high": high, "floor": _FLOOR,
        "cells": drawings, "frames": plain,
        "names": {cell: {"rows": r, "ops": o} for cell, (r, o) in names.items()},
        "texts": list(cells),
    }  # fmt: skip
    assert last.genotype is not None
    size = max(d["w"] for d in drawings), max(d["h"] for d in drawings)  # as the script has it
    said = _changed(history)
    packed = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    text = _words(last)
    controls = (
        f'<div class="play"><button type="button" class="go" aria-label="Play">play</button>'
        f'<input type="range" id="{key}-epoch" min="0" max="{len(frames) - 1}" '
        f'value="{len(frames) - 1}" aria-label="{noun.capitalize()}" '
        f'aria-valuetext="{noun} {last.epoch}">'
        f'<output for="{key}-epoch">{history.caption(last)}</output></div>'
    )
    maps = "".join(_maps(cell, names[cell], last, low, high) for cell in last.tables)
    shares = (
        "<h3>Shares of the operations</h3>"
        '<p class="sub">Each square is an edge: from the state of its row to that of its column. '
        "The stronger its colour, the greater the share; framed is what the cell takes.</p>"
        f"{maps}{_legend(low, high)}"
    )
    return (
        f'<div class="frames"><h3>{_HEADINGS[noun]}</h3><p class="sub">{said}</p>'
        f"{controls if len(frames) > 1 else ''}"
        f'<p class="genes"><code>{escape(text)}</code></p>'
        f'<div class="wide" tabindex="0" role="group" aria-label="The cell">'
        f"{cell_svg(last.genotype, size)}</div>"
        f"{shares if maps else ''}"
        f'<script type="application/json">{packed}</script></div>'
    )


def _changed(history: History) -> str:
    frames, noun = history.frames, history.noun
    if noun == "cell":
        count = f"{history.total} cell{'' if history.total == 1 else 's'}"
        return f"Of {count}, the best one so far, wherever it became another one."
    if len(frames) < 2:
        return ""
    times = changes(frames)
    if not times:
        return f"It was the same in all {len(frames)} {noun}s."
    last = max(b.epoch for a, b in pairwise(frames) if a.cell != b.cell)
    return f"It changed {times} time{'' if times == 1 else 's'}, in {noun} {last} the last time."


def _words(frame: Frame) -> str:
    return "" if frame.cell.startswith("{") else frame.cell


def _frame(
    frame: Frame, cell: int, names: dict[str, tuple[list[str], list[str]]]
) -> dict[str, Any]:
    tables = {n: [round(1e4 * v) for row in t for v in row] for n, t in frame.tables.items()}
    kept = {
        n: sorted(row * len(ops) + o for row, o in chosen(frame.genotype, n, rows, ops))
        for n, (rows, ops) in names.items()
    }
    return {"e": frame.epoch, "g": cell, "a": tables, "k": kept}


def _maps(
    cell: str, names: tuple[list[str], list[str]], frame: Frame, low: float, high: float
) -> str:
    rows, ops = names
    grid = grid_of(rows)
    table = frame.tables[cell]
    kept = chosen(frame.genotype, cell, rows, ops)
    width, height = _SIDE / grid.columns, _SIDE / grid.rows
    parts = [f"<h4>{escape(cell)} cell</h4>"] if len(frame.tables) > 1 else []
    parts.append(f'<div class="maps" data-cell="{escape(cell)}">')
    right = _SIDE + _EDGE + 2
    for o, op in enumerate(ops):
        squares = []
        for row, (down, across) in enumerate(grid.places):
            share = table[row][o]
            part = (share - low) / (high - low) if high > low else 0.5
            css = ' class="kept"' if (row, o) in kept else ""
            squares.append(
                f'<rect{css} x="{_EDGE + across * width:.1f}" y="{down * height:.1f}" '
                f'width="{width - 1.5:.1f}" height="{height - 1.5:.1f}" rx="2" '
                f'fill-opacity="{_FLOOR + (1 - _FLOOR) * part:.2f}">'
                f"<title>{escape(rows[row])}, {escape(op)}: {share:.3f}</title></rect>"
            )
        ticks = "".join(
            f'<text class="tick" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">'
            f"{escape(word)}</text>"
            for x, y, anchor, word in (
                (_EDGE - 4, height / 2 + 4, "end", grid.sides[0] if grid.ends[0] else ""),
                (_EDGE - 4, _SIDE - height / 2 + 4, "end", grid.sides[1] if grid.ends[0] else ""),
                (_EDGE + width / 2, _SIDE + 13, "middle", grid.ends[0]),
                (_EDGE + _SIDE - width / 2, _SIDE + 13, "middle", grid.ends[1]),
            )
            if word
        )
        parts.append(
            f'<figure><figcaption>{escape(op)}</figcaption><svg viewBox="0 0 {right:.0f} '
            f'{_SIDE + 18:.0f}" class="op-{css_name(op)}" role="img" aria-label="shares of '
            f'{escape(op)}">{"".join(squares)}{ticks}</svg></figure>'
        )
    return "".join([*parts, "</div>"])


def _legend(low: float, high: float) -> str:
    return (
        f'<p class="scale"><span>{low:.2f}</span><svg viewBox="0 0 120 10" aria-hidden="true">'
        + "".join(
            f'<rect x="{i * 10}" width="9" height="10" '
            f'fill-opacity="{_FLOOR + (1 - _FLOOR) * i / 11:.2f}"/>'
            for i in range(12)
        )
        + f"</svg><span>{high:.2f}</span></p>"
    )


def leading(run: RunData) -> str:
    """A chart of the share of every node's leading operation, `none` left out, over the epochs."""
    series: list[Series] = []
    many = len(run.frames[-1].tables) > 1 if run.frames else False
    for cell in run.frames[-1].tables if run.frames else ():
        rows, ops = run.names_of(cell, run.frames[-1].tables[cell])
        usable = [o for o, op in enumerate(ops) if op != NONE]
        targets = list(dict.fromkeys(row.rpartition(" > ")[2] for row in rows))
        for target in targets:
            own = [e for e, row in enumerate(rows) if row.rpartition(" > ")[2] == target]
            best = [
                (f.epoch, max((f.tables[cell][e][o], o) for e in own for o in usable))
                for f in run.frames
                if cell in f.tables and usable
            ]
            if best:
                points = [(float(epoch), share) for epoch, (share, _) in best]
                op = ops[best[-1][1][1]]
                name = f"{cell} {target} {op}" if many else f"{target} {op}"
                series.append(Series(label=name, points=points, css=f"c{len(series) % 8}"))
    if not series or len(run.frames) < 2:
        return ""
    return line_chart(
        series, label="share of the leading operation of each node", x_label=run.noun,
        y_label="share",
    )  # fmt: skip
