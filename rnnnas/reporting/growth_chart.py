"""The growth of a step's cost as one SVG: time and memory against each size, and a cost model."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rnnnas.reporting.charts import Series, line_chart

NAMES = {
    "hidden": "H, units", "streams": "B, streams", "steps": "T, steps", "nodes": "N, nodes",
    "vocabulary": "V, words", "processes": "P, processes",
}  # fmt: skip
_WIDTH, _HEIGHT, _HEAD = 440, 250, 26
_STYLE = (
    "<style>.line{fill:none;stroke-width:2}.dashed{stroke-width:1.2;stroke-dasharray:5 4;"
    "opacity:.75}.c0{--c:#0072b2}.c1{--c:#d55e00}.c2{--c:#00845f}.c3{--c:#a84a86}"
    ".c4{--c:#8a6400}.c5{--c:#3a7ca5}.s{stroke:var(--c)}.f{fill:var(--c)}.line.s{fill:none}"
    ".grid{stroke:#e2e6ec}.tick,.name{fill:#5b6474}</style>"
)


def growth_chart(report: Mapping[str, Any]) -> str:
    """Two charts on logarithmic scales, time above memory, of what `bench growth` reports.

    A line a quantity, against its multiple of the base; dashed, the cost model through the line's
    point at the base. A document of its own, with its colours.
    """
    drawn = [
        (f"time of a {report['of']} step", _chart(report, "seconds", 1e3, "ms")),
        ("memory held at once", _chart(report, "bytes", 1e-6, "MB")),
    ]
    height = len(drawn) * (_HEIGHT + _HEAD)
    base = ", ".join(
        f"{NAMES[name][0]} {value:,}" for name, value in report["base"].items() if value > 1
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="660" height="{1.5 * height:g}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img" font-size="11.5" '
        f'font-family="Helvetica, Arial, sans-serif" aria-label="growth of the cost of a step">'
        f"{_STYLE}"
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#fff"/>'
    ]
    for i, (title, chart) in enumerate(drawn):
        top = i * (_HEIGHT + _HEAD)
        words = escape(f"{title}; base {base}", quote=False)
        parts.append(f'<text x="12" y="{top + 18}" font-weight="bold">{words}</text>')
        parts.append(f'<g transform="translate(0 {top + _HEAD})">')
        parts.append(chart.replace("<svg ", f'<svg width="{_WIDTH}" height="{_HEIGHT}" ', 1))
        parts.append("</g>")
    return "".join([*parts, "</svg>\n"])


def _chart(report: Mapping[str, Any], what: str, unit: float, y_label: str) -> str:
    series = []
    for i, (name, row) in enumerate(report["quantities"].items()):
        base = report["base"][name]
        along = [value / base for value in row["values"]]
        values = [unit * value for value in row[what]]
        at = min(range(len(along)), key=lambda k: abs(along[k] - 1))
        scale = row[what][at] / row[f"expected_{what}"][at]
        model = [unit * scale * value for value in row[f"expected_{what}"]]
        css = f"c{i % 6}"
        label = NAMES[name].partition(",")[0]
        series.append(Series(label="", points=list(zip(along, model, strict=True)), css=css,
                             dashed=True))  # fmt: skip
        series.append(Series(label=label, points=list(zip(along, values, strict=True)), css=css,
                             marked=True))  # fmt: skip
    return line_chart(
        series, label=f"{what} against multiples of the base", x_label="times the base",
        y_label=y_label, log_x=True, log_y=True, whole=False,
    )  # fmt: skip
