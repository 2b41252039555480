"""A genotype as text for a terminal, as SVG, and as Graphviz source. Standard library only."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

from rnnnas.cnn.dense.genotype import is_dense, parts_of
from rnnnas.draw.layout import (
    FAINT,
    FILLS,
    INK,
    MARGIN,
    SUBSCRIPT,
    TEXT_SIZE,
    TITLE_SIZE,
    Box,
    Drawing,
    Graph,
    Link,
    arrange_all,
    colour,
    graph,
    graph_of,
)
from rnnnas.nas.genotype import RECURRENT, CellGene, Genotype

_COLUMNS = 80
_PALE = "#c2c8d1"  # of edges that stand back


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """The colours of an SVG drawing. paper: behind it; "" for none. op: of an operation."""

    ink: str
    faint: str
    paper: str
    fills: Mapping[str, str]
    op: Callable[[str], str]


def css_name(op: str) -> str:
    """An operation's name as part of a name in CSS."""
    return re.sub("[^a-zA-Z0-9_-]", "-", op)


PAPER = Theme(ink=INK, faint=FAINT, paper="#ffffff", fills=FILLS, op=colour)
# For a page that declares these variables for each of its themes.
INLINE = Theme(
    ink="var(--ink)", faint="var(--faint)", paper="",
    fills={"input": "var(--wash)", "node": "var(--card)", "output": "var(--wash)"},
    op=lambda op: f"var(--op-{css_name(op)})",
)  # fmt: skip


def as_text(genotype: Genotype, title: str = "") -> str:
    """The cells in plain characters, 80 columns wide, ending in a line feed.

    A recurrent cell is a tree that starts at s0: on every branch the operation, then the state it
    makes; '*' marks the states whose mean is the output; the level is the number of operations
    since s0. Its short form, which `read_genotype` accepts, follows. A cell of an image network, or
    one whose nodes take several edges, is a list of its states, each with what it is. A network of
    dense blocks is a list of these.
    """
    parts = [_wrap(" ".join(title.split()))] if title.strip() else []
    if is_dense(genotype.cells):
        return "\n\n".join([*parts, _blocks(genotype)]) + "\n"
    for name, cell in genotype.cells.items():
        g = graph(cell)
        tree = cell.inputs == 1 and all(len(node) == 1 for node in cell.nodes)
        parts.append(_tree(name, cell, g) if tree else _sums(name, cell, g))
        if name == RECURRENT and cell.inputs == 1:
            parts.append(_wrap(genotype.to_text()))
    return "\n\n".join(parts) + "\n"


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, _COLUMNS, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _heading(name: str, cell: CellGene, g: Graph, output: str) -> str:
    levels = max(g.levels[f"s{cell.inputs + i}"] for i in range(len(cell.nodes)))
    counts = [
        f"{count} {noun}{'' if count == 1 else 's'}"
        for count, noun in ((len(cell.nodes), "node"), (levels, "level"))
    ]
    states = ", ".join(f"s{state}" for state in sorted(cell.concat))
    return _wrap(f"{name} cell: {counts[0]}, {counts[1]}, {output}({states})", "    ")


