"""What every relaxation owes: one class over all methods; and the formulas of each."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas.methods import METHODS, derive, method_of
from rnnnas.nas.relax.base import INITIAL_SCALE, Alphas
from rnnnas.nas.relax.darts import Darts
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


SPACES: dict[str, dict[str, CellSpace]] = {
    "whole": {"recurrent": recurrent_space()},
    "one node": {"recurrent": recurrent_space(1)},
    "pruned": {"recurrent": pruned(recurrent_space(), 1)},
    "two cells": {"normal": CNN, "reduce": pruned(CNN, 2)},
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alphas_of(method: str, spaces: dict[str, CellSpace], scale: float = 1.0) -> dict[str, Tensor]:
    """Fresh parameters of the method, moved to random places; leaves in float64."""
    draws = seeded(5)
    return {
        name: (scale * torch.randn(a.shape, dtype=DOUBLE, generator=draws)).requires_grad_()
        for name, a in METHODS[method].relaxation().init(spaces, seeded(0)).items()
    }


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
    @pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
    def test_mixtures_are_shares(
        self, method: str, kind: str, scale: float, progress: float
    ) -> None:
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces, scale)
        mixtures = METHODS[method].relaxation().mix(alphas, spaces, progress, seeded(3))
        assert set(mixtures) == set(spaces)
        for name, space in spaces.items():
            weights = mixtures[name].weights.detach()
            assert weights.shape == (len(space.edges), len(space.ops))
            assert bool(torch.isfinite(weights).all()) and bool((weights >= 0).all())
            assert float(weights.sum(-1).max()) <= 1 + 1e-9

    def test_what_is_not_allowed_gets_nothing(self, method: str, kind: str) -> None:
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces)
        mixtures = METHODS[method].relaxation().mix(alphas, spaces, 0.5, seeded(3))
        total = sum(
            (m.weights * torch.rand(m.weights.shape, generator=seeded(4))).sum()
            for m in mixtures.values()
        )
        assert isinstance(total, Tensor)
        total.backward()
        for name, space in spaces.items():
            banned = ~torch.tensor(space.allowed)
            assert bool((mixtures[name].weights[banned] == 0).all())
            grad = alphas[name].grad
            assert grad is not None and bool(torch.isfinite(grad).all())
            assert bool((grad[banned] == 0).all())

    def test_the_gradient_reaches_every_choice(self, method: str, kind: str) -> None:
        """Every alpha that has a rival on its edge is moved; summed over a few draws."""
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces)
        for seed in range(20):
            mixtures = METHODS[method].relaxation().mix(alphas, spaces, 0.5, seeded(seed))
            slopes = seeded(100 + seed)
            total = sum(
                (m.weights * torch.randn(m.weights.shape, generator=slopes)).sum()
                for m in mixtures.values()
            )
            assert isinstance(total, Tensor)
            total.backward()
        for name, space in spaces.items():
            allowed = torch.tensor(space.allowed)
            rivals = allowed & (allowed.sum(-1, keepdim=True) > 1)
            grad = alphas[name].grad
            assert grad is not None and bool((grad[rivals] != 0).all())

    def test_a_seed_gives_one_mixture(self, method: str, kind: str) -> None:
        spaces = SPACES[kind]
        alphas = alphas_of(method, spaces)
        torch.manual_seed(1)
        one = METHODS[method].relaxation().mix(alphas, spaces, 0.3, seeded(7))
        torch.manual_seed(2)  # the global generator has no say
        other = METHODS[method].relaxation().mix(alphas, spaces, 0.3, seeded(7))
        assert all(torch.equal(one[name].weights, other[name].weights) for name in spaces)

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
                alphas[name][:, space.ops.index("none")] = 50.0
        genotype = derive(METHODS[method].relaxation(), alphas, spaces)
        assert set(genotype.cells) == set(spaces)
        for name, space in spaces.items():
            cell = genotype.cells[name]
            assert len(cell.nodes) == space.nodes
            for i, node in enumerate(cell.nodes):
                assert len(node) == space.keep
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


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'dart' is unknown \(did you mean 'darts'\?\)") as caught:
        method_of("dart")
    assert all(method in caught.value.remedy for method in METHODS)
    assert method_of("darts") is METHODS["darts"]


# DARTS


def softmax_by_hand(row: list[float], allowed: tuple[bool, ...]) -> list[float]:
    top = max((a for a, ok in zip(row, allowed, strict=True) if ok), default=0.0)
    powers = [math.exp(a - top) if ok else 0.0 for a, ok in zip(row, allowed, strict=True)]
    return [power / (sum(powers) or 1.0) for power in powers]


@pytest.mark.parametrize("kind", SPACES)
def test_darts_is_a_softmax_over_each_edge(kind: str) -> None:
    spaces = SPACES[kind]
    alphas = alphas_of("darts", spaces, 2.0)
    mixtures = Darts().mix(alphas, spaces, 0.0, seeded(0))
    scores = Darts().scores(alphas, spaces)
    for name, space in spaces.items():
        expected = [
            softmax_by_hand(row, ok)
            for row, ok in zip(alphas[name].tolist(), space.allowed, strict=True)
        ]
        wanted = torch.tensor(expected, dtype=DOUBLE)
        torch.testing.assert_close(mixtures[name].weights, wanted, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(scores[name], wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", ["whole", "pruned"])
def test_darts_has_the_slope_of_a_softmax(kind: str) -> None:
    """d/da_k of Σ_o v_o p_o is p_k (v_k - Σ_o v_o p_o)."""
    spaces = SPACES[kind]
    alphas = alphas_of("darts", spaces)
    p = Darts().mix(alphas, spaces, 0.0, seeded(0))["recurrent"].weights
    v = torch.randn(p.shape, dtype=DOUBLE, generator=seeded(1))
    (grad,) = torch.autograd.grad((p * v).sum(), [alphas["recurrent"]])
    rows = zip(p.tolist(), v.tolist(), strict=True)
    expected = [
        [pk * (vk - sum(a * b for a, b in zip(ps, vs, strict=True)))
         for pk, vk in zip(ps, vs, strict=True)]
        for ps, vs in rows
    ]  # fmt: skip
    torch.testing.assert_close(grad, torch.tensor(expected, dtype=DOUBLE), rtol=1e-12, atol=1e-14)


def test_darts_starts_with_no_operation_ahead() -> None:
    space = {"recurrent": recurrent_space(40)}
    alpha: Alphas = Darts().init(space, seeded(0))
    drawn = alpha["recurrent"].detach() / INITIAL_SCALE
    assert INITIAL_SCALE == 1e-3 and drawn.numel() == 820 * 5
    assert abs(float(drawn.mean())) < 0.1 and abs(float(drawn.std()) - 1) < 0.1
