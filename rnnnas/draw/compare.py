"""Two cells beside each other, with what they have in common and what not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from html import escape
from itertools import zip_longest

from rnnnas.draw.layout import INK, MARGIN, TEXT_SIZE, TITLE_SIZE, Drawing, arrange
from rnnnas.draw.text_svg_dot import plain_text, svg_cell
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import CellGene, Gene, Genotype

_BESIDE = 1800.0  # pixels that two cells may have together to stand side by side


def common(first: CellGene, second: CellGene) -> list[Counter[Gene]]:
    """For every node that both cells have, by its number, the genes that it has in both, and how
    often.
    """
    pairs = zip(first.nodes, second.nodes, strict=False)
    return [Counter(one) & Counter(other) for one, other in pairs]


def _pairs(first: Genotype, second: Genotype) -> dict[str, tuple[CellGene, CellGene]]:
    if set(first.cells) != set(second.cells):
        raise UsageError(
            f"cells {sorted(first.cells)} and {sorted(second.cells)} cannot be compared: they are "
            "of different kinds of networks"
        )
    return {name: (cell, second.cells[name]) for name, cell in first.cells.items()}


def compare_text(first: Genotype, second: Genotype, names: tuple[str, str]) -> str:
    """A line a node with its genes in both cells, and a mark where they differ.

    Nodes are compared by their number; another order of the same nodes is another cell here.

    Raises:
        UsageError: where the genotypes are of different kinds of networks.
    """
    parts = []
    for name, (one, other) in _pairs(first, second).items():
        rows = [("", *map(plain_text, names))]
        for i, (a, b) in enumerate(zip_longest(one.nodes, other.nodes, fillvalue=())):
            rows.append((f"s{i + one.inputs}", _words(a), _words(b)))
        if sorted(one.concat) != sorted(other.concat):
            rows.append(("output", _concat(one), _concat(other)))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join(f"{word:<{w}}" for word, w in zip(row, widths, strict=True))
            + ("" if i == 0 or row[1] == row[2] else "  differs")
            for i, row in enumerate(rows)
        ]
        same = sum(genes.total() for genes in common(one, other))
        total = max(sum(map(len, cell.nodes)) for cell in (one, other))
        lines.append(f"{same} of {total} genes of the {name} cell are the same")
        parts.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(parts) + "\n"


def _words(node: tuple[Gene, ...]) -> str:
    return " + ".join(f"{op}(s{source})" for op, source in sorted(node)) or "-"


def _concat(cell: CellGene) -> str:
    return " ".join(f"s{state}" for state in sorted(cell.concat))


def compare_svg(first: Genotype, second: Genotype, names: tuple[str, str]) -> str:
    """Both genotypes as one SVG, side by side or, where they are wide, one below the other.

    What differs has its colours; genes that both have are pale.

    Raises:
        UsageError: where the genotypes are of different kinds of networks.
    """
    pairs = _pairs(first, second)
    head = TITLE_SIZE + 12.0
    top, wide = MARGIN + head, 0.0
    groups: list[str] = []
    for name, (one, other) in pairs.items():
        drawings = [arrange(name, cell, 0.0) for cell in (one, other)]
        beside = sum(d.width for d in drawings) + 3 * MARGIN <= _BESIDE
        left, bottom = 0.0, top
        for drawing, whose in zip(drawings, names, strict=True):
            same = common(one, other)
            words = whose if len(pairs) == 1 else f"{whose}, {name}"
            groups += _placed(drawing, same, one.inputs, words, left, top, head)
            wide = max(wide, left + drawing.width + MARGIN)
            bottom = max(bottom, top + drawing.height)
            if beside:
                left += drawing.width + 2 * MARGIN
            else:
                top = bottom + MARGIN + head
        top = bottom + MARGIN + head
    height = top - head
    label = escape(plain_text(f"{names[0]} and {names[1]}: {_counts(pairs)}"), quote=True)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {wide:.0f} {height:.0f}" role="img" aria-label="{label}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="{TEXT_SIZE}" fill="{INK}">',
        f"<title>{label}</title>",
        f'<rect width="{wide:.0f}" height="{height:.0f}" rx="12" fill="#ffffff"/>',
        *groups,
        "</svg>",
    ]) + "\n"  # fmt: skip


def _counts(pairs: Mapping[str, tuple[CellGene, CellGene]]) -> str:
    same = sum(genes.total() for one, other in pairs.values() for genes in common(one, other))
    total = sum(max(sum(map(len, cell.nodes)) for cell in pair) for pair in pairs.values())
    return f"{same} of {total} genes are the same"


def _placed(
    drawing: Drawing, same: list[Counter[Gene]], inputs: int, words: str, left: float, top: float,
    head: float,
) -> list[str]:  # fmt: skip
    """A drawing at its place under its name; what the other has, too, is pale."""
    name = escape(plain_text(words), quote=False)
    lines = [
        f'<text x="{left + MARGIN:.0f}" y="{top - head + TITLE_SIZE - 3:.0f}" '
        f'font-size="{TITLE_SIZE}" font-weight="bold">{name}</text>',
        f'<g transform="translate({left:.1f} {top:.1f})">',
    ]
    return [*lines, *svg_cell(drawing, pale=_pale(same, inputs)), "</g>"]


def _pale(same: list[Counter[Gene]], inputs: int) -> Callable[[str, str, str], bool]:
    """Whether an edge (source, target, operation), by the states' names, is in both cells."""

    def number(state: str) -> int:
        digits = state.removeprefix("s")
        return int(digits) if digits.isdecimal() else {"c_{k-2}": 0, "c_{k-1}": 1}.get(state, -1)

    def pale(source: str, target: str, op: str) -> bool:
        node = number(target) - inputs
        return 0 <= node < len(same) and Gene(op, number(source)) in same[node]

    return pale
