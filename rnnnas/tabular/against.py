"""Search methods held against a complete table: rank and regret of what they find."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, final

from rnnnas.config.plain import from_plain
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import Corpus, open_corpus
from rnnnas.errors import DivergedError, RnnnasError, UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.methods import METHODS, method_of
from rnnnas.runs.files import json_plain
from rnnnas.studies.paired import holm, paired
from rnnnas.studies.plan import Sizes
from rnnnas.studies.statistics import expected_choice, kendall_tau, spread
from rnnnas.tabular.replay import REPLAYED, Found, Replay
from rnnnas.tabular.searched import (
    search_cell,
    search_settings,
    search_side_by_side,
    search_words,
)
from rnnnas.tabular.table import Table

CHANCE = "random"  # what other methods are tested against
BUDGET = 16.0  # full trainings of a search that trains cells from scratch
LONGEST = 8  # budgets that a comparison takes, in times the table's number of cells
PRESET = "table"  # of the searches with shared weights


@final
class Truth:
    """The order of the cells of a table: by the mean log test perplexity over its seeds.

    A cell one of whose trainings diverged is behind all others.
    """

    def __init__(self, table: Table) -> None:
        self.means = table.means("test")
        self._sorted = sorted(self.means.values())
        self._by_cell = table.by_cell()

    def rank(self, cell: str) -> int:
        """1 for the best; of equal cells all have the lowest number."""
        return 1 + bisect.bisect_left(self._sorted, self.means[cell])

    def regret(self, cell: str) -> float:
        """Log perplexity above the best cell's."""
        return self.means[cell] - self._sorted[0]

    def tau(self, scores: Mapping[str, float]) -> float | None:
        """Kendall's tau-b of scores, less is better, with the truth, over the cells they are of."""
        known = [cell for cell in scores if cell in self.means]
        if len(known) < 2:
            return None
        return kendall_tau([scores[cell] for cell in known], [self.means[cell] for cell in known])

    @cached_property
    def random_rank(self) -> float:
        """Of a cell drawn at random, on average."""
        return math.fsum(map(self.rank, self.means)) / len(self.means)

    def random_regret(self, seed: int, n: int) -> float:
        """What random search with n trainings that sees the table's trainings of a search `seed`
        is expected to have: the mean regret over all choices of n cells of the one with the best
        validation. Cells that diverged with any of the seeds are left out.

        Raises:
            DivergedError: where no cell is left.
        """
        seen = []
        for cell, rows in self._by_cell.items():
            valid = rows[seed % len(rows)].valid
            if valid is not None and math.isfinite(self.means[cell]):
                seen.append((valid, self.regret(cell)))
        found = expected_choice(seen, min(n, len(seen)))
        if found is None:
            raise DivergedError("every cell of the table diverged")
        return found

    @cached_property
    def median_regret(self) -> float:
        """Of all cells: what a cell drawn at random has in the middle of cases."""
        return self._sorted[len(self._sorted) // 2] - self._sorted[0]


def against(
    table: Table,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    budget: float = BUDGET,
    preset: str = PRESET,
    settings: Iterable[str] = (),
    jobs: int = 1,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Search with every method and every seed, and look what is found up in the table.

    Methods of `REPLAYED` see the table's trainings in place of their own; all others search on the
    table's corpus, each in a run folder below `folder`, and are not run again where they are
    finished there.

    Of these `jobs` run at a time, where that is more than one as processes of their own.

    Every search is held against random search that spends as much: what that is expected to find,
    over all draws (`Truth.random_regret`). A cell that diverged with one of the table's seeds has
    no finite regret: it is the worst in rank, and left out of the test (`left_out`: how many are).

    Returns:
        corpus, cells, seeds, budget, random_rank and median_regret (of chance), rows by method: per
        seed cell, rank, regret (log perplexity above the best), tau, cost (in full trainings) and
        seconds; and their spreads "rank", "regret", "tau", mean "cost" and "seconds"; tests (of
        each method's regret less that of random search at the same cost), failed.

    Raises:
        UsageError: for a table that is not complete, a method there is not, a budget that is no
            number of trainings, or settings where no search is run for real.
        RnnnasError: where the corpus is another than the table's.
    """
    truth = Truth(table)
    settings = list(settings)
    if len(truth.means) < table.space.count():
        raise UsageError(
            f"the table has {len(truth.means):,} of {table.space.count():,} cells",
            "finish it first: rnnnas study --preset table --corpus NAME",
        )
    for method in methods:
        method_of(method)
    if len(set(methods)) < len(methods):
        raise UsageError(f"methods {', '.join(methods)}", "name each once")
    replayed = [method for method in methods if method in REPLAYED]
    if replayed and len(table.seeds) < 2:
        raise UsageError(
            f"the table has one seed: what {', '.join(replayed)} would choose by is what they "
            "would be judged by",
            "make it with more: rnnnas study --preset table --set seeds=[1,2,3]",
        )
    if len(replayed) == len(methods) and (settings or preset != PRESET):
        raise UsageError(
            f"settings are of searches that are run, and {', '.join(methods)} are replayed",
            "leave out --set and --preset; --budget says what a replayed search may spend",
        )
    if not 2 <= budget <= LONGEST * len(truth.means):
        raise UsageError(
            f"a budget of {budget:g} full trainings in a space of {len(truth.means):,} cells",
            f"give 2 to {LONGEST * len(truth.means):,}",
        )
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"search seeds {', '.join(map(str, seeds)) or 'of which there is none'}",
            "name each once: --seeds 10 for ten, or --seeds 3,5",
        )
    corpus: Corpus | None = None
    steps = 0
    searched = [(method, seed) for method in methods if method not in REPLAYED for seed in seeds]
    if searched:
        corpus = _corpus(table)
        steps = _training_steps(table, corpus)
        for method, seed in searched:  # what one refuses is told before any is run
            search_settings(table, method, seed, preset=preset, settings=settings)
    if searched and jobs > 1:
        named = {
            _name(method, seed): search_words(
                table, method, seed, folder / _name(method, seed), preset=preset, settings=settings
            )
            for method, seed in searched
        }
        search_side_by_side(named, folder, jobs)
    found: dict[str, list[dict[str, Any]]] = {}
    failed = []
    for method in methods:
        found[method] = []
        for seed in seeds:
            try:
                if method in REPLAYED:
                    began = time.perf_counter()
                    own = Replay(table, seed, budget).find(method)
                    own = own._replace(seconds=time.perf_counter() - began)
                else:
                    assert corpus is not None
                    config = search_settings(table, method, seed, preset=preset, settings=settings)
                    own = search_cell(config, corpus, folder / _name(method, seed), table, steps)
            except DivergedError as error:
                failed.append({"method": method, "seed": seed, "message": error.cause})
                continue
            found[method].append(_looked_up(own, truth, seed))
        say(f"{method}: {_said(found[method])}")
    plain: dict[str, Any] = json_plain(
        {
            "corpus": table.about["corpus"],
            "cells": len(truth.means),
            "seeds": list(seeds),
            "budget": budget,
            "noise": table.about["noise"]["test"],
            "random_rank": truth.random_rank,
            "median_regret": truth.median_regret,
            "rows": {method: _row(method, runs) for method, runs in found.items()},
            "tests": _tests(found, truth),
            "failed": failed,
        }
    )
    return plain


def _name(method: str, seed: int) -> str:
    return f"search-{method}-s{seed}"


def all_methods() -> list[str]:
    """Those that train cells from scratch, and then all others."""
    return [*REPLAYED, *(method for method in METHODS if method not in REPLAYED)]


def _training_steps(table: Table, corpus: Corpus) -> int:
    """Weight steps of a training of the table."""
    cell = Genotype.from_text(table.rows[0].cell)
    plain = {**table.about["training"], "genotype": cell.to_plain(), "seed": table.seeds[0]}
    return Sizes(corpus.splits).steps(from_plain(TrainConfig, plain))


def _corpus(table: Table) -> Corpus:
    name = table.about["corpus"]
    corpus = open_corpus(name)
    if corpus.sha256 != table.about["corpus_sha256"]:
        raise RnnnasError(
            f"the corpus {name!r} here is not the one that the table's cells were trained on",
            "add the original text under that name",
        )
    assert isinstance(corpus, Corpus)
    return corpus


def _looked_up(own: Found, truth: Truth, seed: int) -> dict[str, Any]:
    if own.cell not in truth.means:
        raise UsageError(f"{own.cell!r} is no cell of the table")
    return {
        "seed": seed,
        "cell": own.cell,
        "rank": truth.rank(own.cell),
        "regret": truth.regret(own.cell),
        "tau": truth.tau(own.scores),
        "scored": len(own.scores),
        "cost": own.cost,
        "seconds": round(own.seconds, 3),
    }


def _row(method: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    taus = [run["tau"] for run in runs if run["tau"] is not None]
    return {
        "replayed": method in REPLAYED,
        "runs": list(runs),
        "rank": asdict(spread([float(run["rank"]) for run in runs])),
        "regret": asdict(spread([r["regret"] for r in runs if math.isfinite(r["regret"])])),
        "tau": asdict(spread(taus)),
        "cost": math.fsum(run["cost"] for run in runs) / len(runs) if runs else None,
        "seconds": math.fsum(run["seconds"] for run in runs) / len(runs) if runs else None,
    }


def _tests(found: Mapping[str, Sequence[Mapping[str, Any]]], truth: Truth) -> list[dict[str, Any]]:
    """Each method's regret less what random search is expected to have at the same cost and seed,
    corrected by Holm over the methods.
    """
    tests: list[dict[str, Any]] = []
    for method, runs in found.items():
        if method == CHANCE:
            continue
        finite = [run for run in runs if math.isfinite(run["regret"])]
        less = [
            run["regret"] - truth.random_regret(run["seed"], max(1, round(run["cost"])))
            for run in finite
        ]
        tests.append(
            {"method": method, "against": CHANCE, "left_out": len(runs) - len(finite),
             **asdict(paired(less))}
        )  # fmt: skip
    for key in ("t_p", "wilcoxon_p"):
        for test, value in zip(tests, holm([test[key] for test in tests]), strict=True):
            test[f"{key}_holm"] = value
    return tests


def _said(runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return "every search diverged"
    ranks = sorted(run["rank"] for run in runs)
    return f"{len(runs)} searches, ranks {', '.join(map(str, ranks))}"
