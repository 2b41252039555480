"""The report of a study whose every found cell gets final trainings: means and paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rnnnas.runs.files import json_plain
from rnnnas.studies.paired import holm, paired
from rnnnas.studies.plan import RANDOM, Job, StudyConfig
from rnnnas.studies.record import Record
from rnnnas.studies.statistics import spread

Results = Mapping[str, dict[str, Any]]


def paired_report(record: Record, jobs: Sequence[Job], results: Results) -> dict[str, Any]:
    """The report of a study with `finals = "all"`.

    rows: by what was trained (a method, a fixed cell, the random cells): n cells, mean test
    perplexity (of the cells' geometric means over training seeds), its spread over cells, and what
    the searches cost in steps and seconds. tests: every method against the random cells, each
    fixed cell, and the methods of the same budget, in log perplexity, paired by search seed (the
    random cells by their number) and by training seed; p values corrected by Holm over all.
    """
    config = record.config
    logs = {name: _logs(name, jobs, results) for name in rows_of(config)}
    rows = {}
    for name, cells in logs.items():
        own = [j for j in jobs if j.method == name and j.kind == "search" and j.name in results]
        values = [math.exp(_mean(list(cell.values()))) for cell in cells.values()]
        rows[name] = {
            "test": asdict(spread(values)),
            "cells": {
                seed: {"cell": _cell(name, seed, jobs, results), "test_perplexity": value}
                for seed, value in zip(cells, values, strict=True)
            },
            "search_steps": own[0].steps if own else 0,
            "search_seconds": _mean([results[j.name]["seconds"] for j in own]) if own else 0.0,
        }
    tests = []
    for name in config.methods:
        for other in rows_of(config):
            if other != name and not (other in config.methods and _after(other, name, config)):
                differences = _differences(logs[name], logs[other], other in config.fixed)
                tests.append({"method": name, "against": other, **asdict(paired(differences))})
    for key in ("t_p", "wilcoxon_p"):
        for test, value in zip(tests, holm([test[key] for test in tests]), strict=True):
            test[f"{key}_holm"] = value
    failed = [
        {"job": job.name, **record.job(job.name)}
        for job in jobs
        if record.job(job.name)["state"] in ("failed", "skipped")
    ]
    plain: dict[str, Any] = json_plain(
        {
            "corpus": config.corpus,
            "seeds": config.seeds,
            "final_seeds": config.final_seeds,
            "rows": rows,
            "tests": tests,
            "failed": failed,
            "seconds": sum(results[job.name]["seconds"] for job in jobs if job.name in results),
        }
    )
    return plain


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
            value = results[job.name]["test_perplexity"]
            seed = int(job.words[job.words.index("--seed") + 1])
            logs.setdefault(job.seed, {})[seed] = math.inf if value is None else math.log(value)
    return logs


def _differences(
    own: Mapping[int, Mapping[int, float]], other: Mapping[int, Mapping[int, float]], fixed: bool
) -> list[float]:
    """One a search seed: the mean over training seeds of the difference in log perplexity."""
    found = []
    for seed, logs in own.items():
        beside = next(iter(other.values()), {}) if fixed else other.get(seed, {})
        both = [logs[t] - beside[t] for t in logs if t in beside]
        if both and all(math.isfinite(value) for value in both):
            found.append(_mean(both))
    return found


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
    head = ("", "cells", "test perplexity", "95 % interval", "search steps", "search s")
    lines = [head]
    for name, row in result["rows"].items():
        test = row["test"]
        mean = "failed" if test["mean"] is None else f"{test['mean']:.2f}"
        sd = "" if test["sd"] is None else f" ± {test['sd']:.2f}"
        interval = "-" if test["low"] is None else f"[{test['low']:.2f}, {test['high']:.2f}]"
        steps, seconds = f"{row['search_steps']:,}", f"{row['search_seconds']:.0f}"
        lines.append((name, str(test["n"]), mean + sd, interval, steps, seconds))
    tests = [("", "against", "difference", "95 % interval", "t: p", "Wilcoxon: p")]
    for test in result["tests"]:
        if test["mean"] is None:
            continue
        percent = [
            "-" if test[key] is None else f"{100 * (math.exp(test[key]) - 1):+.1f} %"
            for key in ("mean", "low", "high")
        ]
        values = ["-" if p is None else f"{p:.2g}" for p in
                  (test["t_p_holm"], test["wilcoxon_p_holm"])]  # fmt: skip
        interval = f"[{percent[1]}, {percent[2]}]"
        tests.append((test["method"], test["against"], percent[0], interval, *values))
    finals = len(result["final_seeds"])
    notes = [
        f"Perplexities, lower is better: mean ± standard deviation over cells, each the geometric "
        f"mean of {finals} final training{'s' if finals > 1 else ''}",
        "with seeds that no search used. Differences in perplexity, paired by search seed and by "
        "training seed; p values, two-sided,",
        "are corrected by Holm over all rows of their table.",
    ]
    for entry in result["failed"]:
        notes.append(f"{entry['state'].upper()}: {entry['job']}: {entry.get('message', '')}")
    return "\n\n".join([_columns(lines), _columns(tests), "\n".join(notes)])


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
