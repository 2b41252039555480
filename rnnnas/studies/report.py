"""What a study found: cells chosen by validation, statistics a method, and how to say it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rnnnas.config.presets import AnySearch
from rnnnas.data.yardsticks import Yardsticks, compared
from rnnnas.runs.files import disk_errors, json_plain
from rnnnas.runs.tensorboard import Board, empty_events
from rnnnas.studies.costs import cost_of, cost_text
from rnnnas.studies.formats import Sheet, rendered
from rnnnas.studies.measure import Measure, loss_of, measure_of
from rnnnas.studies.plan import RANDOM, Job, cell_name, search_config
from rnnnas.studies.record import Record
from rnnnas.studies.statistics import expected_best, kendall_tau, spread, tau_threshold

Results = Mapping[str, dict[str, Any]]
KINDS = ("search", "short", "final")  # of jobs


def choose(jobs: Sequence[Job], results: Results) -> dict[str, int]:
    """The seed (or random number) of each method's best cell: least VALIDATION perplexity, or error
    on images, after the short training; the earlier one on ties. Methods none of whose cells was
    trained are left out. Test figures are not looked at.
    """
    best: dict[str, tuple[float, int]] = {}
    for job in jobs:
        if job.kind == "short" and job.name in results:
            valid = loss_of(results[job.name], "valid")
            if valid is None:
                valid = math.inf
            if job.method not in best or valid < best[job.method][0]:
                best[job.method] = (valid, job.seed)
    return {method: seed for method, (_, seed) in best.items()}


def report(record: Record, jobs: Sequence[Job], results: Results) -> dict[str, Any]:
    """The report of a study all of whose jobs are settled; see the README for its keys."""
    config = record.config
    chosen = choose(jobs, results)
    random_valid = [
        value
        for job in jobs
        if job.kind == "short" and job.method == RANDOM and job.name in results
        if (value := loss_of(results[job.name], "valid")) is not None
    ]
    measure = measure_of(results.values())
    methods = {}
    for method in (*config.methods, RANDOM):
        methods[method] = _method(method, jobs, results, chosen, random_valid, measure)
        methods[method]["cost"] = {  # fmt: skip
            kind: cost_of(
                [j for j in jobs if (j.method, j.kind) == (method, kind)], record, results
            )
            for kind in KINDS
        }
    failed = [
        {"job": job.name, **record.job(job.name)}
        for job in jobs
        if record.job(job.name)["state"] in ("failed", "skipped")
    ]
    planned = {job.name for job in jobs}
    plain: dict[str, Any] = json_plain(
        {
            "corpus": config.corpus,
            **({} if measure == "perplexity" else {"measure": measure}),
            "seeds": config.seeds,
            "final_seeds": config.final_seeds,
            "methods": methods,
            "tau": _tau(jobs, results),
            **_beside(jobs, results),
            "failed": failed,
            # Final trainings of cells that were the best before the study was extended.
            "superseded": sorted(set(record.jobs) - planned),
            "alphas_on_validation_text": [
                m for m in config.methods if _chose_by_validation(search_config(config, m))
            ],
            "seconds": sum(m["seconds"][kind] for m in methods.values() for kind in m["seconds"]),
        }
    )
    return plain


def _beside(jobs: Sequence[Job], results: Results) -> dict[str, float]:
    """The n-grams' perplexities of the test text of the final trainings, where there are any."""
    for job in jobs:
        if job.kind == "final" and "bigram_perplexity" in results.get(job.name, {}):
            own = results[job.name]
            return {key: own[key] for key in ("unigram_perplexity", "bigram_perplexity")}
    return {}


def _chose_by_validation(config: AnySearch) -> bool:
    return config.alphas.text == "valid" and "alphas.text" not in config.idle


