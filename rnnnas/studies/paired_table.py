"""The report of a study whose every found cell gets final trainings: means and paired tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rnnnas.runs.files import json_plain
from rnnnas.studies.costs import cost_of, cost_text
from rnnnas.studies.formats import Sheet, rendered
from rnnnas.studies.measure import Measure, loss_of, measure_of
from rnnnas.studies.paired import Paired, beside_one, holm, p_text, paired, unpaired
from rnnnas.studies.plan import RANDOM, Job, StudyConfig
from rnnnas.studies.record import Record
from rnnnas.studies.statistics import expected_choice, spread, training_variance

Results = Mapping[str, dict[str, Any]]


def paired_report(record: Record, jobs: Sequence[Job], results: Results) -> dict[str, Any]:
    """The report of a study with `finals = "all"`.

    rows: by what was trained (a method, a fixed cell, the random cells): n cells, mean test
    perplexity (of the cells' geometric means over training seeds), its spread over cells, and what
    the searches cost in steps and seconds. Cells count whose every training came to a finite loss;
    `planned` says of how many. training_sd: of one training's log perplexity about what its cell
    and seed come to; None where each cell has one. tests: every method against the random cells,
    each fixed cell, and the other methods, in log perplexity, paired by search seed and by training
    seed; the random cells, which belong to no search, are an independent sample; the error of a
    fixed cell's own trainings is part of the interval. p values are corrected by Holm over the
    methods that are held against the same thing.
    """
    config = record.config
    measure = measure_of(results.values())
    every = {name: _logs(name, jobs, results) for name in rows_of(config)}
    # All seeds, but of a study under way those that most cells have got to.
    counts = Counter(t for own in every.values() for cell in own.values() for t in cell)
    most = max(counts.values(), default=0)
    seeds = [t for t in config.final_seeds if 2 * counts[t] > most]
    logs = {name: _whole(own, seeds) for name, own in every.items()}
    noise = training_variance(
        [[cell[t] for t in seeds] for own in logs.values() for cell in own.values()]
    )
    rows = {}
    for name, cells in logs.items():
        own = [j for j in jobs if j.method == name and j.kind == "search" and j.name in results]
        finals = [j for j in jobs if j.method == name and j.kind == "final"]
        values = [math.exp(_mean(list(cell.values()))) for cell in cells.values()]
        rows[name] = {
            "test": asdict(spread(values)),
            "planned": len({job.seed for job in finals}),
            "cells": {
                seed: {"cell": _cell(name, seed, jobs, results), f"test_{measure}": value}
                for seed, value in zip(cells, values, strict=True)
            },
            "search_steps": cost_of(own, record, results)["steps"] or 0,
            "search_seconds": _mean([results[j.name]["seconds"] for j in own]) if own else 0.0,
            "cost": {
                "search": cost_of(own, record, results),
                "final": cost_of(finals, record, results),
            },
        }
    for row in rows.values():
        row["random_same_cost"] = _random_of(row, rows[RANDOM], jobs, results, measure)
    tests = []
    for name in config.methods:
        for other in rows_of(config):
            if other != name and not (other in config.methods and _after(other, name, config)):
                if other == RANDOM:
                    found = unpaired(*(_means(logs[one]) for one in (name, other)))
                elif other in config.fixed:
                    found = _beside_fixed(logs[name], logs[other], noise)
                else:
                    found = paired(_differences(logs[name], logs[other]))
                tests.append({"method": name, "against": other, **asdict(found)})
    for other in rows_of(config):
        family = [test for test in tests if test["against"] == other]
        for key in ("t_p", "wilcoxon_p"):
            for test, value in zip(family, holm([test[key] for test in family]), strict=True):
                test[f"{key}_holm"] = value
    failed = [
        {"job": job.name, **record.job(job.name)}
        for job in jobs
        if record.job(job.name)["state"] in ("failed", "skipped")
    ]
    plain: dict[str, Any] = json_plain(
        {
            "corpus": config.corpus,
            **({} if measure == "perplexity" else {"measure": measure}),
            "seeds": config.seeds,
            "final_seeds": config.final_seeds,
            "training_sd": None if noise is None else math.sqrt(noise[0]),
            "rows": rows,
            "tests": tests,
            "failed": failed,
            "seconds": sum(results[job.name]["seconds"] for job in jobs if job.name in results),
        }
    )
    return plain


def _random_of(
    row: Mapping[str, Any],
    drawn: Mapping[str, Any],
    jobs: Sequence[Job],
    results: Results,
    measure: Measure,
) -> dict[str, Any] | None:
    """What random search gives that has full trainings at the cost of a row's search: n cells, one
    training each, of which the best by validation is taken, and the mean test perplexity of that
    one over all choices of n of the study's random cells. n: no more than there are. None for rows
    without a search, and where steps are not known.
    """
    searched, trained = row["cost"]["search"]["steps"], drawn["cost"]["final"]["steps"]
    order = []
    for seed, cell in drawn["cells"].items():
        first = next(
            j for j in jobs
            if (j.method, j.kind, j.seed) == (RANDOM, "final", seed) and j.name in results
        )  # fmt: skip
        valid = loss_of(results[first.name], "valid")
        if valid is not None:
            order.append((valid, cell[f"test_{measure}"]))
    if not searched or not trained or not order:
        return None
    n = min(max(1, round(searched / trained)), len(order))
    value = expected_choice(order, n)
    return {"n": n, "wanted": round(searched / trained, 1), f"test_{measure}": value}


def rows_of(config: StudyConfig) -> list[str]:
    """What the study compares, in order."""
    return [*config.methods, RANDOM, *config.fixed]


def _after(other: str, name: str, config: StudyConfig) -> bool:
    """Whether the pair of methods is tested with the other one first."""
    return config.methods.index(other) < config.methods.index(name)


def _logs(name: str, jobs: Sequence[Job], results: Results) -> dict[int, dict[int, float]]:
    """Log test perplexity by seed of the cell, then by seed of the training."""
    logs: dict[int, dict[int, float]] = {}
    for job in jobs:
        if job.kind == "final" and job.method == name and job.name in results:
            value = loss_of(results[job.name], "test")
            seed = int(job.words[job.words.index("--seed") + 1])
            logs.setdefault(job.seed, {})[seed] = _log(value)
    return logs


def _log(value: float | None) -> float:
    """Of an error of 0, which no image shows, that of a tenth of a thousandth of a percent."""
    return math.inf if value is None else math.log(max(value, 1e-4))


def _whole(
    cells: Mapping[int, Mapping[int, float]], seeds: Sequence[int]
) -> dict[int, dict[int, float]]:
    """The cells whose final trainings with all these seeds came to a finite loss, with these alone:
    a mean over fewer seeds than others have, or over more, would compare seeds.
    """
    return {
        seed: {t: cell[t] for t in seeds}
        for seed, cell in cells.items()
        if all(math.isfinite(cell.get(t, math.inf)) for t in seeds)
    }


def _differences(
    own: Mapping[int, Mapping[int, float]], other: Mapping[int, Mapping[int, float]]
) -> list[float]:
    """One a search seed: the mean over training seeds of the difference in log perplexity."""
    return [
        _mean([logs[t] - other[seed][t] for t in logs])
        for seed, logs in own.items()
        if seed in other
    ]


def _beside_fixed(
    own: Mapping[int, Mapping[int, float]],
    other: Mapping[int, Mapping[int, float]],
    noise: tuple[float, int] | None,
) -> Paired:
    """Cells against a fixed one, of which there is one whatever the number of searches."""
    beside = next(iter(other.values()), None)
    differences = [] if beside is None else _differences(own, dict.fromkeys(own, beside))
    if beside is None or noise is None:  # with one training a cell, its error is not known
        mean = spread(differences).mean
        return Paired(n=len(differences), mean=mean, low=None, high=None, t_p=None, wilcoxon_p=None)
    return beside_one(differences, noise[0] / len(beside), noise[1])


def _means(cells: Mapping[int, Mapping[int, float]]) -> list[float]:
    """Of every cell the mean over its training seeds, which are the same for all."""
    return [_mean(list(cell.values())) for cell in cells.values()]


def _cell(name: str, seed: int, jobs: Sequence[Job], results: Results) -> str | None:
    for job in jobs:
        if job.method == name and job.seed == seed:
            if job.kind == "search" and job.name in results:
                return str(results[job.name]["cell"])
            if job.kind == "final" and job.after is None:
                return job.words[job.words.index("--genotype") + 1]
    return None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def paired_table(result: Mapping[str, Any]) -> str:
    """The report as text."""
    return rendered(paired_sheets(result), paired_notes(result), "text")


def paired_sheets(result: Mapping[str, Any]) -> list[Sheet]:
    """The report as tables: perplexities and costs of each row, and the tests."""
    measure = result.get("measure", "perplexity")
    head = ["", "cells", f"test {measure}", "95 % interval", "search steps", "search s"]
    told = all("cost" in row for row in result["rows"].values())  # not of earlier versions
    if told:
        head = [*head[:4], "random, same cost", "search steps", "tokens", "processor s",
                "training steps", "tokens", "processor s"]  # fmt: skip
    lines = []
    for name, row in result["rows"].items():
        test = row["test"]
        mean = "failed" if test["mean"] is None else f"{test['mean']:.2f}"
        sd = "" if test["sd"] is None else f" ± {test['sd']:.2f}"
        interval = "-" if test["low"] is None else f"[{test['low']:.2f}, {test['high']:.2f}]"
        line = [name, count_text(row), mean + sd, interval]
        if told:
            drawn = row["random_same_cost"]
            line.append("-" if drawn is None else
                        f"{drawn[f'test_{measure}']:.2f} (best of {drawn['n']})")  # fmt: skip
            line += [*cost_text(row["cost"]["search"]), *cost_text(row["cost"]["final"])]
        else:
            line += [f"{row['search_steps']:,}", f"{row['search_seconds']:.0f}"]
        lines.append(line)
    tests = []
    for test in result["tests"]:
        if test["mean"] is None:
            continue
        percent = [
            "-" if test[key] is None else f"{100 * (math.exp(test[key]) - 1):+.1f} %"
            for key in ("mean", "low", "high")
        ]
        values = [p_text(test[key]) for key in ("t_p_holm", "wilcoxon_p_holm")]
        interval = f"[{percent[1]}, {percent[2]}]"
        tests.append((test["method"], test["against"], percent[0], interval, *values))
    names = ("", "against", "difference", "95 % interval", "t: p", "Wilcoxon: p")
    return [
        Sheet(title=f"study on {result['corpus']}", head=head, rows=lines),
        Sheet(title="tests", head=names, rows=tests),
    ]


def figures_note(result: Mapping[str, Any]) -> str:
    """What the means, the differences and the p values are."""
    finals = len(result["final_seeds"])
    measure = result.get("measure", "perplexity")
    what = "Perplexities" if measure == "perplexity" else "Errors in percent of the images"
    return (
        f"{what}, lower is better: mean ± standard deviation over cells, each the geometric mean "
        f"of {finals} final training{'s' if finals > 1 else ''} {_seeds_text(result)}. Differences "
        f"in {measure}, paired by search seed and by training seed; from random cells, which "
        "belong to no search, by Welch's t and rank sums; p values, two-sided, are corrected by "
        "Holm over the methods held against the same thing."
    )


def _seeds_text(result: Mapping[str, Any]) -> str:
    """Whether final trainings are of seeds that no search has seen."""
    both = sorted({*result["seeds"]} & {*result["final_seeds"]})
    if not both:
        return "with seeds that no search used"
    return (
        f"of which seed {', '.join(map(str, both))} is a search's, too, so that a cell that was "
        "chosen by such a training may owe some of its lead to it"
    )


def noise_notes(result: Mapping[str, Any]) -> list[str]:
    """What the table counts and its intervals hold; nothing of studies of earlier versions."""
    notes = []
    noise = result.get("training_sd")
    fixed = any(t["against"] not in (RANDOM, *_searched(result)) for t in result["tests"])
    if noise is not None:
        notes.append(
            f"One training of a cell has a noise of {100 * math.expm1(noise):.2f} %"
            + ("; of a fixed cell's own trainings it is part of the interval and of t." if fixed
               else ".")
        )  # fmt: skip
    elif "training_sd" in result and fixed:
        notes.append("With one final training a cell, the error of a fixed cell is not known.")
    rows = result["rows"].values()
    if any(row.get("planned", row["test"]["n"]) != row["test"]["n"] for row in rows):
        notes.append("Cells count of which every final training came to a finite loss.")
    return notes


def _searched(result: Mapping[str, Any]) -> set[str]:
    """The rows that searches made."""
    return {str(test["method"]) for test in result["tests"]}


def count_text(row: Mapping[str, Any]) -> str:
    """'8', or '7 of 8' where a cell lacks a final training."""
    own = row["test"]["n"]
    planned = row.get("planned", own)  # earlier versions do not tell
    return str(own) if planned == own else f"{own} of {planned}"


def paired_notes(result: Mapping[str, Any]) -> list[str]:
    """What the numbers are."""
    measure = result.get("measure", "perplexity")
    notes = [figures_note(result), *noise_notes(result)]
    if all("cost" in row for row in result["rows"].values()):
        notes.append(
            f"random, same cost: the expected test {measure} of the best by validation of as many "
            "random cells as could be trained once in a search's steps, if there are so many. "
            "Costs are means of a search, and of a training: weight steps, targets, processor "
            "seconds; in brackets by the clock, where those are not known."
        )
    for entry in result["failed"]:
        notes.append(f"{entry['state'].upper()}: {entry['job']}: {entry.get('message', '')}")
    return notes
