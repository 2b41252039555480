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
from rnnnas.nas.relax.categorical import Categorical
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.relax.enas import Enas
from rnnnas.nas.relax.uniform import Uniform


class Method(NamedTuple):
    """A search method.

    relaxation: the class, whose fields are the settings `relax.*`. order: of the hypergradient;
    "second" follows `alphas.second_order`. about: one line for the help.
    alphas: what moves them: the hypergradient, REINFORCE (the relaxation is then a `Policy`), or
    nothing, in which case there are none. derive: the cell is read off the scores, or it is the
    best of cells that are tried: "samples" of the policy, "random" ones, or an "evolution" of them.
    cells: how many are tried. weights: they are tried with the search's "shared" weights, or each
    is trained from "scratch"; "either" follows `blackbox.weights`.
    """

    relaxation: type[Relaxation]
    about: str
    order: Literal["first", "second"] = "first"
    alphas: Literal["gradient", "policy", "none"] = "gradient"
    derive: Literal["scores", "samples", "random", "evolution"] = "scores"
    cells: int = 0
    weights: Literal["shared", "scratch", "either"] = "shared"


METHODS: dict[str, Method] = {
    "darts": Method(Darts, "DARTS, second order (Liu et al. 2019)", order="second"),
    "darts-1st": Method(Darts, "DARTS, first order"),
    "random": Method(
        Uniform,
        "the best of random cells, each trained for a while",
        alphas="none",
        derive="random",
        cells=8,
        weights="scratch",
    ),  # fmt: skip
    "random-ws": Method(
        Uniform,
        "random search with weight sharing (Li, Talwalkar 2019)",
        alphas="none",
        derive="random",
        cells=32,
    ),  # fmt: skip
    "evolution": Method(
        Uniform,
        "regularised evolution (Real et al. 2019)",
        alphas="none",
        derive="evolution",
        cells=32,
        weights="either",
    ),  # fmt: skip
    "enas": Method(
        Enas,
        "ENAS: an LSTM moved by REINFORCE (Pham et al. 2018)",
        alphas="policy",
        derive="samples",
        cells=10,
    ),  # fmt: skip
    "proxyless-reinforce": Method(
        Categorical, "ProxylessNAS' REINFORCE variant (Cai et al. 2019)", alphas="policy"
    ),
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
