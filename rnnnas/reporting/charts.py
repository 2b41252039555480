"""Charts as SVG, made by hand: lines, points, intervals, a race. Numbers in, text out.

Colours are CSS classes (`c0` to `c7`, `op-NAME`), so that a page can show them in two themes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

Point = tuple[float, float]
_WIDTH, _HEIGHT = 440.0, 250.0
_LEFT, _TOP, _BOTTOM = 64.0, 14.0, 42.0
_LONG = 1.2  # pixels a unit of a chart that is wider than the others
_LETTER = 6.4  # about, of a label
_APART = 13.0  # of two labels, downwards
_MOST = 400  # points of a line: more are not seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line through `points`. css: its colour's class. faint: thin and pale; dashed; marked: a dot
    with its numbers at every point. label: beside its end.
    """

    label: str
    points: Sequence[Point]
    css: str = "c0"
    faint: bool = False
    dashed: bool = False
    marked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point of a scatter. title: shown when it is pointed at."""

    x: float
    y: float
    title: str
    css: str = "c0"
    hollow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A group of a strip chart: its values with their titles, their mean and its interval."""

    label: str
    values: Sequence[tuple[float, str]]
    mean: float | None
    low: float | None
    high: float | None
    css: str = "c0"


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to pixels: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within it: of 1, 2 and 5 times a power of ten."""
        return (
            _log_ticks(self.low, self.high, most) if self.log else _ticks(self.low, self.high, most)
        )


def axis(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Axis:
    """The scale that holds all values, with a little room at both ends."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = (min(found), max(found)) if found else (1.0, 2.0)
    if log:
        room = max((high / low) ** 0.04, 1.005)
        return Axis(low / room, high * room, start, end, True)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - room, high + room, start, end)


def _ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / max(most, 1)
    if raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(found) >= 3:
            return found if len(found) <= most else found[:: -(-len(found) // most)]
    return _ticks(low, high, 4)


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Ticks as text, with as many figures as it takes to tell them apart."""
    plain = [shown(tick) for tick in ticks]
    figures = 5
    while len(set(plain)) < len(plain) and figures < 12:
        plain = [f"{tick:.{figures}g}" for tick in ticks]
        figures += 1
    return plain


def shown(value: float) -> str:
    """A number as it is read: four figures, thousands set apart."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _attribute(text: str) -> str:
    return escape(text, quote=True)


def _open(width: float, height: float, label: str, long: bool = False) -> str:
    """long: at a size of its own, for charts that are wider than a column of the page."""
    size = f' long" width="{_f(_LONG * width)}" height="{_f(_LONG * height)}"' if long else '"'
    return (
        f'<svg class="chart{size} viewBox="0 0 {_f(width)} {_f(height)}" role="img" '
        f'aria-label="{_attribute(label)}">'
    )


def _left(ticks: Sequence[str]) -> float:
    """Where the frame begins: beside the longest of the value axis' ticks and the axis' name."""
    return max(_LEFT, 28 + _LETTER * max(map(len, ticks), default=0))


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    kind = f' class="{css}"' if css else ""
    ends = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_f(x)}" y="{_f(y)}"{kind}{ends}>{escape(text, quote=False)}</text>'


def _frame(x: Axis, y: Axis, x_label: str, y_label: str, whole: bool = False) -> list[str]:
    """Grid lines, ticks and the names of both axes."""
    parts = []
    up = y.ticks(5)
    for tick, words in zip(up, tick_texts(up), strict=True):
        at = y.at(tick)
        parts.append(f'<path class="grid" d="M{_f(x.start)} {_f(at)}H{_f(x.end)}"/>')
        parts.append(_text(x.start - 7, at + 4, words, "tick", "end"))
    along = [tick for tick in x.ticks(6) if not whole or tick == round(tick)]
    for tick, words in zip(along, tick_texts(along), strict=True):
        parts.append(_text(x.at(tick), y.start + 16, words, "tick", "middle"))
    middle = (x.start + x.end) / 2
    parts.append(_text(middle, y.start + 34, x_label, "name", "middle"))
    parts.append(
        f'<text class="name" text-anchor="middle" transform="translate(11 '
        f'{_f((y.start + y.end) / 2)}) rotate(-90)">{escape(y_label, quote=False)}</text>'
    )
    return parts


def spaced(heights: Sequence[float], low: float, high: float) -> list[float]:
    """Heights of labels that keep apart, the nearest to the ones that they were wished at.

    With the least distances taken off, heights in their order need only not fall: least squares
    under that is the pooling of adjacent violators.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    gap = min(_APART, (high - low) / max(1, len(order) - 1))
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for rank, i in enumerate(order):
        mean, count = heights[i] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, count = (mean * count + before * many) / (count + many), count + many
        pools.append((mean, count))
    top = high - (len(order) - 1) * gap
    means = [min(max(mean, low), top) for mean, count in pools for _ in range(count)]
    result = [0.0] * len(heights)
    for rank, (i, mean) in enumerate(zip(order, means, strict=True)):
        result[i] = mean + rank * gap
    return result


def thinned(points: Sequence[Point], most: int = _MOST) -> list[Point]:
    """At most about `most` of the points: first, last, and of each stretch between them one."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    levels: Sequence[tuple[float, str]] = (),
    whole: bool = True,
) -> str:
    """Lines with their names at their ends. levels: of the value axis, named on a dashed line.
    whole: whether the horizontal axis counts.

    Returns:
        "" where no line has a point.
    """
    lines = [s for s in series if s.points]
    if not lines:
        return ""
    longest = max(len(s.label) for s in lines)
    right = _WIDTH - min(12 + _LETTER * longest, 150.0)
    values = [p[1] for s in lines for p in s.points] + [v for v, _ in levels]
    y = axis(values, _HEIGHT - _BOTTOM, _TOP, log=log_y)
    left = _left(tick_texts(y.ticks(5)))
    x = axis((p[0] for s in lines for p in s.points), left, right, log=log_x)
    parts = [_open(_WIDTH, _HEIGHT, label), *_frame(x, y, x_label, y_label, whole)]
    for value, _ in levels:
        at = y.at(value)
        parts.append(f'<path class="level" d="M{_f(left)} {_f(at)}H{_f(right)}"/>')
    for s in lines:
        points = [(x.at(a), y.at(b)) for a, b in thinned(s.points) if b > 0 or not log_y]
        kind = " faint" if s.faint else " dashed" if s.dashed else ""
        d = "M" + "L".join(f"{_f(a)} {_f(b)}" for a, b in points)
        parts.append(f'<path class="line s {s.css}{kind}" d="{d}"/>')
        if s.marked and len(s.points) <= 100:
            for (a, b), (px, py) in zip(s.points, points, strict=False):
                title = f"{s.label}: {shown(b)} at {x_label} {shown(a)}"
                parts.append(_circle(px, py, 2.6, f"f {s.css}", title))
    drawn = [_pixels(one, x, y) for one in lines]
    for value, words in levels:  # above the lines
        parts.append(_free_label(words, y.at(value), (left, right), drawn))
    labelled = [s for s in lines if s.label]
    wished = [y.at(s.points[-1][1]) for s in labelled]
    for s, at in zip(labelled, spaced(wished, _TOP + 4, y.start - 2), strict=True):
        # Beside the frame, not at the end of a short line, where others pass.
        parts.append(_text(right + 7, at + 4, s.label, f"f {s.css}"))
    return "".join([*parts, "</svg>"])


