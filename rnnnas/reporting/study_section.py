"""The part of a report that is about a study: methods compared, finished or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rnnnas.config.plain import from_plain, leaves
from rnnnas.errors import UsageError
from rnnnas.reporting.charts import Dot, Row, Series, line_chart, scatter, shown, strips
from rnnnas.reporting.levels import latency_of
from rnnnas.reporting.paired_section import measure_in, paired_parts
from rnnnas.reporting.read import RunData, StudyData, genotype_from, number
from rnnnas.reporting.repeat import study_command
from rnnnas.reporting.sections import (
    NO_COMMAND,
    command_block,
    drawing,
    duration,
    figure,
    fold,
    known_cells,
    opening,
    table,
    tiles,
)
from rnnnas.studies.paired_table import paired_report
from rnnnas.studies.plan import Job, Sizes, StudyConfig, final_jobs, first_jobs
from rnnnas.studies.record import Record
from rnnnas.studies.report import choose, notes, report

_COLOURS = 7  # of methods; the random cells are grey
_LOUD = ("WARNING: ", "FAILED", "SKIPPED")


def result_of(study: StudyData) -> Mapping[str, Any] | None:
    """The study's result, or of one under way that of the jobs that are done.

    Returns:
        None where its plan is one of another version.
    """
    if study.result is not None:
        return study.result
    sizes = Sizes({"train": range(1_000_000)})  # steps are not told of here
    try:
        config: StudyConfig = from_plain(StudyConfig, study.plan["config"])
        jobs: list[Job] = first_jobs(config, sizes)
    except (UsageError, TypeError, ValueError):
        return None
    record = Record(study.folder, config, str(study.plan.get("corpus_sha256", "")))
    record.jobs = {name: dict(job) for name, job in study.jobs.items()}
    results = {n: dict(run.result) for n, run in study.runs.items() if run.result is not None}
    if all(job.name in results for job in jobs):
        jobs += final_jobs(config, choose(jobs, results), sizes)
    told = paired_report if config.finals == "all" else report
    return told(record, jobs, results)


def about_study(study: StudyData) -> str:
    """'study of darts-1st and gdas on pydocs, 3 seeds', in a line."""
    config = study.plan["config"]
    methods = [str(m) for m in config.get("methods", [])]
    named = ", ".join(methods[:-1]) + (" and " if methods[1:] else "") + "".join(methods[-1:])
    return f"study of {named} on {config.get('corpus', '?')}, {len(config.get('seeds', []))} seeds"


def study_section(study: StudyData, key: str, alone: bool = False) -> str:
    """Everything about one study. alone: as for `run_section`."""
    result = result_of(study)
    head = opening(key, study.name, about_study(study), study.version, alone)
    if result is None:
        return head + "<p>Its plan is one of another version: it cannot be read.</p></section>"
    if "rows" in result:
        failed = _notes_of(_failures(result))
        return "".join(
            [head, *paired_parts(study, result), failed, _again(study, result), "</section>"]
        )
    colours = _colours(result)
    parts = [
        head,
        _headline(study, result),
        '<div class="grid">',
        _distribution(result, colours),
        _ranks(result, colours),
        _curves(study, result, colours),
        _latency(study, result, colours),
        "</div>",
        "<h3>Methods</h3>",
        _table(result),
        _notes(result),
        _cells(result),
        _again(study, result),
        "</section>",
    ]
    return "".join(parts)


def _colours(result: Mapping[str, Any]) -> dict[str, str]:
    methods = list(result["methods"])
    return {m: "c7" if m == "random cells" else f"c{i % _COLOURS}" for i, m in enumerate(methods)}


def _headline(study: StudyData, result: Mapping[str, Any]) -> str:
    done = sum(run.result is not None for run in study.runs.values())
    pairs: list[tuple[str, str] | tuple[str, str, str]] = []
    for method, own in result["methods"].items():
        for split, word in (("test", "test"), ("valid", "validation")):
            mean = number(own[split]["mean"])
            if mean is not None:
                name = f"{word} {measure_in(result)}, {method}"
                pairs.append((name, f"{mean:,.1f}", _interval(own[split], "")))
                break
    pairs += [
        ("seeds", str(len(result["seeds"]))),
        ("time of all jobs", duration(result["seconds"])),
        ("state", "" if study.result is not None else f"not finished: {done} jobs done"),
    ]
    return tiles(pairs)


def _distribution(result: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    rows = []
    for method, own in result["methods"].items():
        values = [
            (value, f"{method}, {'seed' if method != 'random cells' else 'number'} "
                    f"{cell['seed']}: {value:.2f}, {cell['cell']}")
            for cell in own["cells"]
            if (value := number(cell[f"valid_{measure_in(result)}"])) is not None
        ]  # fmt: skip
        spread = own["valid"]
        rows.append(Row(label=method, values=values, mean=number(spread["mean"]),
                        low=number(spread["low"]), high=number(spread["high"]),
                        css=colours[method]))  # fmt: skip
    chart = strips(rows, label="distribution of cells", x_label=f"validation {measure_in(result)}")
    return figure(
        "Found cells and random cells", chart,
        "After the short training: a dot a cell, a stroke the mean, a bar its 95 % interval.",
    )  # fmt: skip


def _ranks(result: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    dots = []
    measure = measure_in(result)
    for method, own in result["methods"].items():
        for cell in own["cells"]:
            x, y = (number(cell[f"{kind}_{measure}"]) for kind in ("search_valid", "valid"))
            if x is not None and y is not None:
                title = (
                    f"{method}, seed {cell['seed']}: {shown(x)} in the search, {shown(y)} trained"
                )
                dots.append(Dot(x=x, y=y, title=title, css=colours[method]))
    chart = scatter(
        dots, label="search rank against trained rank", x_label=f"{measure} the search reported",
        y_label="after the short training",
    )  # fmt: skip
    return figure("Does the search know?", _legend(dots, colours) + chart if chart else "",
                  _tau(result))  # fmt: skip


def _tau(result: Mapping[str, Any]) -> str:
    tau = result["tau"]
    value, needed, n = tau["tau_b"], tau["needed"], tau["n"]
    if value is None:
        return f"Kendall's tau: none, for {n} cells."
    said = f"Kendall's tau {value:+.2f} over {n} cells"
    if needed is None:
        return f"{said}: too few to mean anything."
    worth = "beyond" if abs(value) >= needed - 1e-9 else "within"
    return f"{said}: {worth} chance (|tau| of {needed:.2f} is 1 in 20)."


def _legend(dots: list[Dot], colours: Mapping[str, str]) -> str:
    used = {dot.css for dot in dots}
    words = [
        f'<span class="key f {css}">{escape(method)}</span>'
        for method, css in colours.items()
        if css in used
    ]
    return f'<p class="keys">{"".join(words)}</p>'


def _curves(study: StudyData, result: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    """The short trainings, each by what it read: a line a cell."""
    series = []
    for method in result["methods"]:
        for name, run in study.runs.items():
            if name.startswith("train-") and _method(name, result) == method:
                points = run.points("train", run.measure)
                css = colours[method]
                series.append(Series(label="", points=points[1:], css=css, faint=css == "c7"))
    log = measure_in(result) == "perplexity"
    chart = line_chart(
        series, label="short trainings", x_label="step",
        y_label=f"train {'perplexity (log)' if log else 'accuracy (%)'}", log_y=log,
    )  # fmt: skip
    keys = "".join(
        f'<span class="key f {css}">{escape(method)}</span>' for method, css in colours.items()
    )
    return figure("Short trainings", f'<p class="keys">{keys}</p>{chart}' if chart else "")


def _method(name: str, result: Mapping[str, Any]) -> str:
    """The method of a job `train-METHOD-sN` or `train-random-rN`."""
    method = name.removeprefix("train-").rpartition("-")[0]
    return method if method in result["methods"] and "-r" not in name[-4:] else "random cells"


def _latency(study: StudyData, result: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    cells = {
        str(cell["cell"]): (method, value)
        for method, own in result["methods"].items()
        for cell in own["cells"]
        if cell["cell"] and (value := number(cell[f"valid_{measure_in(result)}"])) is not None
    }
    times, of = latency_of(list(cells), next(iter(study.runs.values()), None))
    dots = [
        Dot(x=us, y=cells[cell][1], title=f"{cells[cell][0]}: {us:.1f} µs, {shown(cells[cell][1])}",
            css=colours[cells[cell][0]])
        for cell, us in times.items()
    ]  # fmt: skip
    chart = scatter(
        dots, label="latency against perplexity", x_label="predicted latency (µs a step)",
        y_label="after the short training",
    )  # fmt: skip
    return figure(
        "Latency against perplexity", _legend(dots, colours) + chart if chart else "",
        f"Latencies of {of}.",
    )  # fmt: skip


def _table(result: Mapping[str, Any]) -> str:
    head = ["cells", "n", "validation", "best", "random, best of n", "chosen",
            "final validation", "final test", "time"]  # fmt: skip
    rows = []
    for method, own in result["methods"].items():
        valid, test = own["valid"], own["test"]
        n = f"{valid['n']}" + (f" of {own['planned']}" if valid["n"] < own["planned"] else "")
        rows.append([
            method, n, f"{_mean(valid)}\n{_interval(valid, '')}", _value(own["best_valid"]),
            _value(own["random_best_of_n"]),
            own["chosen"]["name"] if own["chosen"] else "–", _mean(own["final_valid"]),
            f"{_mean(test)}\n{_interval(test, '')}",
            duration(sum(own["seconds"].values())),
        ])  # fmt: skip
    return table(head, rows, "num")


def _value(value: object) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.1f}"


def _mean(own: Mapping[str, Any]) -> str:
    deviation = number(own["sd"])
    return _value(own["mean"]) + ("" if deviation is None else f" ± {deviation:.1f}")


def _interval(own: Mapping[str, Any], missing: str = "–") -> str:
    if number(own["low"]) is None:
        return missing
    return f"[{_value(own['low'])}, {_value(own['high'])}]"


def _notes(result: Mapping[str, Any]) -> str:
    """What the numbers are over, as a paragraph; a warning and a failed job have their own."""
    said = [line.replace("`", "") for line in notes(result)]
    apart = [line for line in said if line.startswith(_LOUD) or " WARNING: " in line]
    rest = [line for line in said if line not in apart]
    return _notes_of([" ".join(rest), *apart])


def _notes_of(lines: Sequence[str]) -> str:
    return "".join(
        f'<p class="sub{" loud" if any(w in line for w in _LOUD) else ""}">{escape(line)}</p>'
        for line in lines
        if line
    )


def _failures(result: Mapping[str, Any]) -> list[str]:
    return [
        f"{entry['state'].upper()}: {entry['job']}: {entry.get('message', '')}"
        for entry in result["failed"]
    ]


def _cells(result: Mapping[str, Any]) -> str:
    """The cell that was chosen of each method."""
    known = known_cells()
    parts = []
    for own in result["methods"].values():
        text = str((own["chosen"] or {}).get("cell") or "")
        genotype = genotype_from(text)
        if genotype is not None:
            name = f", which is {known[text]}" if text in known else ""
            parts.append(
                f"<h4>{escape(own['chosen']['name'])}{name}</h4>"
                f'<p class="genes"><code>{escape(text)}</code></p>{drawing(genotype)}'
            )
    return "<h3>Chosen cells</h3>" + "".join(parts) if parts else ""


def _again(study: StudyData, result: Mapping[str, Any]) -> str:
    command = study_command(study)
    parts = ["<h3>How to repeat it</h3>"]
    parts.append(command_block(command) if command else NO_COMMAND)
    digests = [
        [name, str(run.result.get("digest", "")), _seconds(run)]
        for name, run in sorted(study.runs.items())
        if run.result is not None
    ]
    parts.append(fold("Jobs and digests", table(["job", "digest", "time"], digests)))
    rows = [[key, str(value)] for key, value in leaves(study.plan["config"])]
    parts.append(fold("Settings", table(["setting", "value"], rows)))
    return "".join(parts)


def _seconds(run: RunData) -> str:
    seconds = number((run.result or {}).get("seconds"))
    return "" if seconds is None else duration(seconds)
