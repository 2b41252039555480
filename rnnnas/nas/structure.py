"""What the structure of a cell says of its loss: a few counts, and a ridge regression on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from rnnnas.nas.genotype import CellGene, Genotype

_RIDGE = 1.0  # penalty on standardised features
# Of log perplexity after a short training, between cells drawn at random, on two corpora and by two
# recipes (benchmarks/halving.md). Of eight operations one or two sigmoids are best.
_BEST_SHARE, _BESIDE_IT, _DEPTH = 0.15, 0.1, 0.03


def features(genotype: Genotype) -> Mapping[str, float]:
    """What is counted of a cell's structure: genes by operation, genes on the inputs, the depth of
    the deepest node and the mean depth.
    """
    counts: dict[str, float] = {"inputs": 0.0, "depth": 0.0, "mean depth": 0.0}
    for cell in genotype.cells.values():
        depths = [0] * cell.inputs
        for genes in cell.nodes:
            for gene in genes:
                counts[gene.op] = counts.get(gene.op, 0.0) + 1
                counts["inputs"] += gene.source < cell.inputs
            depths.append(1 + max(depths[gene.source] for gene in genes))
        counts["depth"] += max(depths)
        counts["mean depth"] += sum(depths) / len(cell.nodes)
    return counts


def slowness(cell: CellGene) -> float:
    """How slowly a recurrent cell may be expected to learn, by its structure alone: log perplexity
    after a short training, up to a constant.

    Two things count: how far the share of sigmoids is from about one in seven (without any, a cell
    long stands at the words' frequencies; through many hardly any gradient comes, each of which
    takes three quarters of it), and the mean depth of the nodes.
    """
    depths, ops = [0], [gene.op for genes in cell.nodes for gene in genes]
    for genes in cell.nodes:
        depths.append(1 + min(depths[gene.source] for gene in genes))
    beside = abs(ops.count("sigmoid") / len(ops) - _BEST_SHARE)
    return _BESIDE_IT * beside + _DEPTH * sum(depths) / len(cell.nodes)


@final
class Structure:
    """A ridge regression of losses on the `features` of cells, standardised.

    Args:
        cells: with their `losses`, all finite.
    """

    def __init__(self, cells: Sequence[Genotype], losses: Sequence[float]) -> None:
        table = [features(cell) for cell in cells]
        self._names = sorted({name for row in table for name in row})
        x = np.array([[row.get(name, 0.0) for name in self._names] for row in table])
        y = np.array(losses)
        self._mean, self._scale = x.mean(0), np.maximum(x.std(0), 1e-9)
        self._offset = float(y.mean())
        x = (x - self._mean) / self._scale
        x[:, x.std(0) < 0.5] = 0.0  # a feature that is the same in all cells says nothing
        self._gradients = np.linalg.solve(
            x.T @ x + _RIDGE * np.eye(len(self._names)), x.T @ (y - self._offset)
        )

    def __call__(self, genotype: Genotype) -> float:
        """The loss to expect of a cell."""
        row = features(genotype)
        x = np.array([row.get(name, 0.0) for name in self._names])
        return self._offset + float((x - self._mean) / self._scale @ self._gradients)