def _pixels(series: Series, x: Axis, y: Axis) -> list[Point]:
    return [(x.at(a), y.at(b)) for a, b in series.points if b > 0 or not y.log]


def _free_label(
    words: str, at: float, ends: tuple[float, float], lines: Sequence[Sequence[Point]]
) -> str:
    """The name of a level above or below it, at the end where the fewest lines pass."""
    width = _LETTER * len(words)
    best: tuple[int, str] | None = None
    # Below the level only where that is within the frame: under it stand the ticks.
    bases = [base for base in (at + 14, at - 5) if base <= _HEIGHT - _BOTTOM - 2] or [at - 5]
    for left, anchor in ((ends[0] + 5, "start"), (ends[1] - 5 - width, "end")):
        for base in bases:
            crossed = sum(
                min(a, c) <= left + width and max(a, c) >= left
                and min(b, d) <= base + 3 and max(b, d) >= base - 11
                for line in lines for (a, b), (c, d) in pairwise(line)
            )  # fmt: skip
            drawn = _text(left if anchor == "start" else left + width, base, words, "tick", anchor)
            if best is None or crossed < best[0]:
                best = crossed, drawn
    assert best is not None
    return best[1]


def _circle(x: float, y: float, r: float, css: str, title: str) -> str:
    return (
        f'<circle class="{css}" cx="{_f(x)}" cy="{_f(y)}" r="{_f(r)}">'
        f"<title>{escape(title, quote=False)}</title></circle>"
    )


def scatter(
    dots: Sequence[Dot], *, label: str, x_label: str, y_label: str, log: bool = False
) -> str:
    """Dots on two axes; "" where there are none."""
    if not dots:
        return ""
    y = axis((d.y for d in dots), _HEIGHT - _BOTTOM, _TOP, log=log)
    x = axis((d.x for d in dots), _left(tick_texts(y.ticks(5))), _WIDTH - 14, log=log)
    parts = [_open(_WIDTH, _HEIGHT, label), *_frame(x, y, x_label, y_label)]
    for d in dots:
        css = f"s {d.css} hollow" if d.hollow else f"f {d.css}"
        parts.append(_circle(x.at(d.x), y.at(d.y), 4.5, css, d.title))
    return "".join([*parts, "</svg>"])


