"""Spaces and alphas that the tests of the relaxations share."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas.methods import METHODS
from rnnnas.nas.space import CellSpace, recurrent_space

DOUBLE = torch.float64
CNN = CellSpace(inputs=2, nodes=3, ops=("none", "pool", "skip", "conv"), keep=2)


def pruned(space: CellSpace, seed: int) -> CellSpace:
    """`space` with about half of its operations gone; some rows lose all but `none`, or all."""
    draws = random.Random(seed)
    while True:
        try:
            return space.prune([[draws.random() < 0.5 for _ in space.ops] for _ in space.edges])
        except UsageError:
            continue


# Spaces beside that of DARTS: settings of a search on text (`space.*`).
OPEN: dict[str, dict[str, CellSpace]] = {
    "two edges": {
        "recurrent": recurrent_space(4, edges_per_node=2, join="sum", output="loose_ends")
    },
    "other operations": {
        "recurrent": recurrent_space(3, ops=("gelu", "none", "tanh", "sin"), output="last")
    },
    "enas": {
        "recurrent": recurrent_space(
            11, ops=("tanh", "relu", "sigmoid", "identity"), output="loose_ends"
        )
    },
}
SPACES: dict[str, dict[str, CellSpace]] = {
    "whole": {"recurrent": recurrent_space()},
    "one node": {"recurrent": recurrent_space(1)},
    "pruned": {"recurrent": pruned(recurrent_space(), 1)},
    "two cells": {"normal": CNN, "reduce": pruned(CNN, 2)},
    **OPEN,
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alphas_of(
    method: str,
    spaces: dict[str, CellSpace],
    scale: float = 1.0,
    dtype: torch.dtype = DOUBLE,
) -> dict[str, Tensor]:
    """Fresh parameters of the method, moved to random places; leaves."""
    draws = seeded(5)
    return {
        name: (scale * torch.randn(a.shape, dtype=dtype, generator=draws)).requires_grad_()
        for name, a in METHODS[method].relaxation().init(spaces, seeded(0)).items()
    }