def _method(
    method: str, jobs: Sequence[Job], results: Results, chosen: Mapping[str, int],
    random_valid: list[float], measure: Measure,
) -> dict[str, Any]:  # fmt: skip
    own = [job for job in jobs if job.method == method]
    cells: list[dict[str, Any]] = []
    for job in own:
        if job.kind == "short":
            trained = results.get(job.name, {})
            searched = results.get(job.after, {}) if job.after else {}
            cells.append(
                {
                    "seed": job.seed,
                    "cell": searched.get("cell") or _word_after("--genotype", job.words, method),
                    f"search_valid_{measure}": loss_of(searched, "valid"),
                    f"valid_{measure}": loss_of(trained, "valid"),
                    # Never used for a choice; `train` computes it anyway.
                    f"test_{measure}_unused": loss_of(trained, "test"),
                }
            )
    key = f"valid_{measure}"
    valid = [c[key] for c in cells if c[key] is not None]
    finals = [results[job.name] for job in own if job.kind == "final" and job.name in results]
    best = None
    if method in chosen:
        seed = chosen[method]
        cell = next(c["cell"] for c in cells if c["seed"] == seed)
        best = {"seed": seed, "cell": cell, "name": cell_name(method, seed)}
    return {
        "planned": len(cells),
        "cells": cells,
        "valid": asdict(spread(valid)),
        "best_valid": min(valid, default=None),
        "random_best_of_n": expected_best(random_valid, len(valid)),
        "chosen": best,
        "final_valid": _spread(finals, "valid"),
        "test": _spread(finals, "test"),
        "seconds": {
            kind: sum(
                results[j.name]["seconds"] for j in own if j.kind == kind and j.name in results
            )
            for kind in KINDS
        },
    }


def _spread(finals: Sequence[Mapping[str, Any]], split: Literal["valid", "test"]) -> dict[str, Any]:
    values = (loss_of(final, split) for final in finals)
    return asdict(spread([value for value in values if value is not None]))


def _word_after(flag: str, words: Sequence[str], method: str) -> str | None:
    """The cell that a random job's command line names; None for a cell that was not found."""
    return words[words.index(flag) + 1] if method == RANDOM else None


def _tau(jobs: Sequence[Job], results: Results) -> dict[str, Any]:
    """Kendall's tau-b between what the searches reported and what the trainings gave."""
    pairs = []
    for job in jobs:
        if job.after and job.after in results and job.name in results and job.kind == "short":
            searched = loss_of(results[job.after], "valid")
            trained = loss_of(results[job.name], "valid")
            if searched is not None and trained is not None:
                pairs.append((searched, trained))
    value = kendall_tau([s for s, _ in pairs], [t for _, t in pairs])
    return {"n": len(pairs), "tau_b": value, "needed": tau_threshold(len(pairs))}


def table(result: Mapping[str, Any]) -> str:
    """The report as text: tables, then what their numbers mean and do not mean."""
    return rendered(sheets(result), notes(result), "text")


