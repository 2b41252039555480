"""The search methods by name, and what is common to all: deriving a cell.

A method is one file in `relax/` with a `Relaxation`, one row in `METHODS`, one preset if it
wants other settings, and one row in the conformance suite, which runs over `METHODS` by itself.
Importing this needs no torch, so that the help can list the methods.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Literal, NamedTuple

from rnnnas.errors import UsageError, nearest

if TYPE_CHECKING:
    from rnnnas.nas.relax.base import Relaxation


class Method(NamedTuple):
    """A search method.

    where: 'module.Class' in `relax/`. about: one line for the help. order: of the hypergradient;
    "second" follows `alphas.second_order`. staged: whether the space shrinks in stages also where
    `stages.ops` is not set.
    alphas: what moves them: the hypergradient, REINFORCE (the relaxation is then a `Policy`), or
    nothing, in which case there are none. derive: the cell is read off the scores, or it is the
    best of cells that are tried: "samples" of the policy, "random" ones, an "evolution" of them,
    or a race by "halving".
    cells: how many are tried. weights: they are tried with the search's "shared" weights, or each
    is trained from "scratch"; "either" follows `blackbox.weights`.
    """

    where: str
    about: str
    order: Literal["first", "second"] = "first"
    staged: bool = False
    alphas: Literal["gradient", "policy", "none"] = "gradient"
    derive: Literal["scores", "samples", "random", "evolution", "halving"] = "scores"
    cells: int = 0
    weights: Literal["shared", "scratch", "either"] = "shared"

    @property
    def relaxation(self) -> type[Relaxation]:
        """The class, whose fields are the settings `relax.*`."""
        module, _, name = self.where.partition(".")
        found: type[Relaxation] = getattr(import_module(f"rnnnas.nas.relax.{module}"), name)
        return found


METHODS: dict[str, Method] = {
    "darts": Method("darts.Darts", "DARTS, second order (Liu et al. 2019)", order="second"),
    "darts-1st": Method("darts.Darts", "DARTS, first order"),
    "gdas": Method("gdas.Gdas", "one sampled path, Gumbel (Dong, Yang 2019)"),
    "gdas-soft": Method("gdas.GdasSoft", "GDAS as released for recurrent cells: soft samples"),
    "snas": Method("snas.Snas", "soft samples, alphas on the training loss (Xie et al. 2019)"),
    "pc-darts": Method("pc_darts.PcDarts", "DARTS with shares of edges (Xu et al. 2020)"),
    "p-darts": Method(
        "p_darts.PDarts", "DARTS in stages on a shrinking space (Chen et al. 2019)", staged=True
    ),
    "proxyless": Method("proxyless.Proxyless", "binary gates, two paths (Cai et al. 2019)"),
    "densenas": Method("densenas.DenseNas", "one path, for alphas two (Fang et al. 2020)"),
    "proxyless-reinforce": Method(
        "categorical.Categorical", "ProxylessNAS by REINFORCE (the same)", alphas="policy"
    ),
    "drnas": Method("drnas.DrNas", "shares from a Dirichlet (Chen et al. 2021)"),
    "node-softmax": Method("node_softmax.NodeSoftmax", "I-DARTS: one softmax a node (Jiang 2019)"),
    "fair-darts": Method("fair_darts.FairDarts", "a gate each operation (Chu et al. 2020)"),
    "sdarts-rs": Method("sdarts.SdartsRandom", "weights smooth at random (Chen, Hsieh 2020)"),
    "sdarts-adv": Method("sdarts.SdartsAdversarial", "weights smooth against the worst (the same)"),
    "random": Method(
        "uniform.Uniform",
        "the best of random cells, each trained for a while",
        alphas="none",
        derive="random",
        cells=8,
        weights="scratch",
    ),
    "halving": Method(
        "uniform.Uniform",
        "successive halving of random cells, then of one-gene children of the best",
        alphas="none",
        derive="halving",
        weights="scratch",
    ),
    "random-ws": Method(
        "uniform.Uniform",
        "random search with weight sharing (Li, Talwalkar 2019)",
        alphas="none",
        derive="random",
        cells=32,
    ),
    "evolution": Method(
        "uniform.Uniform",
        "regularised evolution (Real et al. 2019)",
        alphas="none",
        derive="evolution",
        cells=32,
        weights="either",
    ),
    "enas": Method(
        "enas.Enas",
        "ENAS: an LSTM moved by REINFORCE (Pham et al. 2018)",
        alphas="policy",
        derive="samples",
        cells=10,
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
