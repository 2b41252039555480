"""Where the parts of a drawn cell lie: a layered left-to-right layout, shared by SVG and pixels.

States stand in columns by their depth, the operations of edges in columns of their own between
them. An edge that passes a column gets a lane there, as if it were a box, and bends only between
columns: so no line can run through a box or a label, and no two boxes can overlap. (The scheme is
that of Sugiyama, Tagawa and Toda 1981; the heights are least squares under the order found.)

Lengths are in pixels at scale 1; y grows downwards. Standard library only.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rnnnas.cnn.dense.genotype import is_dense
from rnnnas.nas.genotype import CellGene, Genotype
from rnnnas.nas.operations import colour_of

MARGIN = 20.0
TITLE_SIZE = 15
TEXT_SIZE = 12
SUBSCRIPT = 0.75  # size of a subscript in units of its text's size
_EDGE = re.compile(r"s(\d+)\s*[>→]\s*s(\d+)")
_NODE_HEIGHT = 28.0
_LABEL_HEIGHT = 20.0
_TITLE_LENGTH = 100
_STEPS = 250  # of the relaxation of heights: what it leaves uneven is below a pixel
# Colour-blind safe (Okabe and Ito 2008); kernels of one kind share a hue and differ in lightness.
_PALETTE = {
    "skip_connect": "#cc79a7",
    "max_pool_3x3": "#e69f00",
    "avg_pool_3x3": "#56b4e9",
    "sep_conv_3x3": "#0072b2",
    "sep_conv_5x5": "#004b75",
    "sep_conv_7x7": "#002740",
    "conv_7x1_1x7": "#009e73",
    "dil_conv_3x3": "#d55e00",
    "dil_conv_5x5": "#8f3f00",
}
_OTHERS = ("#009e73", "#6a3d9a", "#8a6d00", "#7a7a7a")
INK = "#1f2430"  # text, outlines and the edges into s0
FAINT = "#9aa1ad"  # lines from the states to the output
FILLS = {"input": "#eef1f5", "node": "#ffffff", "output": "#eef1f5"}


def colour(op: str) -> str:
    """The colour '#rrggbb' of an operation's edges; an unknown operation always gets the same."""
    known = _PALETTE.get(op) or colour_of(op)
    return known or _OTHERS[zlib.crc32(op.encode("utf-8", "replace")) % len(_OTHERS)]


Pieces = list[tuple[str, bool]]  # parts of a text, each with whether it is a subscript


def runs(text: str) -> Pieces:
    """Split 'h_{t-1} x' into its pieces."""
    pieces = re.split(r"_\{([^}]*)\}", text)
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece]


def text_width(pieces: Pieces, size: float) -> float:
    """An upper estimate of a text's width in an ordinary sans-serif font, in pixels."""
    return sum(
        _advance(letter) * size * (SUBSCRIPT if sub else 1.0)
        for piece, sub in pieces
        for letter in piece
    )


def _advance(letter: str) -> float:
    """Ample width of a letter, in units of its size."""
    if ord(letter) > 0x2E7F:  # ideographs and what comes after them
        return 1.05
    return 0.9 if letter in "mwMW@%" else 0.72 if letter.isupper() else 0.58


