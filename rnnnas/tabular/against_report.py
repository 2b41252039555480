"""What methods came to against a table: as rows, and as a picture of their ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rnnnas.reporting.charts import Row, strips
from rnnnas.studies.formats import Sheet
from rnnnas.studies.paired import p_text

HEAD = (
    "method", "n", "rank", "95 % interval", "best", "worst", "regret %", "tau of own scores",
    "against random %", "p, Holm", "cost T", "seconds",
)  # fmt: skip
# Of the classes of `charts`, for a picture that stands alone.
_STYLE = (
    "<style>text{font:12px sans-serif;fill:#1f2430}.tick,.name{fill:#5a6270}"
    ".grid{stroke:#e3e6eb}.f{fill:#0072b2}.f.c1{fill:#d55e00}.band{fill-opacity:.2}"
    ".level{fill:none;stroke:#5a6270;stroke-dasharray:4 3}"
    ".dot{fill-opacity:.55}.mean{stroke:#1f2430;stroke-width:2}</style>"
    '<rect width="100%" height="100%" fill="#ffffff"/>'
)


def sheet(result: Mapping[str, Any]) -> Sheet:
    """A row a method, the best mean rank first."""
    tests = {test["method"]: test for test in result["tests"]}
    order = sorted(
        result["rows"], key=lambda name: result["rows"][name]["rank"]["mean"] or math.inf
    )
    found = []
    for name in order:
        own, test = result["rows"][name], tests.get(name)
        ranks = [run["rank"] for run in own["runs"]]
        difference, p = "-", "-"
        if test is not None and test["mean"] is not None:
            difference = _percent(test["mean"])
            if test["low"] is not None:
                difference += f" [{_percent(test['low'])}, {_percent(test['high'])}]"
            p = p_text(test["wilcoxon_p_holm"])
        found.append(
            (
                name, str(len(ranks)), _spread(own["rank"], ".0f"),
                _interval(own["rank"]), str(min(ranks, default="-")), str(max(ranks, default="-")),
                _percent(own["regret"]["mean"]), _spread(own["tau"], "+.2f"), difference, p,
                "-" if own["cost"] is None else f"{own['cost']:.1f}",
                "-" if own["seconds"] is None or own["replayed"] else f"{own['seconds']:.0f}",
            )
        )  # fmt: skip
    title = f"methods against the table of {result['cells']} cells of {result['corpus']}"
    return Sheet(title=title, head=HEAD, rows=found)


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the figures are."""
    noise = result["noise"].get("residual", result["noise"]["sd"])  # of earlier tables
    lines = [
        f"{result['cells']:,} cells on {result['corpus']}; {len(result['seeds'])} search seeds. "
        f"Rank 1 is the best cell; one drawn at random has {result['random_rank']:.0f} on average.",
        "Regret: test perplexity above the best cell's, geometric means over the table's seeds; "
        f"that of the median cell is {_percent(result['median_regret'])}"
        + ("." if noise is None else f", the noise of one training {_percent(noise)}."),
        "Tau: Kendall's tau-b of what a search thinks of cells (of those that it trained in full "
        "or tried, or by the alphas of all) with the table.",
        "Against random: difference in perplexity from what random search is expected to find at "
        "the same cost, over all its draws; its 95 % interval over seeds, and the p value of "
        "Wilcoxon's test corrected by Holm.",
        "Cost: in full trainings of the table, by weight steps. Methods that train cells from "
        "scratch are replayed on the table, and have chosen by one of the trainings that the cell "
        "is judged by; the others searched for real.",
    ]
    diverged = sum(run["regret"] is None or not math.isfinite(run["regret"])
                   for row in result["rows"].values() for run in row["runs"])  # fmt: skip
    if diverged:
        lines.append(
            f"Regret and tests leave out {diverged} searches, whose cell diverged with one of the "
            "table's seeds; its rank is the worst."
        )
    lines += [
        f"DIVERGED: {e['method']}, seed {e['seed']}: {e['message']}" for e in result["failed"]
    ]
    return lines


def picture(result: Mapping[str, Any]) -> str:
    """The ranks of every method as an SVG that stands alone; "" where there are none."""
    order = sorted(
        result["rows"], key=lambda name: result["rows"][name]["rank"]["mean"] or math.inf
    )
    drawn = strips(
        [
            Row(
                label=name,
                values=[(float(r["rank"]), f"{name}, seed {r['seed']}: {r['cell']}")
                        for r in result["rows"][name]["runs"]],
                mean=result["rows"][name]["rank"]["mean"],
                low=result["rows"][name]["rank"]["low"],
                high=result["rows"][name]["rank"]["high"],
                css="c1" if result["rows"][name]["replayed"] else "c0",
            )
            for name in order
        ],
        label="ranks of the cells that methods found",
        x_label=f"rank of {result['cells']:,} cells; dashed: a random cell's on average",
        level=result["random_rank"],
    )  # fmt: skip
    if not drawn:
        return ""
    opening, end, rest = drawn.partition(">")
    opening = opening.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="660" ', 1)
    return f"{opening}{end}{_STYLE}{rest}\n"


def _percent(log: float | None) -> str:
    return "-" if log is None else f"{100 * math.expm1(log):+.1f}"


def _spread(own: Mapping[str, Any], form: str) -> str:
    if own["mean"] is None:
        return "-"
    return f"{own['mean']:{form}}" + (
        "" if own["sd"] is None else f" ± {own['sd']:{form.removeprefix('+')}}"
    )


def _interval(own: Mapping[str, Any]) -> str:
    return "-" if own["low"] is None else f"[{own['low']:.0f}, {own['high']:.0f}]"