def strips(rows: Sequence[Row], *, label: str, x_label: str, level: float | None = None) -> str:
    """A line of dots a group, the interval of its mean as a bar, the mean as a stroke. level: of
    the value axis, drawn as a dashed line.

    The axis spans the values and, as far as it is near them, the intervals: that of two values is
    many times as wide as they are apart, and its bar then runs off the chart.
    """
    rows = [row for row in rows if row.values]
    if not rows:
        return ""
    left = 18 + _LETTER * max(len(row.label) for row in rows)
    step, top = 34.0, 8.0
    bottom = top + step * len(rows)
    values = [v for row in rows for v, _ in row.values]
    room = 0.5 * (max(values) - min(values))
    ends = [e for row in rows for e in (row.low, row.high) if e is not None]
    near = [min(max(e, min(values) - room), max(values) + room) for e in ends]
    x = axis([*values, *near, *([] if level is None else [level])], left, _WIDTH - 14)
    parts = [_open(_WIDTH, bottom + 44, label)]
    if level is not None:
        parts.append(f'<path class="level" d="M{_f(x.at(level))} {_f(top)}V{_f(bottom)}"/>')
    ticks = x.ticks(6)
    for tick, words in zip(ticks, tick_texts(ticks), strict=True):
        at = x.at(tick)
        parts.append(f'<path class="grid" d="M{_f(at)} {_f(top)}V{_f(bottom)}"/>')
        parts.append(_text(at, bottom + 16, words, "tick", "middle"))
    for i, row in enumerate(rows):
        at = top + step * (i + 0.5)
        parts.append(_text(left - 10, at + 4, row.label, "", "end"))
        if row.low is not None and row.high is not None:
            a, b = (x.at(min(max(e, x.low), x.high)) for e in (row.low, row.high))
            parts.append(
                f'<rect class="f {row.css} band" x="{_f(a)}" y="{_f(at - 8)}" '
                f'width="{_f(b - a)}" height="16" rx="3"><title>95 % interval of the mean: '
                f"{shown(row.low)} to {shown(row.high)}</title></rect>"
            )
        for value, title in row.values:
            parts.append(_circle(x.at(value), at, 4.5, f"f {row.css} dot", title))
        if row.mean is not None:
            parts.append(f'<path class="mean" d="M{_f(x.at(row.mean))} {_f(at - 12)}v24"/>')
    parts.append(_text((left + _WIDTH - 14) / 2, bottom + 36, x_label, "name", "middle"))
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """A cell in a race. losses: (rung, loss) of each rung that it ran; kept: whether it went on
    after the last of them, or won; parent: whether it descends from an earlier cell.
    """

    title: str
    losses: Sequence[tuple[int, float]]
    kept: bool
    parent: bool = field(default=False)


def race(runners: Sequence[Runner], names: Sequence[str], *, label: str, y_label: str) -> str:
    """A column a rung, a dot for every cell that ran it, a line to the next rung for what was kept.

    names: of the rungs, by number from 0.
    """
    losses = [loss for r in runners for _, loss in r.losses if math.isfinite(loss)]
    if not losses:
        return ""
    width = max(_WIDTH, 96.0 * len(names) + _LEFT + 30)
    y = axis(losses, _HEIGHT - _BOTTOM, _TOP)
    x = Axis(-0.5, max(len(names) - 0.5, 0.5), _LEFT, width - 12)
    parts = [_open(width, _HEIGHT, label, width > _WIDTH)]
    for tick in y.ticks(5):
        parts.append(f'<path class="grid" d="M{_f(_LEFT)} {_f(y.at(tick))}H{_f(width - 12)}"/>')
        parts.append(_text(_LEFT - 7, y.at(tick) + 4, shown(tick), "tick", "end"))
    for i, name in enumerate(names):
        parts.append(_text(x.at(i), y.start + 16, name, "tick", "middle"))
    parts.append(
        f'<text class="name" text-anchor="middle" transform="translate(11 '
        f'{_f((y.start + y.end) / 2)}) rotate(-90)">{escape(y_label, quote=False)}</text>'
    )
    lines, dots = [], []
    for r in sorted(runners, key=lambda r: (len(r.losses), r.kept)):
        css = "c2" if r.parent else "c0"
        finite = [(x.at(rung), y.at(loss)) for rung, loss in r.losses if math.isfinite(loss)]
        for (a, b), (c, d) in pairwise(finite):
            lines.append(f'<path class="line s {css}" d="M{_f(a)} {_f(b)}L{_f(c)} {_f(d)}"/>')
        for i, (a, b) in enumerate(finite):
            went_on = i < len(finite) - 1 or r.kept
            dots.append(_circle(a, b, 4, f"f {css}" if went_on else f"s {css} hollow", r.title))
    return "".join([*parts, *lines, *dots, "</svg>"])