def _tree(name: str, cell: CellGene, g: Graph) -> str:
    children: dict[str, list[tuple[str, str]]] = {state: [] for state in g.texts}
    for edge in g.edges:
        if edge.kind == "op":
            children[edge.source].append((edge.op, edge.target))
    output = {edge.source for edge in g.edges if edge.kind == "concat"}
    # A deep cell gets narrower steps; one too deep even for those loses the trunk at the left.
    room = max(4, _COLUMNS - 20 - max(len(edge.op) for edge in g.edges))
    step = max(1, min(4, room // max(g.levels.values())))
    fork, last, through = "|---"[:step], "`---"[:step], "|   "[:step]
    if step == 4:
        fork, last = "|-- ", "`-- "
    rows = [(0, "s0 = gated tanh(x_t, h_{t-1})")]

    def branches(state: str, stem: str) -> list[tuple[str, str, str, bool]]:
        below = children[state]
        return [(op, child, stem, i == len(below) - 1) for i, (op, child) in enumerate(below)]

    waiting = branches("s0", "")
    while waiting:
        op, state, stem, final = waiting.pop(0)
        mark = " *" if state in output else ""
        branch = (stem + (last if final else fork))[-room:]
        rows.append((g.levels[state], f"{branch}{op} -> {state}{mark}"))
        waiting[:0] = branches(state, stem + (" " * step if final else through))
    lines = [_heading(name, cell, g, "h_t = mean"), "", "level"]
    return "\n".join(lines + [f"{level:5d}  {row}" for level, row in rows])


def _sums(name: str, cell: CellGene, g: Graph) -> str:
    recurrent = cell.inputs == 1
    output = "h_t = mean" if recurrent else "c_k = concat"
    lines = [_heading(name, cell, g, output), "", "level"]
    lines += ["    0  s0 = gated tanh(x_t, h_{t-1})"] if recurrent else []
    for state, kind in g.kinds.items():
        if kind == "node" and state != f"s{cell.inputs - 1}":
            terms = [f"{e.op}({e.source})" for e in g.edges if e.target == state]
            if recurrent and cell.join == "mean" and len(terms) > 1:
                terms = [f"mean({', '.join(terms)})"]
            mark = " *" if any(e.source == state and e.kind == "concat" for e in g.edges) else ""
            row = f"{g.levels[state]:5d}  {state} = {' + '.join(terms)}{mark}"
            lines.append(_wrap(row, " " * 12))
    return "\n".join(lines)


def _blocks(genotype: Genotype) -> str:
    found = parts_of(genotype)
    layers = sum(len(part.ops) for part in found[1:-1])
    lines = [f"dense network: {len(found) - 2} blocks, {layers} layers", ""]
    lines.append("block  channels   size  operations, one after the other")
    scale = 1
    for part in found:
        scale *= part.stride
        size = "1" if scale == 1 else f"1/{scale}"
        row = f"{part.number or part.kind:>5}  {part.width:8}  {size:>5}  {', '.join(part.ops)}"
        lines.append(_wrap(row, " " * 24))
    return "\n".join(lines)


def as_svg(genotype: Genotype, title: str = "", theme: Theme = PAPER) -> str:
    """The cells as one SVG document: edges in their operation's colour, with its name.

    Every state is a group of class "state" with `data-name`; every edge one of class "edge" with
    `data-source`, `data-target` and `data-op`. The background is the theme's paper: white, in dark
    browsers too, unless another theme is given.
    """
    picture = arrange_all(genotype, title)
    width, height = _number(picture.width), _number(picture.height)
    kinds = " and ".join(genotype.cells)
    name = plain_text(" ".join(title.split()) or f"{kinds} cell")
    label = f"{name}: {'; '.join(_spoken(*named) for named in genotype.cells.items())}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{_attribute(label)}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="{TEXT_SIZE}" fill="{theme.ink}">',
        f"<title>{escape(name, quote=False)}</title>",
    ]
    if theme.paper:
        lines.append(f'<rect width="{width}" height="{height}" rx="12" fill="{theme.paper}"/>')
    if picture.title:
        lines.append(
            f'<text class="title" x="{_number(MARGIN)}" y="{_number(MARGIN + TITLE_SIZE - 3)}" '
            f'font-size="{TITLE_SIZE}" font-weight="bold">'
            f"{escape(plain_text(picture.title), quote=False)}</text>"
        )
    for cell in picture.cells:
        lines += svg_cell(cell, theme, caption=len(picture.cells) > 1)
    return "\n".join([*lines, "</svg>"]) + "\n"


def svg_cell(
    cell: Drawing, theme: Theme = PAPER, *, caption: bool = False,
    pale: Callable[[str, str, str], bool] = lambda source, target, op: False,
) -> list[str]:  # fmt: skip
    """The lines of SVG that draw one cell. pale: whether an edge, by (source, target, operation),
    stands back behind the others.
    """
    lines = [f'<g class="cell" data-name="{_attribute(cell.name)}">']
    if caption:
        x, y = map(_number, cell.caption)
        text = escape(plain_text(cell.name), quote=False)
        lines.append(f'<text class="caption" x="{x}" y="{y}" font-weight="bold">{text}</text>')
    # Faint lines first: what matters lies above them.
    for link in sorted(cell.links, key=lambda link: link.kind != "concat"):
        lines += _svg_link(link, theme, pale(link.source, link.target, link.op))
    for box in cell.boxes:
        lines += [
            f'<g class="state" data-name="{_attribute(box.name)}">',
            _rectangle(box, 7.0, theme.fills[box.kind], theme.ink, 1.4),
            _centred(box),
            "</g>",
        ]
    return [*lines, "</g>"]


def _svg_link(link: Link, theme: Theme, pale: bool = False) -> list[str]:
    ends = {"input": theme.ink, "concat": theme.faint}
    stroke = ends.get(link.kind) or (_PALE if pale else theme.op(link.op))
    thin = link.kind == "concat"
    path = "M" + _point(link.curves[0][0])
    for _, b, c, d in link.curves:
        path += f" C{_point(b)} {_point(c)} {_point(d)}"
    lines = [
        f'<g class="edge" data-kind="{link.kind}" data-source="{_attribute(link.source)}" '
        f'data-target="{_attribute(link.target)}" data-op="{_attribute(link.op)}">',
        f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{1 if thin else 2}"/>',
    ]
    if not thin:
        head = " ".join(map(_point, link.head))
        lines.append(f'<polygon points="{head}" fill="{stroke}"/>')
    if link.label:
        box = _rectangle(link.label, 9.0, theme.fills["node"], stroke, 1.4)
        lines += [box, _centred(link.label)]
    return [*lines, "</g>"]


def _rectangle(box: Box, radius: float, fill: str, stroke: str, width: float) -> str:
    return (
        f'<rect x="{_number(box.x - box.w / 2)}" y="{_number(box.y - box.h / 2)}" '
        f'width="{_number(box.w)}" height="{_number(box.h)}" rx="{_number(radius)}" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="{width}"/>'
    )


def _centred(box: Box) -> str:
    """The text of a box in its middle, pieces of it as subscripts."""
    drop = 0.25 * TEXT_SIZE
    spans, lowered = [], False
    for piece, sub in box.pieces:
        shift = f' dy="{_number(drop if sub else -drop)}"' if sub != lowered else ""
        size = f' font-size="{_number(TEXT_SIZE * SUBSCRIPT)}"' if sub else ""
        text = escape(plain_text(piece), quote=False)
        spans.append(f"<tspan{shift}{size}>{text}</tspan>" if shift or size else text)
        lowered = sub
    x, y = _number(box.x), _number(box.y + 0.35 * TEXT_SIZE)
    return f'<text x="{x}" y="{y}" text-anchor="middle">{"".join(spans)}</text>'


def _spoken(name: str, cell: CellGene) -> str:
    """A cell as one sentence for a screen reader."""
    g = graph_of(name, cell)
    steps = [f"{e.target} = {e.op} of {e.source}" for e in g.edges if e.kind == "op"]
    output = next(e.target for e in g.edges if e.kind == "concat")
    states = ", ".join(e.source for e in g.edges if e.kind == "concat")
    return ", ".join([*steps, f"{output} from {states}"])


def plain_text(text: str) -> str:
    """`text` with what XML 1.0 cannot hold (section 2.2) replaced."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _attribute(text: str) -> str:
    return escape(plain_text(text), quote=True)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _point(point: tuple[float, float]) -> str:
    return f"{_number(point[0])},{_number(point[1])}"


def as_dot(genotype: Genotype, title: str = "") -> str:
    """Graphviz source: one cluster a cell; node names are 'cell/state'."""
    lines = [
        "digraph genotype {",
        '  graph [rankdir="LR", labelloc="t", fontname="Helvetica"'
        + (f", label={_quoted(' '.join(title.split()))}];" if title.strip() else "];"),
        '  node [shape="box", style="rounded", fontname="Helvetica"];',
        '  edge [fontname="Helvetica"];',
    ]
    for name, cell in genotype.cells.items():
        g = graph_of(name, cell)
        lines.append(f"  subgraph {_quoted(f'cluster_{name}')} {{")
        lines.append(f"    label={_quoted(name)};")
        for state, text in g.texts.items():
            shown = state if g.kinds[state] != "output" else text.replace("{", "").replace("}", "")
            lines.append(f"    {_quoted(f'{name}/{state}')} [label={_quoted(shown)}];")
        for edge in g.edges:
            ends = f"{_quoted(f'{name}/{edge.source}')} -> {_quoted(f'{name}/{edge.target}')}"
            if edge.kind == "op":
                style = f' [label={_quoted(edge.op)}, color="{colour(edge.op)}"]'
            else:
                style = ' [color="gray", arrowhead="none"]' if edge.kind == "concat" else ""
            lines.append(f"    {ends}{style};")
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    """A double-quoted Graphviz string; backslashes stand for themselves."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\ufffd")
    return '"' + text.replace("\n", "\\n").replace("\r", "\\r") + '"'
