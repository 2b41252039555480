"""The parts of a report: a run, several runs beside each other, and what is common to all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rnnnas.config.plain import leaves
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.zoo import ZOO
from rnnnas.reporting.cells import cell_svg
from rnnnas.reporting.charts import (
    Dot,
    Runner,
    Series,
    line_chart,
    race,
    scatter,
    shown,
)
from rnnnas.reporting.leaders import judged_by, rungs_of
from rnnnas.reporting.levels import latency_of, published_of, word_frequencies
from rnnnas.reporting.read import RunData, number
from rnnnas.reporting.repeat import command_of
from rnnnas.reporting.shares import leading, slider
from rnnnas.runs.files import Lock

NO_COMMAND = (
    '<p class="sub">No preset leads to these settings by the command line of this version, or the '
    "cell has no short text (genotype.json holds it); they are listed below.</p>"
)
_FOREMOST = 8  # cells of a halving in its table


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """How much is shown. frames: of a search's slider; numbers: whether charts have their table."""

    frames: int = 60
    numbers: bool = True


def tiles(numbers: Iterable[tuple[str, str] | tuple[str, str, str]]) -> str:
    """Headline numbers: (name, value) or (name, value, its interval); empty values left out."""
    rows = []
    for name, value, *more in numbers:
        small = f"<small>{escape(more[0])}</small>" if more and more[0] else ""
        if value:
            rows.append(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{small}</dd></div>")
    return f'<dl class="tiles">{"".join(rows)}</dl>' if rows else ""


def figure(title: str, chart: str, note: str = "", table: str = "") -> str:
    """A chart with its title, a sentence and its numbers; "" where there is no chart."""
    if not chart:
        return ""
    said = f'<p class="sub">{escape(note)}</p>' if note else ""
    return f"<article><h3>{escape(title)}</h3>{said}{chart}{table}</article>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], css: str = "") -> str:
    """A table of text; the first column names the row. In one of class `num` what begins with a
    letter stands at the left. What follows a line end in a value stands small below it.
    """
    words = {i for row in rows[:1] for i, value in enumerate(row) if value[:1].isalpha()}
    top = "".join(
        f'<th scope="col"{_left(i in words)}>{escape(word)}</th>' for i, word in enumerate(head)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{_lines(v)}</th>'
            if i == 0
            else f"<td{_left(i in words)}>{_lines(v)}</td>"
            for i, v in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    kind = f' class="{css}"' if css else ""
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="table"><table{kind}><thead><tr>'
        f"{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _lines(value: str) -> str:
    first, _, below = value.partition("\n")
    return escape(first) + (f"<small>{escape(below)}</small>" if below else "")


def _left(text: bool) -> str:
    return ' class="t"' if text else ""


def fold(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def numbers(run: RunData, names: Mapping[str, str], detail: Detail) -> str:
    """The table behind a run's curves: an epoch a row."""
    rows = []
    for line in run.of("epoch"):
        values = (number(line.get(name)) for name in names)
        rows.append([str(line.get("epoch", "")), *("–" if v is None else shown(v) for v in values)])
    if not rows or not detail.numbers:
        return ""
    return fold("Numbers", table([run.noun, *names.values()], rows[-200:], "num"))


def measured(run: RunData, split: str) -> str:
    """'520.0' or '71.35 %': a finished run's result, or of one under way its last epoch's."""
    name = f"{split}_{run.measure}"
    value = number((run.result or {}).get(name))
    if value is None and split == "valid":
        points = run.points("epoch", name)
        value = points[-1][1] if points else None
    if value is None:
        return ""
    return f"{value:.2f} %" if run.measure == "accuracy" else f"{value:,.2f}"


def about(run: RunData) -> str:
    """'search by darts-1st on pydocs, seed 3', in a line."""
    method = f" by {run.config['method']}" if "method" in run.config else ""
    noun = {"search": "search", "train": "training"}.get(run.kind, run.kind)
    corpus, seed = run.config.get("corpus", "?"), run.config.get("seed", "?")
    return f"{noun}{method} on {corpus}, seed {seed}"


def state_of(run: RunData) -> str:
    """What became of a run that has no result, and how far it is: "running, epoch 3 of 14",
    "failed, epoch 1 of 3: the loss is no number".
    """
    if run.result is not None:
        return ""
    why = next((str(line.get("reason", "")) for line in run.lines[-1:]
                if line.get("kind") == "failed"), None)  # fmt: skip
    if Lock.is_held(run.folder):
        return f"running, {_reached(run)}"
    return f"stopped, {_reached(run)}" if why is None else f"failed, {_reached(run)}: {why}"


def _reached(run: RunData) -> str:
    done = max((int(number(line.get("epoch")) or 0) for line in run.of("epoch")), default=0)
    if done:
        return f"{run.noun} {done} of {run.epochs}"
    steps = [step for line in run.lines if (step := number(line.get("step"))) is not None]
    return f"step {max(steps):,.0f}" if steps else "just begun"


def run_section(run: RunData, key: str, detail: Detail, alone: bool = False) -> str:
    """Everything about one run. alone: whether the page is about it, and its title says so."""
    result = run.result or {}
    seconds = number(result.get("seconds"))
    parameters = number(result.get("parameters"))
    latency = number(result.get("latency_us"))
    head: list[tuple[str, str] | tuple[str, str, str]] = [
        (f"test {run.measure}", measured(run, "test")),
        (f"validation {run.measure}", measured(run, "valid"), _held_against(run)),
        ("cells tried", f"{tried:,}" if (tried := cells_tried(run)) else ""),
        ("parameters", "" if parameters is None else f"{parameters:,.0f}"),
        ("latency of the cell", "" if latency is None else f"{latency:.1f} µs a step"),
        ("stopped early", f"epoch {result['stopped_at_epoch']}" if result.get("stopped_at_epoch")
         else ""),
        ("time", "" if seconds is None else duration(seconds)),
        ("state", state_of(run)),
    ]  # fmt: skip
    parts = [
        opening(key, run.name, about(run), run.version, alone),
        tiles(head),
        _cells(run, key, detail),
        _rungs(run),
        f'<div class="grid">{"".join(_charts(run, detail))}</div>',
        settings(run),
        "</section>",
    ]
    return "".join(parts)


def _held_against(run: RunData) -> str:
    """What a validation figure is to be compared with, in a few words."""
    words = "in the search" if run.kind == "search" else ""
    if run.measure != "perplexity":
        return words
    frequencies = word_frequencies(run)
    if frequencies is None:
        return words
    return f"{words}{', ' if words else ''}word frequencies {frequencies:,.0f}"


def cells_tried(run: RunData) -> int:
    """How many cells a search by trials has tried; 0 of other runs."""
    return len({str(line.get("cell", "")) for line in run.of("rung", "candidate")})


def opening(key: str, name: str, what: str, version: str, alone: bool) -> str:
    """A section's heading, which a page about one thing has in its title."""
    head = "" if alone else f"<h2>{escape(name)}</h2>"
    words = name if alone else what
    said = f"{words} · rnnnas {version}"
    return (
        f'<section id="{key}" aria-label="{escape(name)}">{head}<p class="sub">{escape(said)}</p>'
    )


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _cells(run: RunData, key: str, detail: Detail) -> str:
    moving = slider(run, key, detail.frames)
    if moving:
        return moving
    text = f'<p class="genes"><code>{escape(run.cell)}</code></p>' if run.cell else ""
    if run.genotype is None:
        return f"<h3>The cell</h3>{text}" if text else ""
    note = ""
    if run.kind == "search" and not run.of("candidate", "rung"):
        note = '<p class="sub">No shares of operations were logged: its last cell is known.</p>'
    return f"<h3>The cell</h3>{note}{text}{drawing(run.genotype)}"


def drawing(genotype: Genotype) -> str:
    """A cell in a frame that scrolls where it is wider than the page."""
    return (
        '<div class="wide" tabindex="0" role="group" aria-label="The cell">'
        f"{cell_svg(genotype)}</div>"
    )


def _charts(run: RunData, detail: Detail) -> list[str]:
    return [
        _curves(run, detail),
        _published(run),
        figure("Leading operation of each node", leading(run),
               "The greatest share of an operation other than none, on an edge into the node."),
        _search_values(run),
        _candidates(run),
        _latency(run),
    ]  # fmt: skip


def _curves(run: RunData, detail: Detail) -> str:
    measure = run.measure
    if run.of("candidate") and len(run.of("candidate")) == len(run.of("epoch")):
        return ""  # an epoch of such a search is the whole training of a cell
    epochs = {f"train_{measure}": "train", f"valid_{measure}": "validation"}
    series = []
    running = run.points(run.kind, measure)
    if len(running) > 1:
        series.append(Series(label="", points=running, css="c7", faint=True))
    for i, (name, label) in enumerate(epochs.items()):
        points = run.points("epoch", name)
        series.append(Series(label=label, points=points, css=f"c{i}", marked=True))
    levels = []
    if measure == "perplexity" and any(s.points for s in series):
        frequencies = word_frequencies(run)
        levels = [] if frequencies is None else [(frequencies, "word frequencies")]
    chart = line_chart(
        series, label=f"{measure} over steps", x_label="step",
        y_label=f"{measure}{' (log)' if measure == 'perplexity' else ' in %'}",
        log_y=measure == "perplexity", levels=levels,
    )  # fmt: skip
    return figure("Curves", chart, "", numbers(run, epochs, detail))


def _published(run: RunData) -> str:
    """A training's validation beside the published curve of its setting."""
    curve = published_of(run)
    own = run.points("epoch", "valid_perplexity", "epoch")
    if curve is None or not own:
        return ""
    series = [
        Series(label="this run", points=own, css="c0"),
        Series(label="published", points=[(float(e), p) for e, p in curve.points], css="c1",
               dashed=True, marked=True),
    ]  # fmt: skip
    chart = line_chart(
        series, label="beside the published run", x_label="epoch (log)", log_x=True, log_y=True,
        y_label="validation perplexity (log)",
    )  # fmt: skip
    return figure("Beside the published run", chart, curve.source)


def _search_values(run: RunData) -> str:
    named = {
        "alpha_entropy": "entropy of the shares (nats)",
        "alpha_eigenvalue": "greatest eigenvalue",
        "expected_latency_us": "expected latency (µs)",
        "cell_latency_us": "the cell's latency (µs)",
    }
    found = []
    for name, label in named.items():
        points = run.points("epoch", name, "epoch")
        if len(points) > 1:
            chart = line_chart(
                [Series(label="", points=points, css="c2", marked=True)], label=label,
                x_label=run.noun, y_label=label,
            )  # fmt: skip
            found.append(figure(label[0].upper() + label[1:], chart))
    return "".join(found)


def _candidates(run: RunData) -> str:
    """Cells that were tried one after the other; a halving's have their rungs instead."""
    if run.of("rung"):
        return ""
    tried = [
        (number(line.get("number")), number(line.get("perplexity")), str(line.get("cell", "")))
        for line in run.of("candidate")
    ]
    dots = [
        Dot(x=n, y=p, title=f"{cell}: {shown(p)}", css="c0")
        for n, p, cell in tried
        if n is not None and p is not None
    ]
    chart = scatter(
        dots, label="cells that were tried", x_label="cell", y_label="perplexity it was scored by"
    )
    note = f"{len(dots)} cells; the lowest is taken."
    return figure("Cells that were tried", chart, note)


def runners_of(run: RunData) -> tuple[list[Runner], list[str]]:
    """The cells of a halving with how far they were behind the best of each rung, in nats a token,
    and the rungs' names. A rung is judged by the held-out loss where all of its cells have one.
    """
    rungs = rungs_of(run)
    losses: dict[str, list[tuple[int, float]]] = {}
    last: dict[str, Mapping[str, Any]] = {}
    for place, lines in enumerate(rungs.values()):
        name = judged_by(lines)
        best = min((v for line in lines if (v := number(line.get(name))) is not None), default=0.0)
        for line in lines:
            cell, loss = str(line.get("cell", "")), number(line.get(name))
            last[cell] = line
            own = losses.setdefault(cell, [])
            if loss is not None:
                own.append((place, loss - best))
    found = []
    for cell, line in last.items():
        parent = line.get("parent")
        words = "; ".join(f"rung {place + 1}: +{behind:.4f}" for place, behind in losses[cell])
        title = f"{cell}{f' (child of {parent})' if parent else ''}, {words or 'diverged'}"
        kept = bool(line.get("kept"))
        found.append(Runner(title=title, losses=losses[cell], kept=kept, parent=bool(parent)))
    return found, [f"rung {rung} ({len(lines)} cells)" for rung, lines in rungs.items()]


def _rungs(run: RunData) -> str:
    runners, names = runners_of(run)
    chart = race(runners, names, label="rungs of the halving", y_label="behind the best (nats)")
    children = any(r.parent for r in runners)
    note = (
        f"{len(runners)} cells. A column is a rung, a dot a cell; hollow ones went no further."
        + (" Green: children of the best cells." if children else "")
    )
    chart = f'<div class="wide" tabindex="0" role="group" aria-label="rungs">{chart}</div>'
    return figure("Rungs", chart if runners else "", note, _foremost(run))


def _foremost(run: RunData) -> str:
    """The cells of a halving that were trained longest, by their validation."""
    scored = [
        (steps, value, line)
        for line in run.of("candidate")
        if (steps := number(line.get("steps"))) is not None
        and (value := number(line.get("perplexity"))) is not None
    ]
    most = max((steps for steps, _, _ in scored), default=0.0)
    best = sorted((row for row in scored if row[0] == most), key=lambda row: row[1])
    rows = []
    for _, value, line in best[:_FOREMOST]:
        train = number(line.get("train_perplexity"))
        rows.append([str(line.get("cell", "")), "–" if train is None else shown(train),
                     shown(value)])  # fmt: skip
    head = [f"trained longest, {most:,.0f} steps", "train perplexity", "held-out perplexity"]
    return table(head, rows, "num") if rows else ""


def _latency(run: RunData) -> str:
    """Latency against perplexity of the cells that a search has scored, by the table it kept."""
    scored = {str(line.get("cell", "")): number(line.get("perplexity"))
              for line in run.of("candidate")}  # fmt: skip
    times, of = latency_of(list(scored), run)
    dots = [
        Dot(x=us, y=p, title=f"{cell}: {us:.1f} µs, {shown(p)}")
        for cell, us in times.items()
        if (p := scored[cell]) is not None
    ]
    chart = scatter(
        dots, label="latency against perplexity", x_label="predicted latency (µs a step)",
        y_label="perplexity",
    )  # fmt: skip
    return figure("Latency against perplexity", chart, f"Latencies of {of}.")


def settings(run: RunData) -> str:
    """How to do it again: the command, the digest and all settings."""
    command = command_of(run)
    digest = str((run.result or {}).get("digest", ""))
    checkpoint = run.config.get("corpus_sha256")
    rows = [[key, json.dumps(value, ensure_ascii=False)] for key, value in leaves(run.config)
            if not key.startswith("genotype")]  # fmt: skip
    parts = ["<h3>How to repeat it</h3>"]
    if command:
        parts.append(command_block(command))
    else:
        parts.append(NO_COMMAND)
    known = [("digest", digest), ("corpus sha256", str(checkpoint or "")),
             ("arithmetic", str((run.result or {}).get("arithmetic", "")))]  # fmt: skip
    facts = "".join(f"<dt>{n}</dt><dd><code>{escape(v)}</code></dd>" for n, v in known if v)
    parts.append(f'<dl class="facts">{facts}</dl>')
    parts.append(fold("Settings", table(["setting", "value"], rows)))
    return "".join(parts)


def command_block(command: str) -> str:
    return (
        f'<div class="command"><pre tabindex="0"><code>{escape(command)}</code></pre>'
        '<button type="button" class="copy">copy</button></div>'
    )


def known_cells() -> dict[str, str]:
    """The names of published cells by their short text."""
    return {published.genotype.to_text(): name for name, published in ZOO.items()}
