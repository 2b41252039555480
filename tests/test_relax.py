"""What every relaxation owes: one class over all methods."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from sample_spaces import DOUBLE, SPACES, alphas_of, seeded
from torch import Tensor

from rnnnas.config.plain import from_plain
from rnnnas.errors import UsageError
from rnnnas.nas.derive import derive
from rnnnas.nas.methods import METHODS, method_of
from rnnnas.nas.relax.base import Mixtures, Step
from rnnnas.nas.space import CellSpace

# What the weights of a mixture are. "edge": shares that sum to 1 on each edge; "node": shares that
# sum to 1 over a node's edges; "path": exactly one weight of 1 a choice (a node's where it keeps
# one edge, else an edge's), all others exactly 0; "choice": shares that sum to 1 in each choice;
# "gates": anything in [0, 1] each.
PROMISES = {
    "darts": "edge",
    "darts-1st": "edge",
    "gdas": "path",
    "gdas-soft": "edge",
    "snas": "edge",
    "pc-darts": "node",
    "p-darts": "edge",
    "proxyless": "path",
    "densenas": "choice",
    "drnas": "edge",
    "node-softmax": "node",
    "fair-darts": "gates",
    "sdarts-rs": "edge",
    "sdarts-adv": "edge",
}
CHOICES = ("path", "choice")
STEPS: tuple[Step, ...] = ("weights", "alphas")


def keeps_promise(promise: str, space: CellSpace, weights: Tensor) -> None:
    """Fail where the weights (E, O) of a cell are not what the method says."""
    assert bool((weights >= 0).all()) and bool((weights <= 1).all())
    some = torch.tensor([any(row) for row in space.allowed])
    rows = weights.sum(-1)[some]
    nodes = torch.stack([weights[list(space.rows(n))].sum() for n in range(space.nodes)])
    sums = nodes if promise == "node" or (promise in CHOICES and space.keep == 1) else rows
    if promise != "gates":
        close = 1e-9 if weights.dtype == DOUBLE else 1e-5
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=close)
    if promise == "path":
        assert bool(((weights == 0) | (weights == 1)).all())


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].alphas == "gradient"])
class TestEveryMethod:
    def test_init(self, method: str, kind: str) -> None:
        spaces = SPACES[kind]
        one, same, other = (METHODS[method].relaxation().init(spaces, seeded(s)) for s in (1, 1, 2))
        assert set(spaces) <= set(one)
        for name, space in spaces.items():
            assert one[name].shape == (len(space.edges), len(space.ops))
        for name, alpha in one.items():
            assert alpha.requires_grad and alpha.is_leaf and bool(torch.isfinite(alpha).all())
            assert torch.equal(alpha, same[name]) and not torch.equal(alpha, other[name])

    @pytest.mark.parametrize("scale", [1.0, 300.0])
    @pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
    def test_mixtures_are_what_the_method_promises(
        self, method: str, kind: str, scale: float, dtype: torch.dtype
    ) -> None:
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces, scale, dtype)
        for progress in (0.0, 0.5, 1.0):
            for step in STEPS:
                mixtures = (
                    METHODS[method].relaxation().mix(alphas, spaces, progress, seeded(3), step)
                )
                assert set(mixtures) == set(spaces)
                for name, space in spaces.items():
                    weights = mixtures[name].weights.detach()
                    assert weights.shape == (len(space.edges), len(space.ops))
                    assert weights.dtype == dtype and bool(torch.isfinite(weights).all())
                    assert bool((weights[~torch.tensor(space.allowed)] == 0).all())
                    keeps_promise(PROMISES[method], space, weights)

    def test_paths_hold_every_weight_that_is_not_zero(self, method: str, kind: str) -> None:
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces)
        for seed in range(10):
            for step in STEPS:
                mixtures = METHODS[method].relaxation().mix(alphas, spaces, 0.5, seeded(seed), step)
                for name, (weights, paths) in mixtures.items():
                    if paths is not None:
                        used = {(e, o) for e, o in weights.nonzero().tolist()}
                        assert used <= set(paths)
                        assert list(paths) == sorted(set(paths))
                        assert all(spaces[name].allowed[e][o] for e, o in paths)

    @pytest.mark.parametrize("scale", [1.0, 300.0])
    def test_gradients_are_finite_and_spare_what_is_not_allowed(
        self, method: str, kind: str, scale: float
    ) -> None:
        spaces = SPACES[kind]
        for dtype in (torch.float32, DOUBLE):
            alphas = alphas_of(method, spaces, scale, dtype)
            for progress in (0.0, 0.5, 1.0):
                mixtures = (
                    METHODS[method].relaxation().mix(alphas, spaces, progress, seeded(3), "alphas")
                )
                random_gradients(mixtures, 4)
            for alpha in alphas.values():
                assert alpha.grad is not None and bool(torch.isfinite(alpha.grad).all())
            for name, space in spaces.items():
                grad = alphas[name].grad
                assert grad is not None
                assert bool((grad[~torch.tensor(space.allowed)] == 0).all())

    def test_the_gradient_reaches_every_choice(self, method: str, kind: str) -> None:
        """Every alpha that has a rival on its edge is moved; summed over draws."""
        spaces = SPACES[kind]
        relaxation = METHODS[method].relaxation()
        # Near each other: a method that draws two paths a step gets around to all of them.
        alphas = alphas_of(method, spaces, 0.1)
        for seed in range(300 if method in ("proxyless", "densenas") else 20):
            random_gradients(
                relaxation.mix(alphas, spaces, 0.5, seeded(seed), "alphas"), 100 + seed
            )
        for name, alpha in alphas.items():
            grad = alpha.grad
            assert grad is not None
            if name in spaces:
                allowed = torch.tensor(spaces[name].allowed)
                if PROMISES[method] in CHOICES and spaces[name].keep == 1:
                    # Never a node's only path.
                    allowed[:, [op == "none" for op in spaces[name].ops]] = False
                rivals = allowed & (allowed.sum(-1, keepdim=True) > 1)
            else:  # of each edge, as PC-DARTS' betas: rivals are the node's other edges
                space = spaces[name.rpartition(".")[0]]
                usable = torch.tensor([any(row) for row in space.allowed])
                rivals = torch.zeros_like(grad, dtype=torch.bool)
                for node in range(space.nodes):
                    rows = list(space.rows(node))
                    rivals[rows, 0] = usable[rows] & (usable[rows].sum() > 1)
            assert bool((grad[rivals] != 0).all())

    def test_a_seed_gives_one_mixture(self, method: str, kind: str) -> None:
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces)
        for step in STEPS:
            torch.manual_seed(1)
            one = METHODS[method].relaxation().mix(alphas, spaces, 0.3, seeded(7), step)
            torch.manual_seed(2)  # the global generator has no say
            other = METHODS[method].relaxation().mix(alphas, spaces, 0.3, seeded(7), step)
            assert all(torch.equal(one[name].weights, other[name].weights) for name in spaces)
            assert all(one[name].paths == other[name].paths for name in spaces)

    def test_scores_are_deterministic_and_spare_the_alphas(self, method: str, kind: str) -> None:
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces)
        before = {name: a.detach().clone() for name, a in alphas.items()}
        one = METHODS[method].relaxation().scores(alphas, spaces)
        METHODS[method].relaxation().mix(alphas, spaces, 0.9, seeded(1))
        other = METHODS[method].relaxation().scores(alphas, spaces)
        for name, space in spaces.items():
            assert one[name].shape == (len(space.edges), len(space.ops))
            assert torch.equal(one[name], other[name])
        assert all(torch.equal(alphas[name], a) for name, a in before.items())

    def test_derive_never_yields_none_nor_what_is_banned(self, method: str, kind: str) -> None:
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces)
        with torch.no_grad():
            for name, space in spaces.items():
                alphas[name][:, [op == "none" for op in space.ops]] = 50.0
        genotype = derive(METHODS[method].relaxation(), alphas, spaces)
        assert set(genotype.cells) == set(spaces)
        for name, space in spaces.items():
            cell = genotype.cells[name]
            assert len(cell.nodes) == space.nodes
            for i, node in enumerate(cell.nodes):
                assert len(node) == space.kept(i)
                for op, source in node:
                    row = space.rows(i)[source]
                    assert op != "none" and space.allowed[row][space.ops.index(op)]

    def test_derive_follows_the_alphas(self, method: str, kind: str) -> None:
        """With one gene far above all others in each node, that gene is found."""
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces, 0.1)
        draws = random.Random(4)
        wanted = {name: space.sample(draws) for name, space in spaces.items()}
        with torch.no_grad():
            for name, space in spaces.items():
                for i, node in enumerate(wanted[name].nodes):
                    for op, source in node:
                        alphas[name][space.rows(i)[source], space.ops.index(op)] = 9.0
        found = derive(METHODS[method].relaxation(), alphas, spaces)
        for name, space in spaces.items():
            for i, (one, other) in enumerate(
                zip(found.cells[name].nodes, wanted[name].nodes, strict=True)
            ):
                # A row with one choice only has all mass on it, whatever its alpha.
                single = any(sum(space.allowed[row]) == 1 for row in space.rows(i))
                assert single or set(one) == set(other)


def random_gradients(mixtures: Mixtures, seed: int) -> None:
    """Add the gradient of a random linear function of the weights to the alphas'."""
    draws = seeded(seed)
    total = sum(
        (m.weights * torch.randn(m.weights.shape, generator=draws)).sum() for m in mixtures.values()
    )
    assert isinstance(total, Tensor)
    total.backward()


def settings() -> list[tuple[str, str]]:
    return [
        (name, field.name)
        for name, method in METHODS.items()
        for field in dataclasses.fields(method.relaxation)  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize(("method", "setting"), settings())
def test_settings_are_checked(method: str, setting: str) -> None:
    with pytest.raises(UsageError, match=rf"relax\.{setting} = -1"):
        from_plain(METHODS[method].relaxation, {setting: -1}, "relax.")


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_no_method_are_refused(method: str) -> None:
    with pytest.raises(UsageError, match=r"no setting 'relax\.no_such'"):
        from_plain(METHODS[method].relaxation, {"no_such": 1.0}, "relax.")


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'dart' is unknown \(did you mean 'darts'\?\)") as caught:
        method_of("dart")
    assert all(method in caught.value.remedy for method in METHODS)
    assert method_of("darts") is METHODS["darts"]