def sheets(result: Mapping[str, Any]) -> list[Sheet]:
    """The report as tables: what was found, and what it cost."""
    head = ("cells", "n", "valid, short training", "95 % interval", "best", "random, best of n",
            "chosen", "final valid", "final test", "search s", "short s", "final s")  # fmt: skip
    rows = []
    for method, own in result["methods"].items():
        valid, cost = own["valid"], own["seconds"]
        rows.append(
            (
                method,
                f"{valid['n']}" + (f" of {own['planned']}" if valid["n"] < own["planned"] else ""),
                _mean(valid),
                _interval(valid),
                _number(own["best_valid"]),
                _number(own["random_best_of_n"]),
                own["chosen"]["name"] if own["chosen"] else "failed",
                _mean(own["final_valid"]),
                _mean(own["test"]) + (f" {_interval(own['test'])}" if own["test"]["sd"] else ""),
                *(f"{cost[kind]:.0f}" for kind in KINDS),
            )
        )
    found = Sheet(title=f"study on {result['corpus']}", head=head, rows=rows)
    names = [f"{kind} {what}" for kind in KINDS for what in ("steps", "tokens", "processor s")]
    costs = [
        (method, *(text for kind in KINDS for text in cost_text(own["cost"][kind])))
        for method, own in result["methods"].items()
        if "cost" in own  # studies of earlier versions do not tell
    ]
    return [found, Sheet(title="cost of a job", head=("cost of each", *names), rows=costs)]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the numbers are over, and what they are not worth."""
    seeds, finals = len(result["seeds"]), len(result["final_seeds"])
    measure = result.get("measure", "perplexity")
    what = "Perplexities" if measure == "perplexity" else "Errors in percent of the images"
    lines = [
        f"{what}, lower is better. n cells a method, one a search seed, each trained once; "
        "mean ± standard deviation,",
        f"interval of the mean by Student's t over the n. The cell of the least validation "
        f"{measure} is trained again",
        f"({finals} final training{'s' if finals > 1 else ''}), and that alone is tested. "
        "`random, best of n`: the expected best of n of the random cells.",
    ]
    if any("cost" in own for own in result["methods"].values()):
        lines.append(
            "Cost of each: means over jobs of weight steps, targets, and processor seconds; "
            "in brackets seconds by the clock, where those are not known."
        )
    if seeds < 5:
        lines.append(
            ("One seed tells" if seeds == 1 else f"{seeds} seeds tell")
            + " large differences only: where intervals overlap, nothing is shown."
        )
    lines += _compared(result)
    tau = result["tau"]
    lines.append(_tau_note(tau["n"], tau["tau_b"], tau["needed"]))
    if result["alphas_on_validation_text"]:
        lines.append(
            f"Searches of {', '.join(result['alphas_on_validation_text'])} choose their cells by "
            "the validation text: it is no independent measure of theirs."
        )
    for entry in result["failed"]:
        code = f" with exit code {entry['exit_code']}" if "exit_code" in entry else ""
        lines.append(f"{entry['state'].upper()}{code}: {entry['job']}: {entry.get('message', '')}")
    if any(entry["state"] == "failed" for entry in result["failed"]):
        lines.append("(--set retries=N, higher than before, starts what failed again, but not "
                     "what diverged, exit code 6)")  # fmt: skip
    return lines


def _compared(result: Mapping[str, Any]) -> list[str]:
    """The best final test beside the n-grams of the same text."""
    tests = {m: own["test"]["mean"] for m, own in result["methods"].items()}
    known = {method: value for method, value in tests.items() if value is not None}
    if not known or "bigram_perplexity" not in result:
        return []
    best = min(known, key=lambda method: known[method])
    given = Yardsticks(unigram=result["unigram_perplexity"], bigram=result["bigram_perplexity"])
    first, *others = compared(
        known[best], given, whose=f"the best final test, of {best},",
        remedy="longer trainings may rank cells in another order; give the study more --minutes",
    )  # fmt: skip
    return [f"Best final test {known[best]:.2f}, of {best}; {first}.", *others]


def _tau_note(n: int, tau: float | None, needed: float | None) -> str:
    what = "Kendall's tau-b between the searches' own ranking and that of the trainings"
    if tau is None:
        return f"{what}: none, for n = {n}."
    if needed is None:
        return f"{what}: {tau:+.2f}, n = {n}: too few to mean anything."
    worth = "beyond" if abs(tau) >= needed - 1e-9 else "within"
    return f"{what}: {tau:+.2f}, n = {n}: {worth} chance (|tau| >= {needed:.2f} is 1 in 20)."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _mean(own: Mapping[str, Any]) -> str:
    return _number(own["mean"]) + (f" ± {own['sd']:.2f}" if own["sd"] is not None else "")


def _interval(own: Mapping[str, Any]) -> str:
    return "-" if own["low"] is None else f"[{own['low']:.2f}, {own['high']:.2f}]"


def markdown(result: Mapping[str, Any]) -> str:
    """The summary as Markdown: a row a method, then the notes."""
    head = ("cells", "n", "valid, short training", "95 % interval", "best", "chosen", "final test")
    rows = [head, ("---",) * len(head)]
    for method, own in result["methods"].items():
        cells = method, str(own["valid"]["n"]), _mean(own["valid"]), _interval(own["valid"])
        chosen = own["chosen"]["cell"] if own["chosen"] else "failed"
        rows.append((*cells, _number(own["best_valid"]), f"`{chosen}`", _mean(own["test"])))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", " ".join(notes(result))])


def show_on_board(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the final numbers for TensorBoard: a run a method, a row each in its table, and a
    summary of all as a text.

    Raises:
        DiskError: where they cannot be written.
    """
    for method, own in result["methods"].items():
        place = folder / "summary" / method.replace(" ", "-")
        with disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        empty_events(place)
        values = {
            "valid_mean": own["valid"]["mean"], "valid_sd": own["valid"]["sd"],
            "valid_low": own["valid"]["low"], "valid_high": own["valid"]["high"],
            "final_valid": own["final_valid"]["mean"], "final_test": own["test"]["mean"],
            "tau_b": result["tau"]["tau_b"] if method != RANDOM else None,
            **{f"{kind}_seconds": seconds for kind, seconds in own["seconds"].items()},
        }  # fmt: skip
        board = Board(place)
        try:
            board.hparams(
                {
                    "method": method,
                    "corpus": result["corpus"],
                    "n": own["valid"]["n"],
                    "chosen": own["chosen"]["cell"] if own["chosen"] else "failed",
                },
                {name: value for name, value in values.items() if value is not None},
            )
        finally:
            board.close()
    summary_on_board(folder, markdown(result))


def summary_on_board(folder: Path, text: str) -> None:
    """Write a study's tables, as Markdown, for TensorBoard's page of texts.

    Raises:
        DiskError: where they cannot be written.
    """
    place = folder / "summary" / "study"
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    empty_events(place)
    board = Board(place)
    try:
        board.text("study", text, 0)
    finally:
        board.close()
