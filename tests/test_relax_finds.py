"""A problem whose best cell is known: every method must find more of it than chance does.

Each cell is a problem of its own with its own teacher, so that one run is a run of several seeds.
The candidate of (edge, operation) is a fixed random feature map of the input; the node's target
is the candidate of its teacher gene (of both genes, where a cell keeps two edges) through a matrix
that the node's weights must learn. `none` gives zeros. Nothing else tells the candidates apart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from sample_spaces import DOUBLE, seeded
from torch import Tensor, nn

from rnnnas.engine.steps import weight_step
from rnnnas.nas.architect import Architect
from rnnnas.nas.derive import derive
from rnnnas.nas.genotype import CellGene
from rnnnas.nas.methods import METHODS, Method
from rnnnas.nas.relax.base import Mixture, Mixtures
from rnnnas.nas.space import CellSpace
from rnnnas.nas.stages import StageConfig, plan, strongest
from rnnnas.optim import AlphaConfig, alpha_optimizer, inner_step
from rnnnas.types import Batch, Loss

OPS = ("none", "a", "b", "c")
ONE = CellSpace(inputs=1, nodes=3, ops=OPS, keep=1)
TWO = CellSpace(inputs=2, nodes=2, ops=OPS, keep=2)
SEEDS = 5
SPACES = {f"one{s}": ONE for s in range(SEEDS)} | {f"two{s}": TWO for s in range(SEEDS)}
KINDS = {"one": ONE, "two": TWO}
WIDTH = 6
STEPS = 36
SAMPLING = 72  # steps of the methods that see one or two paths at a time


class Teacher(nn.Module):
    """Learns, a node, the matrix of its target; the loss is the sum over the kinds of cells.

    Legend: C cells of a kind, N nodes, E edges, O operations, B samples, w width.
    """

    def __init__(self, spaces: dict[str, CellSpace], genes: dict[str, CellGene]) -> None:
        super().__init__()
        self.space = spaces
        draws = seeded(0)
        self.learned = nn.ParameterDict()  # (C, N, w, w) each
        self.targets: dict[str, Tensor] = {}
        self.wanted: dict[str, Tensor] = {}  # (C, E, O): 1 at the genes
        self.nodes: dict[str, Tensor] = {}  # (N, E): 1 where an edge is the node's
        self.names = {kind: [n for n in spaces if n.startswith(kind)] for kind in KINDS}
        for kind, names in self.names.items():
            space = spaces[names[0]]
            shape = (len(names), space.nodes, WIDTH, WIDTH)
            start = 0.3 * torch.randn(shape, dtype=DOUBLE, generator=draws)
            self.learned[kind] = nn.Parameter(start)
            self.targets[kind] = torch.randn(shape, dtype=DOUBLE, generator=draws)
            wanted = torch.zeros(len(names), len(space.edges), len(OPS), dtype=DOUBLE)
            for c, name in enumerate(names):
                for i, node in enumerate(genes[name].nodes):
                    for op, source in node:
                        wanted[c, space.rows(i)[source], OPS.index(op)] = 1.0
            self.wanted[kind] = wanted
            self.nodes[kind] = torch.zeros(space.nodes, len(space.edges), dtype=DOUBLE)
            for e, (_, target) in enumerate(space.edges):
                self.nodes[kind][target - space.inputs, e] = 1.0

    def noise(self, batch: Batch, generator: torch.Generator) -> None:
        return None

    def forward(
        self, batch: Batch, hidden_state: Any, mixtures: Mapping[str, Mixture], noise: Any
    ) -> Loss:
        errors = []
        # (E, O, B, w): the candidates' values; `none` has none.
        features = torch.randn(
            10, len(OPS), 16, WIDTH, dtype=DOUBLE, generator=seeded(int(batch.inputs))
        )
        features[:, 0] = 0.0
        for kind, names in self.names.items():
            own = features[: self.wanted[kind].shape[1]]
            weights = torch.stack([mixtures[name].weights for name in names])
            found, target = (
                torch.einsum("ceo,ne,eobw->cnbw", table, self.nodes[kind], own)
                for table in (weights, self.wanted[kind])
            )
            apart = found @ self.learned[kind] - target @ self.targets[kind]
            errors.append(apart.square().mean((1, 2, 3)).sum())
        value = torch.stack(errors).sum()
        return Loss(value=value, count=1, hidden_state=None, penalty=torch.zeros_like(value))


def batch_of(seed: int) -> Batch:
    return Batch(torch.tensor(seed), torch.tensor(0))


def search(method: Method, net: Teacher, steps: int, begin: int) -> dict[str, Tensor]:
    """The search's two steps in turn, as `searching/run.py` takes them; returns the alphas."""
    relaxation = method.relaxation()
    drawn = relaxation.init(net.space, seeded(begin))
    alphas = {name: a.detach().double().requires_grad_() for name, a in drawn.items()}
    adam = alpha_optimizer(alphas, AlphaConfig(lr=0.05, betas=(0.0, 0.999), weight_decay=0.0))
    sgd = torch.optim.SGD(net.parameters(), lr=0.2)
    order = "finite" if method.order == "second" else "first"
    architect = Architect(net, alphas, relaxation, adam, order)
    for i in range(steps):
        progress, step = i / steps, begin + i
        draws = seeded(step)
        train = (batch_of(2 * step), None)
        architect.step(
            train=train,
            valid=train if relaxation.level == "train" else (batch_of(2 * step + 1), None),
            inner=inner_step(net, sgd, 0.0, lr=0.2),
            progress=progress,
            generator=draws,
        )
        with torch.no_grad():
            mixtures = relaxation.mix(alphas, net.space, progress, draws)

        def gradients(tried: Mixtures, batch: Batch = train[0]) -> tuple[Tensor, dict[str, Tensor]]:
            leaves = {n: m.weights.detach().requires_grad_() for n, m in tried.items()}
            value = net(batch, None, {n: Mixture(w) for n, w in leaves.items()}, None).value
            grads = torch.autograd.grad(value, list(leaves.values()))
            return value.detach(), dict(zip(leaves, grads, strict=True))

        mixtures = relaxation.perturb(mixtures, net.space, progress, draws, gradients)
        weight_step(net, sgd, train[0], None, mixtures, None, lr=0.2, clip=0.0)
    return alphas


