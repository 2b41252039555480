"""Pixels for TensorBoard: a genotype's cells, and a table of probabilities as a heat map.

Legend: E edges, O operations. Images are (height, width, 3) uint8. PIL is imported where used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rnnnas.draw.layout import (
    FILLS,
    INK,
    MARGIN,
    SUBSCRIPT,
    TEXT_SIZE,
    TITLE_SIZE,
    Box,
    Cubic,
    Drawing,
    Pieces,
    Point,
    arrange_all,
)
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Pixels = npt.NDArray[np.uint8]
_FINE = 3  # everything is drawn this much larger, then averaged: PIL's lines are not smooth
_PIECES = 24  # straight pieces to a curve

# Dark to light with even steps of luminance; blue, teal, green, yellow differ for all readers.
_RAMP = np.array(
    [(34, 24, 78), (48, 66, 134), (32, 116, 140), (44, 160, 122), (128, 200, 84), (250, 232, 96)],
    dtype=np.float64,
)
_UNKNOWN = (200, 200, 200)  # a probability that is not a finite number


class _Canvas:
    """A white image that is drawn on in units of the layout."""

    def __init__(self, width: float, height: float, scale: int) -> None:
        from PIL import Image, ImageDraw

        if scale < 1:
            raise UsageError(f"an image's scale must be 1 or more, not {scale}")
        self.unit = scale * _FINE
        size = (round(width * scale) * _FINE, round(height * scale) * _FINE)
        self.image: Image.Image = Image.new("RGB", size, "#ffffff")
        self.draw: ImageDraw.ImageDraw = ImageDraw.Draw(self.image)

    def pixels(self) -> Pixels:
        """The image at its final size."""
        return np.array(self.image.reduce(_FINE), dtype=np.uint8)

    def font(self, size: float) -> Any:
        from PIL import ImageFont

        return ImageFont.load_default(size=size * self.unit)

    def measure(self, text: str, size: float) -> float:
        return float(self.font(size).getlength(_known(text)) / self.unit)

    def text(
        self, at: Point, pieces: Pieces, size: float, fill: str = INK, align: str = "middle"
    ) -> None:
        """Write around the height `at[1]`: to the right of, about or to the left of `at[0]`."""
        widths = [self.measure(text, size * (SUBSCRIPT if sub else 1)) for text, sub in pieces]
        x = at[0] - sum(widths) * {"start": 0.0, "middle": 0.5, "end": 1.0}[align]
        base = at[1] + 0.35 * size
        for (text, sub), width in zip(pieces, widths, strict=True):
            where = (x * self.unit, (base + (0.25 * size if sub else 0)) * self.unit)
            font = self.font(size * (SUBSCRIPT if sub else 1))
            self.draw.text(where, _known(text), fill=fill, font=font, anchor="ls")
            x += width

    def bold(self, at: Point, text: str, size: float) -> None:
        """Write to the right of `at`, a little heavier: the default font has one weight."""
        for shift in (0.0, 0.4):
            self.text((at[0] + shift, at[1]), [(text, False)], size, align="start")

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


def cell_image(genotype: Genotype, scale: int = 1) -> Pixels:
    """All cells of a genotype, as `as_svg` draws them: (height, width, 3).

    Raises:
        UsageError: where `scale`, in pixels a unit of the layout, is below 1.
    """
    picture = arrange_all(genotype)
    canvas = _Canvas(picture.width, picture.height, scale)
    for cell in picture.cells:
        if len(picture.cells) > 1:
            canvas.bold((cell.caption[0], cell.caption[1] - 0.35 * TEXT_SIZE), cell.name, TEXT_SIZE)
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


def ramp(value: float) -> tuple[int, int, int]:
    """The colour of a probability, dark at 0 and light at 1; grey where it is not finite."""
    if not np.isfinite(value):
        return _UNKNOWN
    at = min(max(float(value), 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(at), len(_RAMP) - 2)
    red, green, blue = (round(c) for c in _RAMP[low] + (at - low) * (_RAMP[low + 1] - _RAMP[low]))
    return red, green, blue


def table_image(
    table: Sequence[Sequence[float]] | npt.NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
) -> Pixels:
    """A heat map of an (E, O) table of probabilities, every number printed: (height, width, 3).

    `rows` name the edges, as 's0→s1' or '0>1'; a line separates the edges of one destination from
    those of the next. `columns` name the operations. Values beyond [0, 1] take the end's colour.

    Raises:
        UsageError: where the table's shape is not that of its names.
    """
    values = np.asarray(table, dtype=np.float64)
    if values.shape != (len(rows), len(columns)) or not values.size:
        raise UsageError(
            f"a table of shape {values.shape} cannot be drawn with {len(rows)} row names "
            f"and {len(columns)} column names"
        )
    ruler = _Canvas(1, 1, 1)
    left = MARGIN + max(ruler.measure(row, TEXT_SIZE) for row in rows) + 8
    width = max(44.0, max(ruler.measure(column, TEXT_SIZE) for column in columns) + 12)
    height, apart = 20.0, 7.0
    top = MARGIN + (TITLE_SIZE + 12 if title else 0) + TEXT_SIZE + 8
    targets = [row.replace("→", ">").rpartition(">")[2] for row in rows]
    tops = [top]
    for before, after in pairwise(targets):
        tops.append(tops[-1] + height + (apart if before != after else 0.0))
    right = left + width * len(columns)
    reach = max(right, MARGIN + ruler.measure(title, TITLE_SIZE) + 1) + MARGIN
    canvas = _Canvas(reach, tops[-1] + height + MARGIN, 1)
    if title:
        canvas.bold((MARGIN, MARGIN + TITLE_SIZE / 2), title, TITLE_SIZE)
    for o, column in enumerate(columns):
        at = (left + (o + 0.5) * width, top - TEXT_SIZE / 2 - 4)
        canvas.text(at, [(column, False)], TEXT_SIZE)
    for e, row in enumerate(rows):
        middle = tops[e] + height / 2
        canvas.text((left - 8, middle), [(row, False)], TEXT_SIZE, align="end")
        if e and targets[e] != targets[e - 1]:
            y = (tops[e] - apart / 2) * canvas.unit
            ends = [(MARGIN * canvas.unit, y), (right * canvas.unit, y)]
            canvas.draw.line(ends, fill=INK, width=canvas.unit)
        for o in range(len(columns)):
            value = float(values[e, o])
            _cell(canvas, (left + o * width, tops[e]), (width - 1, height - 1), value)
    return canvas.pixels()


def _cell(canvas: _Canvas, corner: Point, size: Point, value: float) -> None:
    """One coloured cell with its number in black or white, whichever stands out more."""
    red, green, blue = ramp(value)
    (x, y), (w, h) = corner, size
    unit = canvas.unit
    # PIL counts the last row and column in.
    box = [round(x * unit), round(y * unit), round((x + w) * unit) - 1, round((y + h) * unit) - 1]
    canvas.draw.rectangle(box, fill=(red, green, blue))
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 120
    words = f"{value:.2f}" if np.isfinite(value) else "nan" if np.isnan(value) else f"{value}"
    canvas.text((x + w / 2, y + h / 2), [(words, False)], TEXT_SIZE, INK if light else "#ffffff")
