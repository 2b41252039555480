r"""A genotype as TikZ, for papers: what `\usepackage{tikz}` needs and nothing more."""

from __future__ import annotations

import re

from rnnnas.draw.layout import FAINT, FILLS, INK, Box, Drawing, arrange_all, colour, runs
from rnnnas.nas.genotype import Genotype

_UNIT = 0.6  # points a pixel of the layout: a cell of eight nodes fills a page's width
_SPECIAL = re.compile(r"[\\{}$&#%_^~]")
_ESCAPES = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}


def as_tikz(genotype: Genotype, title: str = "") -> str:
    """The cells as a `tikzpicture`, with the colours that it uses defined before it."""
    picture = arrange_all(genotype)
    ops = sorted({link.op for cell in picture.cells for link in cell.links if link.kind == "op"})
    names = {op: f"cell{''.join(c for c in op if c.isalpha())}{i}" for i, op in enumerate(ops)}
    lines = [f"% {' '.join(title.split())}"] if title.strip() else []
    lines.append("% in the preamble: \\usepackage{tikz}")
    colours = {"cellink": INK, "cellfaint": FAINT, "cellfill": FILLS["input"]}
    colours |= {name: colour(op) for op, name in names.items()}
    lines += [f"\\definecolor{{{n}}}{{HTML}}{{{c[1:].upper()}}}" for n, c in colours.items()]
    lines.append(f"\\begin{{tikzpicture}}[x={_UNIT}pt,y=-{_UNIT}pt,line width=.8pt,"
                 "every node/.style={font=\\scriptsize,inner sep=0pt}]")  # fmt: skip
    for cell in picture.cells:
        if len(picture.cells) > 1:
            lines.append(f"\\node[anchor=west] at {_point(cell.caption)} "
                         f"{{\\textbf{{{escaped(cell.name)}}}}};")  # fmt: skip
        lines += _cell(cell, names)
    return "\n".join([*lines, "\\end{tikzpicture}"]) + "\n"


def _cell(cell: Drawing, names: dict[str, str]) -> list[str]:
    lines = []
    for link in sorted(cell.links, key=lambda link: link.kind != "concat"):
        ink = {"concat": "cellfaint", "input": "cellink"}.get(link.kind) or names[link.op]
        path = _point(link.curves[0][0])
        for _, b, c, d in link.curves:
            path += f" .. controls {_point(b)} and {_point(c)} .. {_point(d)}"
        thin = ",line width=.4pt" if link.kind == "concat" else ""
        lines.append(f"\\draw[{ink}{thin}] {path};")
        if link.kind != "concat":
            corners = " -- ".join(map(_point, link.head))
            lines.append(f"\\fill[{ink}] {corners} -- cycle;")
        if link.label:
            lines.append(_box(link.label, ink, "white", 5))
    for box in cell.boxes:
        fill = "white" if box.kind == "node" else "cellfill"
        lines.append(_box(box, "cellink", fill, 4))
    return lines


def _box(box: Box, ink: str, fill: str, corners: int) -> str:
    size = f"minimum width={box.w * _UNIT:.1f}pt,minimum height={box.h * _UNIT:.1f}pt"
    text = escaped(box.text) if box.kind == "label" else _maths(box.text)
    return (
        f"\\node[draw={ink},fill={fill},rounded corners={corners}pt,{size}] "
        f"at {_point((box.x, box.y))} {{{text}}};"
    )


def _maths(text: str) -> str:
    """'h_{t} = mean' as LaTeX: a letter before a subscript in italics, words upright."""
    parts = []
    pieces = runs(text)
    for i, (piece, sub) in enumerate(pieces):
        if sub:
            continue
        if i + 1 < len(pieces) and pieces[i + 1][1]:
            parts.append(f"{escaped(piece[:-1])}${piece[-1]}_{{{pieces[i + 1][0]}}}$")
        else:
            parts.append(escaped(piece))
    return "".join(parts)


def escaped(text: str) -> str:
    """`text` with what LaTeX reads as commands escaped."""
    return _SPECIAL.sub(lambda found: _ESCAPES.get(found[0], "\\" + found[0]), text)


def _point(point: tuple[float, float]) -> str:
    return f"({point[0]:.1f},{point[1]:.1f})"