def shares_found(name: str) -> dict[str, float]:
    """The share of teacher genes that method `name` finds, by kind of cell."""
    method = METHODS[name]
    rng = random.Random(1)
    genes = {cell: space.sample(rng) for cell, space in SPACES.items()}
    stages = plan(
        StageConfig(),
        staged=method.staged,
        operations=len(OPS),
        keep=1,
        hidden=1,
        partial=1,
        dropouth=0.0,
    )
    spaces = dict(SPACES)
    alphas: dict[str, Tensor] = {}
    steps = SAMPLING if name in ("gdas", "proxyless", "densenas") else STEPS
    for i, stage in enumerate(stages):
        if i:
            scores = method.relaxation().scores(alphas, spaces)
            spaces = {n: strongest(s, scores[n].tolist(), stage) for n, s in spaces.items()}
        net = Teacher(spaces, genes)
        alphas = search(method, net, steps // len(stages), 1000 * i)
    found = derive(method.relaxation(), alphas, spaces)
    result = {}
    for kind in KINDS:
        pairs = [
            (set(mine), set(theirs))
            for cell in spaces
            if cell.startswith(kind)
            for mine, theirs in zip(found.cells[cell].nodes, genes[cell].nodes, strict=True)
        ]
        hits = sum(len(mine & theirs) for mine, theirs in pairs)
        result[kind] = hits / sum(len(theirs) for _, theirs in pairs)
    return result


def chance(space: CellSpace) -> float:
    """The share of genes that a cell drawn from the space has in common with the teacher's."""
    options = len(OPS) - 1
    shares = [space.keep / len(space.rows(n)) / options for n in range(space.nodes)]
    return sum(shares) / len(shares)


def test_what_chance_finds() -> None:
    rng = random.Random(2)
    for space in KINDS.values():
        hits = total = 0
        for _ in range(1500):
            for mine, theirs in zip(space.sample(rng).nodes, space.sample(rng).nodes, strict=True):
                hits += len(set(mine) & set(theirs))
                total += len(theirs)
        assert hits / total == pytest.approx(chance(space), rel=0.1)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.alphas == "gradient"])
def test_every_method_finds_more_than_chance(name: str) -> None:
    found = shares_found(name)
    print(f"{name}: {found}")
    assert all(found[kind] > 2 * chance(space) for kind, space in KINDS.items())
