"""The part of a report about a study whose every found cell got final trainings: paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from rnnnas.reporting.charts import Row, Series, line_chart, strips
from rnnnas.reporting.read import StudyData, number
from rnnnas.reporting.sections import duration, figure, fold, table, tiles
from rnnnas.studies.paired import p_text
from rnnnas.studies.paired_table import count_text, figures_note, noise_notes

_COLOURS = 7  # of methods; the random cells are grey


def paired_parts(study: StudyData, result: Mapping[str, Any]) -> list[str]:
    """Headline, charts and tables of such a study, without its heading and its end."""
    colours = {
        name: "c7" if name == "random cells" else f"c{i % _COLOURS}"
        for i, name in enumerate(result["rows"])
    }
    return [
        _headline(study, result),
        '<div class="grid">',
        _distribution(result, colours),
        _differences(result, colours),
        _curves(study, result, colours),
        "</div>",
        "<h3>What was trained</h3>",
        _rows(result),
        "<h3>Differences</h3>" if result["tests"] else "",
        _tests(result),
        _notes(result),
        fold("Cells", _cells(result)),
    ]


def _headline(study: StudyData, result: Mapping[str, Any]) -> str:
    done = sum(run.result is not None for run in study.runs.values())
    pairs: list[tuple[str, str] | tuple[str, str, str]] = []
    for name, own in result["rows"].items():
        mean = number(own["test"]["mean"])
        if mean is not None:
            pairs.append(
                (f"test {measure_in(result)}, {name}", f"{mean:,.1f}", _interval(own["test"]))
            )
    pairs += [
        ("seeds", str(len(result["seeds"]))),
        ("time of all jobs", duration(result["seconds"])),
        ("state", "" if study.result is not None else f"not finished: {done} jobs done"),
    ]
    return tiles(pairs)


def measure_in(result: Mapping[str, Any]) -> str:
    """What the numbers of a study are: "perplexity", or of images "error", in percent."""
    return str(result.get("measure", "perplexity"))


def _interval(own: Mapping[str, Any]) -> str:
    low, high = number(own["low"]), number(own["high"])
    return "" if low is None or high is None else f"[{low:,.1f}, {high:,.1f}]"


def _distribution(result: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    rows = [
        Row(
            label=name,
            values=[
                (value, f"{name}, {seed}: {value:.2f}, {cell['cell']}")
                for seed, cell in own["cells"].items()
                if (value := number(cell[f"test_{measure_in(result)}"])) is not None
            ],
            mean=number(own["test"]["mean"]), low=number(own["test"]["low"]),
            high=number(own["test"]["high"]), css=colours[name],
        )
        for name, own in result["rows"].items()
    ]  # fmt: skip
    chart = strips(rows, label="distribution of cells", x_label=f"test {measure_in(result)}")
    note = "A dot a cell, a stroke the mean, a bar its 95 % interval."
    return figure("Found cells and random cells", chart, note)


def percent(log: object) -> float | None:
    """A difference in log perplexity as one of the perplexity in percent."""
    value = number(log)
    return None if value is None else 100 * math.expm1(value)


def _differences(result: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    rows = []
    for test in result["tests"]:
        mean = percent(test["mean"])
        if mean is not None:
            name = f"{test['method']} – {test['against']}"
            rows.append(Row(label=name, values=[(mean, f"{name}: {mean:+.1f} %")], mean=None,
                            low=percent(test["low"]), high=percent(test["high"]),
                            css=colours[test["method"]]))  # fmt: skip
    chart = strips(
        rows,
        label="differences",
        x_label=f"difference of the test {measure_in(result)} (%)",
        level=0.0,
    )
    note = "A dot the mean, a bar its 95 % interval; below 0 the first of the two is better."
    return figure("Differences", chart, note)


def _curves(study: StudyData, result: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    """The final trainings' validation: a line a training, in the colour of what it trained."""
    series = []
    for job, run in study.runs.items():
        name = job_row(job, result)
        if name is not None:
            points = run.points("epoch", f"valid_{run.measure}", "epoch")
            if len(points) > 1:
                series.append(Series(label="", points=points, css=colours[name],
                                     faint=name == "random cells"))  # fmt: skip
    log = measure_in(result) == "perplexity"
    chart = line_chart(
        series, label="final trainings",
        x_label=next((run.noun for run in study.runs.values() if run.kind == "train"), "epoch"),
        y_label=f"validation {'perplexity (log)' if log else 'accuracy (%)'}", log_y=log,
    )  # fmt: skip
    keys = "".join(f'<span class="key f {css}">{name}</span>' for name, css in colours.items())
    return figure("Final trainings", f'<p class="keys">{keys}</p>{chart}' if chart else "")


def job_row(job: str, result: Mapping[str, Any]) -> str | None:
    """The row that a final training belongs to, by its job's name; None of other jobs."""
    if not job.startswith("final-"):
        return None
    cell = job.removeprefix("final-").rpartition("-t")[0]
    if cell in result["rows"]:
        return cell  # a fixed cell
    method, _, number_of = cell.rpartition("-")
    if method == "random" and number_of.startswith("r"):
        return "random cells"
    return method if method in result["rows"] else None


def _rows(result: Mapping[str, Any]) -> str:
    rows = []
    for name, own in result["rows"].items():
        test = own["test"]
        mean, deviation = number(test["mean"]), number(test["sd"])
        said = "–" if mean is None else f"{mean:,.2f}"
        said += "" if deviation is None else f" ± {deviation:.2f}"
        steps, seconds = own["search_steps"], number(own["search_seconds"])
        rows.append([
            name, count_text(own), f"{said}\n{_interval(test)}", f"{steps:,}" if steps else "–",
            duration(seconds) if seconds else "–",
        ])  # fmt: skip
    measure = measure_in(result)
    head = ["cells", "n", f"test {measure}", "steps of a search", "time of a search"]
    return table(head, rows, "num")


def _tests(result: Mapping[str, Any]) -> str:
    rows = []
    for test in result["tests"]:
        mean, low, high = (percent(test[key]) for key in ("mean", "low", "high"))
        if mean is not None:
            ends = "" if low is None or high is None else f"\n[{low:+.1f}, {high:+.1f}]"
            chances = (number(test[key]) for key in ("t_p_holm", "wilcoxon_p_holm"))
            rows.append([
                str(test["method"]), str(test["against"]), str(test["n"]), f"{mean:+.1f} %{ends}",
                *(p_text(p, "–") for p in chances),
            ])  # fmt: skip
    head = ["", "against", "n", "difference", "p, t", "p, Wilcoxon"]
    return table(head, rows, "num") if rows else ""


def _notes(result: Mapping[str, Any]) -> str:
    return f'<p class="sub">{escape(" ".join([figures_note(result), *noise_notes(result)]))}</p>'


def _cells(result: Mapping[str, Any]) -> str:
    measure = measure_in(result)
    rows = [
        [f"{name}, {seed}", str(cell["cell"] or "–"),
         "–" if (value := number(cell[f"test_{measure}"])) is None else f"{value:,.2f}"]
        for name, own in result["rows"].items()
        for seed, cell in own["cells"].items()
    ]  # fmt: skip
    return table(["of", "cell", f"test {measure}"], rows)
