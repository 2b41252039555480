"""What random search comes to in `study-search`: the best of n of its 32 random cells, all draws.

python benchmarks/best_of_random.py FINALS --out checkpoints/pool [--seed 9]

FINALS: the CSV of a finished study with `random cells` among its rows. Each of these cells is
trained as random search trains one (the preset `quick-halving` with `method=random`, 500 steps)
and scored on the same held-out text. A random search with a budget of n trainings is then a draw
of n of the cells, of which the best by that score counts; its final trainings are those of the
study. Prints the mean over all draws, and by how much what halving found is below it, with an
interval from 10,000 resamples of both sides. All searches drawn this way share their first
weights: one seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import statistics
from pathlib import Path

import rnnnas
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.strategies import Strategy
from rnnnas.searching import blackbox


def finals(path: Path) -> dict[str, dict[str, list[float]]]:
    """Log test perplexities by row of the study, then by cell."""
    rows: dict[str, dict[str, list[float]]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            cells = rows.setdefault(line["method"], {})
            cells.setdefault(line["cell"], []).append(math.log(float(line["test_perplexity"])))
    return rows


def scores(cells: list[str], seed: int, out: Path) -> dict[str, float]:
    """Held-out perplexity of each cell after a training as random search has it."""

    class Given(Strategy):
        def ask(self) -> Genotype:
            return Genotype.from_text(cells[len(self.history)])

    blackbox.strategy_of = lambda config, spaces: Given(spaces, config.seed, config.cells)
    rnnnas.search(
        "ptb", preset="quick-halving", method="random", seed=seed, out=out,
        **{"blackbox.cells": len(cells), "blackbox.targets": 28_000},
    )  # fmt: skip
    found = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "candidate":
            found[cells[record["number"] - 1]] = record["perplexity"]
    return found


def best_of(n: int, ranked: list[float]) -> float:
    """Mean final of the first of n cells drawn without replacement; ranked: finals by score."""
    total = math.comb(len(ranked), n)
    return sum(
        final * math.comb(len(ranked) - at - 1, n - 1) / total for at, final in enumerate(ranked)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("finals", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=9)
    args = parser.parse_args()
    rows = finals(args.finals)
    pool = {cell: statistics.fmean(logs) for cell, logs in rows["random cells"].items()}
    score = scores(list(pool), args.seed, args.out)
    ranked = [pool[cell] for cell in sorted(pool, key=score.__getitem__)]
    draws = random.Random(args.seed)
    for n in (1, 4, 16):
        print(f"random search, {n} T: {math.exp(best_of(n, ranked)):.2f}")
    for row, n in (("halving@4", 4), ("halving@16", 16)):
        found = [statistics.fmean(logs) for logs in rows[row].values()]
        gains = []
        for _ in range(10_000):
            places = sorted(draws.choices(range(len(ranked)), k=len(ranked)))
            again = best_of(n, [ranked[place] for place in places])
            gains.append(statistics.fmean(draws.choices(found, k=len(found))) - again)
        gains.sort()
        gain = statistics.fmean(found) - best_of(n, ranked)
        mean, low, high = (100 * math.expm1(x) for x in (gain, gains[250], gains[-251]))
        print(f"{row} against it, {n} T: {mean:+.1f} % ({low:+.1f} to {high:+.1f})")


if __name__ == "__main__":
    main()
