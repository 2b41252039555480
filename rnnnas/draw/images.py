"""Pixels for TensorBoard: a genotype's cells, and tables of shares as heat maps.

Legend: E edges, O operations. Images are (height, width, 3) uint8. PIL is imported where used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rnnnas.draw.layout import (
    FILLS,
    INK,
    MARGIN,
    SUBSCRIPT,
    TEXT_SIZE,
    Box,
    Cubic,
    Drawing,
    Grid,
    Pieces,
    Point,
    arrange_all,
    grid_of,
)
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
_FINE = 3  # lines are drawn this much larger, then averaged: PIL's own are not smooth
_PIECES = 24  # straight pieces to a curve
_SCALE = 2  # pixels a unit of the layout: TensorBoard shrinks an image to the card it lies in

# Light to dark in even steps of luminance.
_RAMP = np.array(
    [(238, 243, 250), (186, 211, 236), (120, 172, 216), (48, 124, 186), (14, 64, 122)],
    dtype=np.float64,
)
_UNKNOWN = (255, 196, 160)  # a value that is not a finite number
# A heat map of one operation: a square of this side, so that three and their names fill a card.
_SIDE = 120.0
_ACROSS = 3
_NAME_SIZE = 16
_TICK_SIZE = 12


class _Text(NamedTuple):
    at: Point
    pieces: Pieces
    size: float
    fill: str
    align: str


class _Canvas:
    """A white image that is drawn on in units of the layout: lines first, then all text."""

    def __init__(self, width: float, height: float, scale: int) -> None:
        from PIL import Image, ImageDraw

        if scale < 1:
            raise UsageError(f"an image's scale must be 1 or more, not {scale}")
        self.scale = scale
        self.unit = scale * _FINE
        size = (round(width * scale) * _FINE, round(height * scale) * _FINE)
        self.image: Image.Image = Image.new("RGB", size, "#ffffff")
        self.draw: ImageDraw.ImageDraw = ImageDraw.Draw(self.image)
        self.texts: list[_Text] = []

    def pixels(self) -> Pixels:
        """The image at its final size. Letters are drawn there: averaged ones lose their stems."""
        from PIL import ImageDraw

        image = self.image.reduce(_FINE)
        draw = ImageDraw.Draw(image)
        for text in self.texts:
            self._write(draw, text)
        return np.array(image, dtype=np.uint8)

    def font(self, size: float) -> Any:
        return _font(size * self.scale)

    def measure(self, text: str, size: float) -> float:
        return float(self.font(size).getlength(_known(text)) / self.scale)

    def text(
        self, at: Point, pieces: Pieces, size: float, fill: str = INK, align: str = "middle"
    ) -> None:
        """Write around the height `at[1]`: to the right of, about or to the left of `at[0]`."""
        self.texts.append(_Text(at, pieces, size, fill, align))

    def _write(self, draw: ImageDraw.ImageDraw, text: _Text) -> None:
        at, pieces, size, fill, align = text
        widths = [self.measure(words, size * (SUBSCRIPT if sub else 1)) for words, sub in pieces]
        x = at[0] - sum(widths) * {"start": 0.0, "middle": 0.5, "end": 1.0}[align]
        base = at[1] + 0.35 * size
        for (words, sub), width in zip(pieces, widths, strict=True):
            where = (x * self.scale, (base + (0.25 * size if sub else 0)) * self.scale)
            font = self.font(size * (SUBSCRIPT if sub else 1))
            draw.text(where, _known(words), fill=fill, font=font, anchor="ls")
            x += width

    def rectangle(self, corner: Point, size: Point, fill: Colour) -> None:
        # PIL counts the last row and column in.
        ends = [(a + b) * self.unit for a, b in zip(corner, size, strict=True)]
        box = [*(round(a * self.unit) for a in corner), *(round(b) - 1 for b in ends)]
        self.draw.rectangle(box, fill=fill)

    def box(self, box: Box, radius: float, fill: str, outline: str) -> None:
        corners = (box.x - box.w / 2, box.y - box.h / 2, box.x + box.w / 2, box.y + box.h / 2)
        self.draw.rounded_rectangle(
            [corner * self.unit for corner in corners],
            radius=radius * self.unit,
            fill=fill,
            outline=outline,
            width=round(1.4 * self.unit),
        )
        self.text((box.x, box.y), box.pieces, TEXT_SIZE)

    def curves(self, curves: tuple[Cubic, ...], fill: str, width: float) -> None:
        points = [_scaled(curves[0][0], self.unit)]
        for curve in curves:
            points += [_scaled(_at(curve, i / _PIECES), self.unit) for i in range(1, _PIECES + 1)]
        self.draw.line(points, fill=fill, width=round(width * self.unit), joint="curve")


@lru_cache(maxsize=64)
def _font(size: float) -> Any:
    """PIL's own font at this size: it is unpacked anew at every load, which takes longest."""
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _known(text: str) -> str:
    """`text` in the letters that PIL's own font has."""
    return "".join(c if " " <= c <= "~" else "?" for c in text.replace("→", ">"))


def _scaled(point: Point, unit: float) -> Point:
    return point[0] * unit, point[1] * unit


def _at(curve: Cubic, t: float) -> Point:
    """The point of a Bezier curve at t in [0, 1], in Bernstein's form."""
    weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
    x, y = (
        sum(w * point[axis] for w, point in zip(weights, curve, strict=True)) for axis in (0, 1)
    )
    return x, y


