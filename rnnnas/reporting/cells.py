"""Cells for a page: the drawing of one as SVG in the page's colours, and as data for its slider."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rnnnas.draw.layout import arrange_all, colour
from rnnnas.draw.text_svg_dot import INLINE, as_svg, css_name
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.space import NONE


def cell_svg(genotype: Genotype, size: tuple[float, float] | None = None) -> str:
    """The cells as SVG whose colours are the page's variables.

    Args:
        size: width and height of the image, in whose middle they stand; their own by default.
    """
    svg = as_svg(genotype, "", INLINE)
    if size is None:
        return svg
    drawn = arrange_all(genotype)
    width, height = size
    left, top = (drawn.width - width) / 2, (drawn.height - height) / 2
    box = (
        f'width="{width:g}" height="{height:g}" viewBox="{left:.1f} {top:.1f} {width:g} {height:g}"'
    )
    return re.sub(r'width="[^"]*" height="[^"]*" viewBox="[^"]*"', box, svg, count=1)


def frame_data(genotype: Genotype) -> dict[str, Any]:
    """A drawing as plain numbers, for the script that shows one epoch after the other.

    w, h: size. c: captions, [x, y, text]. b: boxes, [x, y, w, h, kind, text], by their centres.
    l: lines, [kind, operation, path, corners of the arrow head or 0, label box or 0].
    """
    drawn = arrange_all(genotype)
    boxes, links, captions = [], [], []
    for cell in drawn.cells:
        if len(drawn.cells) > 1:
            captions.append([*map(_short, cell.caption), cell.name])
        for box in cell.boxes:
            boxes.append([*map(_short, (box.x, box.y, box.w, box.h)), box.kind, box.text])
        for link in sorted(cell.links, key=lambda link: link.kind != "concat"):
            path = "M" + _pair(link.curves[0][0])
            for _, b, c, d in link.curves:
                path += "C" + " ".join(map(_pair, (b, c, d)))
            head = 0 if link.kind == "concat" else " ".join(map(_pair, link.head))
            label = link.label
            place = [*map(_short, (label.x, label.y, label.w, label.h))] if label else 0
            links.append([link.kind, link.op, path, head, place])
    return {
        "w": _short(drawn.width), "h": _short(drawn.height), "c": captions, "b": boxes, "l": links,
    }  # fmt: skip


def _short(value: float) -> float | int:
    rounded = round(value, 1)
    return int(rounded) if rounded == int(rounded) else rounded


def _pair(point: tuple[float, float]) -> str:
    return f"{_short(point[0])} {_short(point[1])}"


def operations(genotypes: Sequence[Genotype]) -> list[str]:
    """The operations of these cells, each once, sorted."""
    cells = [cell for genotype in genotypes for cell in genotype.cells.values()]
    return sorted({gene.op for cell in cells for node in cell.nodes for gene in node})


def op_colours(ops: Sequence[str]) -> tuple[str, str, str]:
    """CSS of operations: the variables of light pages, those of dark ones, and a class each.

    On a dark ground the colours are mixed with white, so that they stand out as much.
    """
    light = "".join(f"--op-{css_name(op)}:{_shade(op)};" for op in ops)
    dark = "".join(f"--op-{css_name(op)}:{_lighter(_shade(op))};" for op in ops)
    classes = "".join(f".op-{css_name(op)}{{fill:var(--op-{css_name(op)})}}" for op in ops)
    return light, dark, classes


def _shade(op: str) -> str:
    return "#6b7385" if op == NONE else colour(op)


def _lighter(hexadecimal: str, share: float = 0.38) -> str:
    parts = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(p + (255 - p) * share):02x}" for p in parts)
