"""Charts: where things lie, in numbers; labels keep apart; of nothing, nothing is drawn."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnnas.reporting.charts import (
    Axis,
    Dot,
    Row,
    Runner,
    Series,
    axis,
    line_chart,
    race,
    scatter,
    shown,
    spaced,
    strips,
    thinned,
    tick_texts,
)
from rnnnas.reporting.read import Frame
from rnnnas.reporting.shares import kept_frames

POSITIVE = st.floats(1e-6, 1e9)


def test_an_axis_is_linear_or_logarithmic() -> None:
    plain = Axis(10.0, 20.0, 100.0, 200.0)
    assert [plain.at(v) for v in (10, 12.5, 20)] == [100, 125, 200]
    log = Axis(1.0, 100.0, 0.0, 10.0, True)
    assert [log.at(v) for v in (1, 10, 100)] == pytest.approx([0, 5, 10])
    down = Axis(0.0, 1.0, 200.0, 100.0)
    assert down.at(0.25) == 175


@settings(deadline=None, max_examples=60)
@given(st.lists(POSITIVE, min_size=1, max_size=8), st.booleans())
def test_an_axis_holds_its_values_and_its_ticks(values: list[float], log: bool) -> None:
    scale = axis(values, 0.0, 1.0, log=log)
    assert all(-1e-9 <= scale.at(v) <= 1 + 1e-9 for v in values)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(a < b for a, b in pairwise(ticks))
    assert all(-1e-6 <= scale.at(t) <= 1 + 1e-6 for t in ticks)
    assert len(set(tick_texts(ticks))) == len(ticks)


def test_ticks_are_round() -> None:
    assert Axis(0.0, 1.0, 0, 1).ticks(5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert axis([90, 5000], 0, 1, log=True).ticks() == [100, 300, 1000, 3000]
    assert tick_texts([1.6091, 1.6092]) == ["1.6091", "1.6092"]
    assert shown(12345.6) == "12,346" and shown(0.123456) == "0.1235" and shown(0) == "0"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 200), min_size=1, max_size=10))
def test_labels_keep_apart_and_their_order(heights: list[float]) -> None:
    placed = spaced(heights, 0, 200)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    assert all(placed[b] - placed[a] > 9 for a, b in pairwise(order))
    assert all(-1e-9 <= p <= 200 + 1e-9 for p in placed)


def test_labels_at_one_place_share_the_room() -> None:
    assert spaced([0.0] * 9, 0, 200) == pytest.approx([13.0 * k for k in range(9)])
    assert spaced([200.0, 200.0], 0, 200) == pytest.approx([187, 200])
    assert spaced([100.0, 100.0], 0, 200) == pytest.approx([93.5, 106.5])


def test_labels_that_are_apart_stay_where_they_are() -> None:
    assert spaced([50, 10, 90], 0, 100) == [50, 10, 90]


def test_a_line_goes_through_its_points() -> None:
    points = [(1.0, 100.0), (2.0, 50.0), (4.0, 25.0)]
    drawn = line_chart([Series(label="a", points=points, marked=True)], label="l", x_label="x",
                       y_label="y", log_y=True)  # fmt: skip
    path = re.search(r'class="line s c0" d="M([^"]*)"', drawn)
    assert path
    places = [tuple(map(float, p.split())) for p in path[1].split("L")]
    x, y = zip(*places, strict=True)
    assert x[2] - x[1] == pytest.approx(2 * (x[1] - x[0]), abs=0.2)
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2) and y[0] < y[1]  # halved each time
    dots = re.findall(r'<circle class="f c0" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert [tuple(map(float, d)) for d in dots] == places
    assert "a: 50 at x 2" in drawn


def test_levels_are_on_the_axis_too() -> None:
    series = [Series(label="a", points=[(1, 10), (2, 20)])]
    drawn = line_chart(series, label="l", x_label="x", y_label="y", levels=[(500.0, "far")])
    assert "far" in drawn and ">400<" in drawn


def test_of_nothing_nothing_is_drawn() -> None:
    assert line_chart([Series(label="a", points=[])], label="l", x_label="x", y_label="y") == ""
    assert scatter([], label="l", x_label="x", y_label="y") == ""
    assert strips([], label="l", x_label="x") == ""
    assert race([], [], label="l", y_label="y") == ""


def test_text_is_escaped() -> None:
    bad = '<a href="x">&'
    for drawn in (
        line_chart([Series(label=bad, points=[(1, 2)], marked=True)], label=bad, x_label=bad,
                   y_label=bad),
        scatter([Dot(x=1, y=2, title=bad)], label=bad, x_label=bad, y_label=bad),
        strips([Row(label=bad, values=[(1, bad), (2, bad)], mean=1, low=0, high=2)], label=bad,
               x_label=bad),
        race([Runner(title=bad, losses=[(0, 1.0)], kept=True)], [bad], label=bad, y_label=bad),
    ):  # fmt: skip
        assert "<a" not in drawn and "&lt;a" in drawn
        assert all("<" not in value for value in re.findall(r'"([^"]*)"', drawn))


def test_a_strip_shows_values_mean_and_interval_on_one_scale() -> None:
    rows = [Row(label="m", values=[(100, "a"), (200, "b")], mean=150, low=140, high=160)]
    drawn = strips(rows, label="l", x_label="x")
    a, b = (float(x) for x in re.findall(r'cx="([\d.]+)"', drawn))
    mean = float(re.search(r'class="mean" d="M([\d.]+)', drawn)[1])  # type: ignore[index]
    band = re.search(r'<rect class="f c0 band" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)
    assert band and mean == pytest.approx((a + b) / 2, abs=0.2)
    assert float(band[1]) == pytest.approx(a + 0.4 * (b - a), abs=0.2)
    assert float(band[2]) == pytest.approx(0.2 * (b - a), abs=0.2)


def test_an_endless_interval_does_not_squeeze_the_values() -> None:
    rows = [Row(label="m", values=[(100, "a"), (200, "b")], mean=150, low=-9000, high=9000)]
    a, b = (float(x) for x in re.findall(r'cx="([\d.]+)"', strips(rows, label="l", x_label="x")))
    assert b - a > 100


def test_in_a_race_only_what_went_on_is_full() -> None:
    runners = [
        Runner(title="won", losses=[(0, 1.0), (1, 0.5)], kept=True),
        Runner(title="second", losses=[(0, 1.1), (1, 0.6)], kept=False),
        Runner(title="out", losses=[(0, 1.5)], kept=False),
        Runner(title="diverged", losses=[(0, math.inf)], kept=False),
    ]
    drawn = race(runners, ["a", "b"], label="l", y_label="y")
    found = re.findall(r'<circle class="([^"]*)"[^>]*><title>(\w+)', drawn)
    assert sorted((title, "hollow" in css) for css, title in found) == [
        ("out", True), ("second", False), ("second", True), ("won", False), ("won", False),
    ]  # fmt: skip
    assert drawn.count('class="line') == 2


def test_thinning_keeps_both_ends() -> None:
    points = [(float(i), float(i)) for i in range(5000)]
    few = thinned(points, 100)
    assert len(few) == 100 and few[0] == points[0] and few[-1] == points[-1]
    assert thinned(points[:50], 100) == points[:50]
    frames = [Frame(epoch=i, cell="", genotype=None, tables={}) for i in range(1, 301)]
    kept = kept_frames(frames, 60)
    assert len(kept) == 60 and kept[0].epoch == 1 and kept[-1].epoch == 300
