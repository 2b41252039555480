"""The noise of a table: what differs between trainings of one cell, and what between cells.

All in log perplexity, so that differences are relative ones.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rnnnas.nas.genotype import CellGene, Gene, Genotype


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How far trainings of the same cell lie apart, against cells.

    cells: that trained with every seed, k of them, without divergence. sd: standard deviation of
    one training about its cell's mean, whatever its seed, pooled over cells (the root of the mean
    variance, divisor k - 1). shift: standard deviation of the seeds' means: what a seed does to
    all cells alike, which a search that trains its cells with one seed does not see. residual: that
    of one training beside the shift, which it does see (the error of a two-way analysis of variance
    of cells and seeds). spread: standard deviation of the cells' means. icc: intraclass correlation
    of one training among those of its seed, ICC(3,1) of Shrout and Fleiss (1979), the share of
    cells in that variance; reliability: that of a mean over the k seeds, ICC(3,k). within: the
    distance that 95 of 100 trainings keep from the mean of their cell's others, seeds' shift and
    all. None where there are too few cells or seeds.
    """

    cells: int
    sd: float | None
    shift: float | None
    residual: float | None
    spread: float | None
    icc: float | None
    reliability: float | None
    within: float | None


def noise_of(logs: Sequence[Sequence[float]]) -> Noise:
    """The noise of n cells by k log perplexities each, of the same k seeds in the same order."""
    n = len(logs)
    k = len(logs[0]) if logs else 0
    if n < 2 or k < 2:
        return Noise(cells=n, sd=None, shift=None, residual=None, spread=None, icc=None,
                     reliability=None, within=None)  # fmt: skip
    means = [math.fsum(row) / k for row in logs]
    seeds = [math.fsum(row[seed] for row in logs) / n for seed in range(k)]
    # Mean squares: within cells, of which a share is the seeds', and between cells.
    inner = math.fsum(statistics.variance(row) for row in logs) / n
    error = max(0.0, inner - statistics.variance(seeds)) * n / (n - 1)
    outer = k * statistics.variance(means)
    distances = sorted(
        abs(value - (math.fsum(row) - value) / (k - 1)) for row in logs for value in row
    )
    total = outer + (k - 1) * error
    return Noise(
        cells=n,
        sd=math.sqrt(inner),
        shift=statistics.stdev(seeds),
        residual=math.sqrt(error),
        spread=statistics.stdev(means),
        icc=(outer - error) / total if total else None,
        reliability=(outer - error) / outer if outer else None,
        within=distances[math.ceil(0.95 * len(distances)) - 1],
    )


def canonical(cell: CellGene) -> tuple[tuple[str, int], ...]:
    """The form that all cells share which compute one function by another order of their nodes.

    For cells of one edge a node whose output is the mean of all nodes: the least of all orders in
    which every node comes after the one it takes.
    """
    nodes = [node[0] for node in cell.nodes]
    forms = []
    for order in itertools.permutations(range(len(nodes))):
        place = {0: 0} | {old + 1: new + 1 for new, old in enumerate(order)}
        moved = [Gene(nodes[old].op, place[nodes[old].source]) for old in order]
        if all(gene.source <= new for new, gene in enumerate(moved)):
            forms.append(tuple((gene.op, gene.source) for gene in moved))
    return min(forms)


def twins(means: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Pairs of cells that compute one function, neighbours in the table's order, with the
    difference of their means.
    """
    classes: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for cell in means:
        classes.setdefault(canonical(Genotype.from_text(cell).recurrent), []).append(cell)
    return [
        (first, second, means[first] - means[second])
        for same in classes.values()
        for first, second in itertools.pairwise(same)
    ]
