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
from rnnnas.studies.statistics import kendall_tau, spread
from rnnnas.tabular.replay import REPLAYED, Found, Replay
from rnnnas.tabular.searched import search_cell, search_settings
from rnnnas.tabular.table import Table

CHANCE = "random"  # what other methods are tested against
BUDGET = 16.0  # full trainings of a search that trains cells from scratch
PRESET = "table"  # of the searches with shared weights


@final
class Truth:
    """The order of the cells of a table: by the mean log test perplexity over its seeds.

    A cell one of whose trainings diverged is behind all others.
    """

    def __init__(self, table: Table) -> None:
        self.means = table.means("test")
        self._sorted = sorted(self.means.values())

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
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Search with every method and every seed, and look what is found up in the table.

    Methods of `REPLAYED` see the table's trainings in place of their own; all others search on the
    table's corpus, each in a run folder below `folder`, and are not run again where they are
    finished there.

    A cell that diverged with one of the table's seeds has no finite regret: it is the worst in
    rank, and its pair with random search is left out of the test (`left_out`: how many are).

    Returns:
        corpus, cells, seeds, budget, random_rank and median_regret (of chance), rows by method: per
        seed cell, rank, regret (log perplexity above the best), tau, cost (in full trainings) and
        seconds; and their spreads "rank", "regret", "tau", mean "cost" and "seconds"; tests (of
        each method against random at the same seeds: regret, paired), failed.

    Raises:
        UsageError: for a table that is not complete, or a method there is not.
        DataError: where the corpus is another than the table's.
    """
    truth = Truth(table)
    if len(truth.means) < table.space.count():
        raise UsageError(
            f"the table has {len(truth.means):,} of {table.space.count():,} cells",
            "finish it first: rnnnas study --preset table --corpus NAME",
        )
    for method in methods:
        method_of(method)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"search seeds {', '.join(map(str, seeds)) or 'of which there is none'}",
            "name each once: --seeds 10 for ten, or --seeds 3,5",
        )
    corpus: Corpus | None = None
    steps = 0
    found: dict[str, list[dict[str, Any]]] = {}
    failed = []
    for method in methods:
        found[method] = []
        for seed in seeds:
            began = time.perf_counter()
            try:
                if method in REPLAYED:
                    own = Replay(table, seed, budget).find(method)
                else:
                    if corpus is None:
                        corpus = _corpus(table)
                        steps = _training_steps(table, corpus)
                    config = search_settings(table, method, seed, preset=preset, settings=settings)
                    place = folder / f"search-{method}-s{seed}"
                    own = search_cell(config, corpus, place, table, steps)
            except DivergedError as error:
                failed.append({"method": method, "seed": seed, "message": error.cause})
                continue
            found[method].append(_looked_up(own, truth, seed, time.perf_counter() - began))
        say(f"{method}: {_said(found[method])}")
    plain: dict[str, Any] = json_plain(
        {
            "corpus": table.about["corpus"],
            "cells": len(truth.means),
            "seeds": list(seeds),
            "budget": budget,
            "noise": table.about["noise"]["test"],
            "random_rank": (len(truth.means) + 1) / 2,
            "median_regret": truth.median_regret,
            "rows": {method: _row(method, runs) for method, runs in found.items()},
            "tests": _tests(found),
            "failed": failed,
        }
    )
    return plain


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


def _looked_up(own: Found, truth: Truth, seed: int, seconds: float) -> dict[str, Any]:
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
        "seconds": round(seconds, 3),
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


def _tests(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each method's regret against that of random search, paired by seed, corrected by Holm, as
    far as both are finite.
    """
    chance = {run["seed"]: run["regret"] for run in found.get(CHANCE, ())}
    tests: list[dict[str, Any]] = []
    for method, runs in found.items():
        if method == CHANCE or not chance:
            continue
        pairs = [(run["regret"], chance[run["seed"]]) for run in runs if run["seed"] in chance]
        finite = [own - other for own, other in pairs if math.isfinite(own + other)]
        tests.append(
            {"method": method, "against": CHANCE, "left_out": len(pairs) - len(finite),
             **asdict(paired(finite))}
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
