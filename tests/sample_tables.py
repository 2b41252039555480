"""A made-up table of a space of two nodes, whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from rnnnas.config.table import TableConfig
from rnnnas.nas.genotype import Genotype
from rnnnas.tabular.make import assemble
from rnnnas.tabular.plan import cells, training_settings
from rnnnas.tabular.rows import Row
from rnnnas.tabular.table import Table

WORTH = {"tanh": 0.0, "relu": 0.1, "sigmoid": 0.25, "identity": 0.4}


def level(cell: str) -> float:
    """Log perplexity of a cell, without noise."""
    genes = [node[0] for node in Genotype.from_text(cell).recurrent.nodes]
    return 4.0 + sum(WORTH[gene.op] + 0.03 * gene.source for gene in genes)


def made_up(
    nodes: int = 2, seeds: tuple[int, ...] = (1, 2, 3), noise: float = 0.0,
    diverged: Callable[[str], bool] = lambda cell: False,
    some: Callable[[str, int], bool] = lambda cell, seed: False,
    stretches: int = 5,
) -> Table:  # fmt: skip
    """Every cell's log perplexity is its level plus noise, on validation as in the test; the curve
    falls towards it.
    """
    config = TableConfig(corpus="tiny", nodes=nodes, seeds=seeds)
    rows = []
    for cell in cells(config.space):
        for seed in seeds:
            log = level(cell) + random.Random(f"{cell}/{seed}").gauss(0, noise)
            diverging = diverged(cell) or some(cell, seed)
            value = None if diverging else math.exp(log)
            curve = tuple(log + 1.0 / part for part in range(1, 3 if diverging else stretches + 1))
            rows.append(
                Row(cell=cell, seed=seed, curve=curve, valid=value, test=value, diverged=diverging,
                    seconds=1.0)
            )  # fmt: skip
    plan = {
        "kind": "table", "corpus": "tiny", "corpus_sha256": "0" * 64, "nodes": nodes,
        "ops": list(config.ops), "cells": config.space.count(), "seeds": list(seeds),
        "stretches": stretches, "preset": "table", "training": training_settings(config),
        "arithmetic": "made up", "version": "0",
    }  # fmt: skip
    return assemble(plan, rows)