Point = tuple[float, float]
Cubic = tuple[Point, Point, Point, Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A state, the output or an edge's label: centre (x, y) and size (w, h)."""

    name: str
    text: str
    kind: str  # "input", "node", "output" or "label"
    x: float
    y: float
    w: float
    h: float

    @property
    def pieces(self) -> Pieces:
        """Its text; an operation's name is shown as it is written."""
        return [(self.text, False)] if self.kind == "label" else runs(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An edge: cubic curves that join end to end, left to right; a label where it has an op."""

    source: str
    target: str
    op: str  # empty for the edges into s0 and into the output
    kind: str  # "op", "input" or "concat"
    curves: tuple[Cubic, ...]
    label: Box | None = None

    @property
    def colour(self) -> str:
        """The colour '#rrggbb' of its line."""
        return colour(self.op) if self.kind == "op" else INK if self.kind == "input" else FAINT

    @property
    def head(self) -> tuple[Point, Point, Point]:
        """The corners of its arrow head; every edge arrives from the left, level."""
        x, y = self.curves[-1][3]
        return (x, y), (x - 8.0, y - 4.0), (x - 8.0, y + 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One cell laid out: its caption, boxes and links, and the lower right corner they reach."""

    name: str
    caption: Point
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All cells of a genotype, one below the other, with margins."""

    title: str
    cells: tuple[Drawing, ...]
    width: float
    height: float


class Edge(NamedTuple):
    """An edge of the drawn graph, by the states' names."""

    source: str
    target: str
    op: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A cell as names: what every state is called, its level (longest path), and all edges."""

    texts: dict[str, str]
    kinds: dict[str, str]
    levels: dict[str, int]
    edges: tuple[Edge, ...]


def graph(cell: CellGene, *, recurrent: bool = True) -> Graph:
    """The states of `cell` with their inputs and output, in order, and the edges between them.

    One input state makes a recurrent cell: x_t and h_{t-1} enter s0, at level 0, and the output is
    h_t, the mean. Two make a cell of an image network: c_{k-2} and c_{k-1}, at level 0, and c_k.
    Where a cell of one input is not `recurrent`, it is a block of an image network: in, out.
    """
    edges = []
    if cell.inputs == 1 and not recurrent:
        texts, kinds, levels = {"in": "in"}, {"in": "input"}, {"in": 0}
        names, output, meaning = ["in"], "out", "out"
    elif cell.inputs == 1:
        texts = {"x_t": "x_{t}", "h_{t-1}": "h_{t-1}", "s0": "s_{0}"}
        kinds = {"x_t": "input", "h_{t-1}": "input", "s0": "node"}
        levels = {"x_t": -1, "h_{t-1}": -1, "s0": 0}
        edges += [Edge("x_t", "s0", "", "input"), Edge("h_{t-1}", "s0", "", "input")]
        names, output, meaning = ["s0"], "h_t", "h_{t} = mean"
    else:
        names, output, meaning = ["c_{k-2}", "c_{k-1}"], "c_k", "c_{k} = concat"
        texts = {name: name for name in names}
        kinds = dict.fromkeys(names, "input")
        levels = dict.fromkeys(names, 0)
    for node in cell.nodes:
        name = f"s{len(names)}"
        texts[name], kinds[name] = f"s_{{{len(names)}}}", "node"
        edges += [Edge(names[source], name, op, "op") for op, source in node]
        levels[name] = 1 + max(levels[names[source]] for _, source in node)
        names.append(name)
    edges += [Edge(names[state], output, "", "concat") for state in sorted(cell.concat)]
    texts[output], kinds[output] = meaning, "output"
    levels[output] = 1 + max(levels.values())
    return Graph(texts=texts, kinds=kinds, levels=levels, edges=tuple(edges))


def graph_of(name: str, cell: CellGene) -> Graph:
    """`graph` of the cell of that name in a genotype."""
    return graph(cell, recurrent=not is_dense({name: cell}))


# Columns of boxes and lanes: an order with few edge crossings, then heights with few bends.


@dataclass(slots=True, eq=False)
class Item:
    """What stands in a column: a state, a label, or the lane of an edge that passes."""

    width: float
    height: float
    lane: bool = False
    y: float = 0.0
    left: list[tuple[Item, float]] = field(default_factory=list)  # neighbours and their pull
    right: list[tuple[Item, float]] = field(default_factory=list)


Columns = list[list[Item]]


def join(a: Item, b: Item, kind: str) -> None:
    # Straightness matters most where an edge merely passes (Gansner et al. 1993, section 4.2).
    pull = (8.0 if a.lane and b.lane else 2.0) * (0.25 if kind == "concat" else 1.0)
    a.right.append((b, pull))
    b.left.append((a, pull))


def _pair_crossings(a: list[tuple[Item, float]], b: list[tuple[Item, float]]) -> float:
    """Weight of the crossings of two neighbours' edges on one side, the first being above."""
    return sum(p * q for u, p in a for v, q in b if u.y > v.y)


def _renumber(column: list[Item]) -> None:
    for place, item in enumerate(column):
        item.y = float(place)


def order(columns: Columns) -> None:
    """Permute every column to lessen crossings: by barycentres, in both directions; the best stays.

    (Swaps of neighbours besides took only one crossing in twenty more.)
    """

    def crossings() -> float:
        return sum(
            _pair_crossings(a.right, b.right)
            for column in columns
            for i, a in enumerate(column)
            for b in column[i + 1 :]
        )

    for column in columns:
        _renumber(column)
    best, kept = crossings(), [list(column) for column in columns]
    for sweep in range(12):
        if best == 0:
            break
        forward = sweep % 2 == 0
        for column in columns if forward else columns[::-1]:
            places = {}
            for item in column:
                near = item.left if forward else item.right
                pull = sum(p for _, p in near)
                places[id(item)] = sum(o.y * p for o, p in near) / pull if pull else item.y
            column.sort(key=lambda item: places[id(item)])  # noqa: B023 (used at once)
            _renumber(column)
        found = crossings()
        if found < best - 1e-9:
            best, kept = found, [list(column) for column in columns]
    columns[:] = kept


def _distance(upper: Item, lower: Item) -> float:
    """Least distance of two neighbours' centres in a column."""
    gap = 8.0 if upper.lane and lower.lane else 12.0
    return (upper.height + lower.height) / 2 + gap


class _Gap(NamedTuple):
    """In some column, block `lower` stands at least `distance` below block `upper`."""

    upper: int
    lower: int
    distance: float


def _descent(count: int, gaps: list[_Gap]) -> list[int] | None:
    """An order of the blocks in which every gap goes forward; None where they go in circles."""
    above = [0] * count
    below: list[list[int]] = [[] for _ in range(count)]
    for gap in gaps:
        above[gap.lower] += 1
        below[gap.upper].append(gap.lower)
    free = [block for block in range(count) if not above[block]]
    for block in free:  # grows as it is read
        for lower in below[block]:
            above[lower] -= 1
            if not above[lower]:
                free.append(lower)
    return free if len(free) == count else None


def _blocks(columns: Columns, groups: list[list[Item]]) -> dict[int, int]:
    """The block of every item, by its id: each group is one, unless the columns' order forbids."""
    block = {id(item): i for i, item in enumerate(item for column in columns for item in column)}
    for group in groups:
        joined = {block[id(item)] for item in group}
        if len(joined) > 1:
            trial = {key: min(joined) if b in joined else b for key, b in block.items()}
            if _descent(len(block), _gaps(columns, trial)) is not None:
                block = trial
    return block


def _gaps(columns: Columns, block: dict[int, int]) -> list[_Gap]:
    """What keeps blocks apart: for every two that are neighbours somewhere, their widest gap."""
    widest: dict[tuple[int, int], float] = {}
    for column in columns:
        for a, b in zip(column, column[1:], strict=False):
            pair = block[id(a)], block[id(b)]
            widest[pair] = max(widest.get(pair, 0.0), _distance(a, b))
    return [_Gap(*pair, distance) for pair, distance in widest.items()]


def settle(columns: Columns, groups: list[list[Item]]) -> None:
    """Set every item's y: neighbours pull one another to one height, gaps keep them apart.

    The items of a group get the very same height where the order allows it; earlier groups first.
    """
    block = _blocks(columns, groups)
    gaps = _gaps(columns, block)
    pulls = [
        (block[id(item)], block[id(other)], pull)
        for column in columns
        for item in column
        for other, pull in item.right
        if block[id(item)] != block[id(other)]
    ]
    total = [1e-9] * len(block)
    for a, b, pull in pulls:
        total[a] += pull
        total[b] += pull
    y = [0.0] * len(block)
    for step in range(_STEPS):
        towards = [0.0] * len(y)
        for a, b, pull in pulls:
            towards[a] += pull * (y[b] - y[a])
            towards[b] += pull * (y[a] - y[b])
        pace = 0.7 * (1 - step / _STEPS)
        y = [at + pace * t / w for at, t, w in zip(y, towards, total, strict=True)]
        for _ in range(4):
            for upper, lower, distance in gaps:
                lack = distance - (y[lower] - y[upper])
                if lack > 0:
                    # What is held firmly yields less; any other share would set the cell adrift.
                    share = total[lower] / (total[upper] + total[lower])
                    y[upper] -= lack * share
                    y[lower] += lack * (1 - share)
    # What is still too close by a fraction of a pixel is pushed down, once and for all.
    place = {block: i for i, block in enumerate(_descent(len(y), gaps) or ())}
    for upper, lower, distance in sorted(gaps, key=lambda gap: place[gap.upper]):
        y[lower] = max(y[lower], y[upper] + distance)
    for column in columns:
        for item in column:
            item.y = y[block[id(item)]]


def _columns(g: Graph) -> tuple[Columns, dict[str, Item], list[list[Item]]]:
    """Fill the columns: the columns, the item of every state, and the chain of every edge."""
    first = min(g.levels.values())
    labelled = {g.levels[edge.target] for edge in g.edges if edge.kind == "op"}
    column, count = {}, 0
    for level in range(first, max(g.levels.values()) + 1):
        count += level in labelled  # a column of labels stands before the states they lead to
        column[level] = count
        count += 1
    incoming = {name: sum(edge.target == name for edge in g.edges) for name in g.levels}
    items = {}
    for name, kind in g.kinds.items():
        width = max(34.0, text_width(runs(g.texts[name]), TEXT_SIZE) + 18)
        height = max(_NODE_HEIGHT, 6.0 * incoming[name] + 8 if kind == "output" else 0.0)
        items[name] = Item(width, height)
    chains = []
    for edge in g.edges:
        chain = [items[edge.source]]
        start, stop = column[g.levels[edge.source]] + 1, column[g.levels[edge.target]]
        for at in range(start, stop):
            if edge.kind == "op" and at == stop - 1:
                chain.append(Item(text_width([(edge.op, False)], TEXT_SIZE) + 16, _LABEL_HEIGHT))
            else:
                chain.append(Item(0.0, 2.0, lane=True))
        chain.append(items[edge.target])
        for a, b in zip(chain, chain[1:], strict=False):
            join(a, b, edge.kind)
        chains.append(chain)
    # Depth first gives an order without any crossing where the cell is a tree.
    columns: Columns = [[] for _ in range(count)]
    seen: set[int] = set()

    ahead = [(items[name], 0) for name, kind in g.kinds.items() if kind == "input"][::-1]
    while ahead:
        item, at = ahead.pop()
        if id(item) not in seen:
            seen.add(id(item))
            columns[at].append(item)
            ahead += [(other, at + 1) for other, _ in reversed(item.right)]
    return columns, items, chains


def _level(g: Graph, chains: list[list[Item]]) -> list[list[Item]]:
    """The items that should lie at one height, by importance.

    An edge's lanes, so that it passes straight, with its label; and the state it leads to, where
    no other edge does. Edges with operations go before those to the output.
    """
    arrivals = [edge.target for edge in g.edges if edge.kind == "op"]
    by_kind: dict[str, list[list[Item]]] = {"op": [], "input": [], "concat": []}
    for edge, chain in zip(g.edges, chains, strict=True):
        alone = edge.kind == "op" and arrivals.count(edge.target) == 1
        by_kind[edge.kind].append(chain[1:] if alone else chain[1:-1])
    return [group for groups in by_kind.values() for group in groups]


def arrange(name: str, cell: CellGene, top: float) -> Drawing:
    """Lay out one cell below `top`, its left edge at the margin."""
    g = graph_of(name, cell)
    columns, items, chains = _columns(g)
    order(columns)
    settle(columns, _level(g, chains))
    everything = [item for column in columns for item in column]
    shift = top - min(item.y - item.height / 2 for item in everything)
    for item in everything:
        item.y += shift
    left, spans = MARGIN, []
    for column in columns:
        width = max(item.width for item in column)
        spans.append((left, left + width))
        # A gap wide enough that its steepest edge stays smooth.
        climbs = [abs(o.y - item.y) for item in column for o, _ in item.right]
        left += width + min(24.0 + 0.3 * max(climbs, default=0.0), 72.0)
    where = {id(item): at for at, column in enumerate(columns) for item in column}

    def box(item: Item, name: str, text: str, kind: str) -> Box:
        x = sum(spans[where[id(item)]]) / 2
        return Box(name=name, text=text, kind=kind, x=x, y=item.y, w=item.width, h=item.height)

    boxes = {n: box(items[n], n, g.texts[n], g.kinds[n]) for n in g.texts}
    ports = _ports(g, chains)
    links = []
    for i, (edge, chain) in enumerate(zip(g.edges, chains, strict=True)):
        source, target = boxes[edge.source], boxes[edge.target]
        x, y = source.x + source.w / 2, source.y
        # Where a column begins, where the level line through it ends, and its height. The last
        # one meets the target, which may be narrower than its column.
        stops = [(*spans[where[id(item)]], item.y) for item in chain[1:-1]]
        begin = spans[where[id(chain[-1])]][0]
        stops.append((begin, target.x - target.w / 2, target.y + ports[i]))
        right = spans[where[id(chain[0])]][1]
        curves: list[Cubic] = []
        for begin, end, height in stops:
            curves += _bend((x, y), right, begin, (end, height))
            x, y, right = end, height, end
        label = box(chain[-2], edge.op, edge.op, "label") if edge.kind == "op" else None
        links.append(Link(**edge._asdict(), curves=tuple(curves), label=label))
    return Drawing(
        name=name,
        caption=(MARGIN, top - 14),
        boxes=tuple(boxes.values()),
        links=tuple(links),
        width=max(end for _, end in spans),
        height=max(item.y + item.height / 2 for item in everything),
    )


def _ports(g: Graph, chains: list[list[Item]]) -> list[float]:
    """How far from its target's middle every edge arrives, so that edges into one box fan out."""
    ports = [0.0] * len(chains)
    for name in g.levels:
        arriving = [i for i, edge in enumerate(g.edges) if edge.target == name]
        arriving.sort(key=lambda i: chains[i][-2].y)
        for place, i in enumerate(arriving):
            apart = 6.0 if g.edges[i].kind == "concat" else 10.0
            ports[i] = apart * (place - (len(arriving) - 1) / 2)
    return ports


def _line(a: Point, b: Point) -> Cubic:
    return (a, a, b, b)


def _bend(start: Point, out: float, into: float, stop: Point) -> list[Cubic]:
    """From `start` straight to x = `out`, in an S to x = `into`, and straight to `stop`."""
    a, b, middle = (out, start[1]), (into, stop[1]), (out + into) / 2
    curves = [] if start[0] > out - 0.05 else [_line(start, a)]
    curves.append((a, (middle, a[1]), (middle, b[1]), b))
    return curves if stop[0] < into + 0.05 else [*curves, _line(b, stop)]


def arrange_all(genotype: Genotype, title: str = "") -> Picture:
    """Lay out all cells of a genotype, stacked, under an optional title."""
    words = " ".join(title.split())
    shown = words if len(words) <= _TITLE_LENGTH else words[: _TITLE_LENGTH - 3] + "..."
    bottom = MARGIN + (TITLE_SIZE + 12 if shown else 0)
    right = MARGIN + 1.1 * text_width([(shown, False)], TITLE_SIZE)  # bold is wider
    cells = []
    for name, cell in genotype.cells.items():
        caption = 26.0 if len(genotype.cells) > 1 else 0.0
        cells.append(arrange(name, cell, bottom + caption))
        bottom = cells[-1].height + MARGIN
        right = max(right, cells[-1].width)
    return Picture(title=shown, cells=tuple(cells), width=right + MARGIN, height=bottom)


class Grid(NamedTuple):
    """A heat map's cells: the table's row for every (row, column), and what the ends are called."""

    places: list[tuple[int, int]]  # of each of the table's E rows
    rows: int
    columns: int
    sides: tuple[str, str]  # the first and the last row
    ends: tuple[str, str]  # the first and the last column


def grid_of(rows: Sequence[str]) -> Grid:
    """Sources downwards and targets to the right, where rows are edges; else a square, in order."""
    edges = [_EDGE.fullmatch(row) for row in rows]
    found = [(int(edge[1]), int(edge[2])) for edge in edges if edge]
    if len(found) == len(rows):
        first = min(target for _, target in found)
        sources, targets = max(s for s, _ in found) + 1, max(t for _, t in found) - first + 1
        places = [(source, target - first) for source, target in found]
        ends = (f"s{first}", f"s{first + targets - 1}")
        return Grid(places, sources, targets, ("s0", f"s{sources - 1}"), ends)
    side = math.ceil(math.sqrt(len(rows)))
    places = [divmod(i, side) for i in range(len(rows))]
    return Grid(places, places[-1][0] + 1, side, (rows[0], rows[-1]), ("", ""))
