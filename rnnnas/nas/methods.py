"""The search methods by name, and what is common to all: deriving a cell.

A method is one file in `relax/` with a `Relaxation`, one row in `METHODS`, one preset if it
wants other settings, and one row in the conformance suite, which runs over `METHODS` by itself.
Importing this needs no torch, so that the help can list the methods.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Literal, NamedTuple

from rnnnas.errors import UsageError, nearest
from rnnnas.plugins.load import load_installed

if TYPE_CHECKING:
    from rnnnas.nas.relax.base import Relaxation


class Method(NamedTuple):
    """A search method.

    where: 'module.Class' in `relax/`, or the class itself of a method that a user brings.
    about: one line for the help.
    order: of the hypergradient; "second" follows `alphas.second_order`.
    staged: whether the space shrinks in stages also where `stages.ops` is not set.
    alphas: what moves them: the hypergradient, REINFORCE (the relaxation is then a `Policy`), or
        nothing, in which case there are none.
    derive: the cell is read off the scores, or it is the best of cells that are tried: "samples"
        of the policy, "random" ones, an "evolution" of them, or a race by "halving".
    cells: how many are tried.
    weights: they are tried with the search's "shared" weights, or each is trained from "scratch";
        "either" follows `blackbox.weights`.
    """

    where: str | type[Relaxation]
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
        if not isinstance(self.where, str):
            return self.where
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
        "successive halving, most cells chosen by structure; with budget also of their children",
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


def register(
    relaxation: type[Relaxation],
    name: str | None = None,
    *,
    about: str = "",
    order: Literal["first", "second"] = "first",
) -> str:
    """Make a relaxation of your own a search method; returns its name.

    It is then a method like the others: `rnnnas.search(method=name)`, `--method NAME` with
    `--plugin FILE`, its fields the settings `relax.*`, its name in run folders.

    Args:
        relaxation: a subclass of `rnnnas.nas.relax.base.Relaxation`, a frozen dataclass.
        name: by default the class' name in lower case, words joined by hyphens.
        order: of the hypergradient that moves its alphas.

    Raises:
        UsageError: for a name that another method has.
    """
    called = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", relaxation.__name__).lower()
    known = METHODS.get(called)
    if known is not None and not _is_same_class(known.where, relaxation):
        raise UsageError(f"there is a method {called!r} already", "give yours another name")
    summary = about or (relaxation.__doc__ or "a method of your own").strip().split("\n")[0]
    METHODS[called] = Method(relaxation, summary, order=order)
    return called


def _is_same_class(known: str | type[Relaxation], other: type[Relaxation]) -> bool:
    """Whether both are one class, or one that a notebook's cell has defined again."""
    return not isinstance(known, str) and known.__qualname__ == other.__qualname__


def method_of(name: str) -> Method:
    """The search method of that name.

    Raises:
        UsageError: where it is unknown, with the nearest known name.
    """
    if name not in METHODS and not (load_installed() and name in METHODS):
        raise UsageError(
            f"method {name!r} is unknown{nearest(name, list(METHODS))}",
            f"methods: {', '.join(METHODS)}; or one of your own: --plugin FILE",
        )
    return METHODS[name]