def cell_image(genotype: Genotype, scale: int = _SCALE) -> Pixels:
    """All cells of a genotype, as `as_svg` draws them: (height, width, 3).

    Raises:
        UsageError: where `scale`, in pixels a unit of the layout, is below 1.
    """
    picture = arrange_all(genotype)
    canvas = _Canvas(picture.width, picture.height, scale)
    for cell in picture.cells:
        if len(picture.cells) > 1:
            at = (cell.caption[0], cell.caption[1] - 0.35 * TEXT_SIZE)
            canvas.text(at, [(cell.name, False)], TEXT_SIZE + 2, align="start")
        _draw_cell(canvas, cell)
    return canvas.pixels()


def _draw_cell(canvas: _Canvas, cell: Drawing) -> None:
    for link in sorted(cell.links, key=lambda link: link.kind != "concat"):
        canvas.curves(link.curves, link.colour, 1 if link.kind == "concat" else 2)
        if link.kind != "concat":
            head = [_scaled(corner, canvas.unit) for corner in link.head]
            canvas.draw.polygon(head, fill=link.colour)
        if link.label:
            canvas.box(link.label, 9.0, "#ffffff", link.colour)
    for box in cell.boxes:
        canvas.box(box, 7.0, FILLS[box.kind], INK)


def ramp(value: float, low: float = 0.0, high: float = 1.0) -> Colour:
    """The colour of a value, light at `low` and dark at `high`; orange where it is not finite.

    Where `low` and `high` are one value, it has the colour of the middle.
    """
    if not math.isfinite(value):
        return _UNKNOWN
    share = (value - low) / (high - low) if high > low else 0.5
    at = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    lower = min(int(at), len(_RAMP) - 2)
    mixed = _RAMP[lower] + (at - lower) * (_RAMP[lower + 1] - _RAMP[lower])
    red, green, blue = (round(c) for c in mixed)
    return red, green, blue


def table_image(
    table: Sequence[Sequence[float]] | npt.NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
) -> Pixels:
    """Heat maps of an (E, O) table of shares, one an operation: (height, width, 3).

    `rows` name the edges, as 's0 > s1': a map has a row for each source and a column for each
    target. Other rows fill a square in their order. `columns` name the operations. The colours
    span the values that the table has; the scale beside the maps says which.

    Raises:
        UsageError: where the table's shape is not that of its names.
    """
    values = np.asarray(table, dtype=np.float64)
    if values.shape != (len(rows), len(columns)) or not values.size:
        raise UsageError(
            f"a table of shape {values.shape} cannot be drawn with {len(rows)} row names "
            f"and {len(columns)} column names"
        )
    grid = grid_of(rows)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    ruler = _Canvas(1, 1, 1)
    left = max(ruler.measure(side, _TICK_SIZE) for side in grid.sides) + 6
    names = [*columns, "share"]
    wide = max(_SIDE, *(ruler.measure(name, _NAME_SIZE) for name in names)) + left + 14
    tall = _NAME_SIZE + 10 + _SIDE + (_TICK_SIZE + 10 if grid.ends[0] else 10)
    down = -(-len(names) // _ACROSS)
    canvas = _Canvas(min(len(names), _ACROSS) * wide + MARGIN, down * tall + MARGIN, _SCALE)
    for o, name in enumerate(names):
        x, y = MARGIN / 2 + o % _ACROSS * wide + left, MARGIN / 2 + o // _ACROSS * tall
        canvas.text((x, y + _NAME_SIZE / 2), [(name, False)], _NAME_SIZE, align="start")
        corner = (x, y + _NAME_SIZE + 10)
        if o < len(columns):
            _map(canvas, corner, grid, values[:, o].tolist(), (low, high))
        else:
            _scale(canvas, corner, low, high)
    return canvas.pixels()


def _map(canvas: _Canvas, corner: Point, grid: Grid, values: list[float], span: Point) -> None:
    """The heat map of one operation, with its first and last row and column named."""
    (x, y), width, height = corner, _SIDE / grid.columns, _SIDE / grid.rows
    for (row, column), value in zip(grid.places, values, strict=True):
        at = (x + column * width, y + row * height)
        canvas.rectangle(at, (width - 1, height - 1), ramp(value, *span))
    for name, middle in zip(grid.sides, (height / 2, _SIDE - height / 2), strict=True):
        canvas.text((x - 5, y + middle), [(name, False)], _TICK_SIZE, align="end")
    for name, middle in zip(grid.ends, (width / 2, _SIDE - width / 2), strict=True):
        if name:
            canvas.text((x + middle, y + _SIDE + 10), [(name, False)], _TICK_SIZE)


def _scale(canvas: _Canvas, corner: Point, low: float, high: float) -> None:
    """What the colours mean: the greatest share at the top, the least at the bottom."""
    (x, y), steps = corner, 24
    for step in range(steps):
        share = 1 - (step + 0.5) / steps
        size = (18.0, _SIDE / steps)
        canvas.rectangle((x, y + step * _SIDE / steps), size, ramp(share))
    for share, at in ((high, 7.0), ((low + high) / 2, _SIDE / 2), (low, _SIDE - 7)):
        canvas.text((x + 26, y + at), [(f"{share:.2f}", False)], _NAME_SIZE - 1, align="start")
