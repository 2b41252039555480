"""The search methods by name, and what is common to all: deriving a cell.

A method is one file in `relax/` with a `Relaxation`, one row in `METHODS`, one preset if it
wants other settings, and one row in the conformance suite, which runs over `METHODS` by itself.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from rnnnas.errors import UsageError, nearest
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.relax.base import Alphas, Relaxation, Spaces
from rnnnas.nas.relax.darts import Darts


class Method(NamedTuple):
    """A search method.

    relaxation: the class, whose fields are the settings `relax.*`. order: of the hypergradient;
    "second" follows `alphas.second_order`. about: one line for the help.
    """

    relaxation: type[Relaxation]
    about: str
    order: Literal["first", "second"] = "first"


METHODS: dict[str, Method] = {
    "darts": Method(Darts, "DARTS, second order (Liu et al. 2019)", order="second"),
    "darts-1st": Method(Darts, "DARTS, first order"),
}


def method_of(name: str) -> Method:
    """The search method of that name.

    Raises:
        UsageError: where it is unknown, with the nearest known name.
    """
    if name not in METHODS:
        raise UsageError(
            f"method {name!r} is unknown{nearest(name, list(METHODS))}",
            f"methods: {', '.join(METHODS)}",
        )
    return METHODS[name]


def derive(relaxation: Relaxation, alphas: Alphas, spaces: Spaces) -> Genotype:
    """The genotype that the alphas stand for: `CellSpace.discretise` of the scores."""
    with torch.no_grad():
        scores = relaxation.scores(alphas, spaces)
    cells = {name: space.discretise(scores[name].tolist()) for name, space in spaces.items()}
    return Genotype(cells=cells)
