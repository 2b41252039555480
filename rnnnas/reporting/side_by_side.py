"""The part of a report that sets several runs beside each other."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from rnnnas.reporting.charts import Row, Series, line_chart, shown, strips
from rnnnas.reporting.read import RunData, number
from rnnnas.reporting.sections import (
    about,
    duration,
    figure,
    known_cells,
    measured,
    state_of,
    table,
)
from rnnnas.studies.statistics import spread

_SHORT = 22  # letters of a run's name beside a line


def compared(runs: Sequence[RunData]) -> str:
    """A table of runs, the mean and interval of those that differ by their seed alone, charts."""
    names = known_cells()
    rows = []
    for group in _groups(runs):
        for run in group:
            seconds = number((run.result or {}).get("seconds"))
            parameters = number((run.result or {}).get("parameters"))
            cell = names.get(run.cell, run.cell)
            rows.append([
                f"{run.name}\n{cell}", about(run).partition(",")[0],
                str(run.config.get("seed", "")), measured(run, "valid") or "–",
                measured(run, "test") or "–", "–" if parameters is None else f"{parameters:,.0f}",
                "–" if seconds is None else duration(seconds), state_of(run) or "finished",
            ])  # fmt: skip
        finished = [run for run in group if run.result is not None]
        if len(finished) > 1:
            rows.append([
                f"mean of {len(finished)} seeds", "", "", _interval(group, "valid"),
                _interval(group, "test"), "", "", "",
            ])  # fmt: skip
    head = ["run", "what", "seed", "validation", "test", "parameters", "time", "state"]
    charts = [chart for measure in ("perplexity", "accuracy") for chart in _charts(runs, measure)]
    return (
        f'<section id="compared"><h2>Side by side</h2>{table(head, rows, "num")}'
        f'<div class="grid">{"".join(charts)}</div></section>'
    )


def _charts(runs: Sequence[RunData], measure: str) -> list[str]:
    """The results of the runs that have this measure as dots, and their validation as curves."""
    own = [run for run in runs if run.measure == measure]
    labels = short_names([run.name for run in own])
    colours = [f"c{i % 8}" for i in range(len(own))]
    found = []
    # A search's validation is not a training's: they do not stand on one axis.
    trained = [run.kind == "train" for run in own]
    for split, word in (("test", "test"), ("valid", "validation")):
        rows = [
            Row(label=label, values=[(value, f"{run.name}: {shown(value)}")], mean=None, low=None,
                high=None, css=css)
            for run, label, css, is_training in zip(own, labels, colours, trained, strict=True)
            if (is_training or not any(trained))
            and (value := number((run.result or {}).get(f"{split}_{measure}"))) is not None
        ]  # fmt: skip
        if len(rows) > 1:
            what = f"{word} {measure}{' in %' if measure == 'accuracy' else ''}"
            chart = strips(rows, label=f"{what} of each run", x_label=what)
            found.append(figure(f"{word.capitalize()} {measure} of each run", chart))
    series = [
        Series(label=label, css=css, marked=True,
               points=run.points("epoch", f"valid_{measure}", "epoch"))
        for run, label, css in zip(own, labels, colours, strict=True)
    ]  # fmt: skip
    if any(len(line.points) > 1 for line in series):
        log = measure == "perplexity"
        chart = line_chart(
            series, label=f"validation {measure}",
            x_label=" or ".join(sorted({run.noun for run in own})),
            y_label=f"{measure} {'(log)' if log else 'in %'}", log_y=log,
        )  # fmt: skip
        found.append(figure(f"Validation {measure}", chart))
    return found


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them begin with, cut to what stands beside a line."""
    words = [re.split(r"(?<=[-_.])", name) for name in names]
    same = 0
    while len(words) > 1 and all(len(w) > same + 1 and w[same] == words[0][same] for w in words):
        same += 1
    kept = ["".join(w[same:]) for w in words]
    return [name if len(name) <= _SHORT else f"{name[: _SHORT - 1]}…" for name in kept]


def _groups(runs: Sequence[RunData]) -> list[list[RunData]]:
    """Runs whose settings differ by the seed alone stand together."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        plain = {k: v for k, v in run.config.items() if k != "seed"}
        groups.setdefault(json.dumps([run.kind, plain], sort_keys=True), []).append(run)
    return list(groups.values())


def _interval(runs: Sequence[RunData], split: str) -> str:
    values = [number((run.result or {}).get(f"{split}_{run.measure}")) for run in runs]
    own = spread([v for v in values if v is not None])
    if own.mean is None or own.low is None or own.high is None:
        return "–"
    return f"{own.mean:.2f} [{own.low:.2f}, {own.high:.2f}]"
