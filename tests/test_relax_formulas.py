"""The relaxations that draw nothing or add something, each against a formula of its own."""

from __future__ import annotations

import math

import pytest
import torch
from sample_spaces import CNN, DOUBLE, SPACES, alphas_of, seeded
from torch import Tensor

from rnnnas.nas.relax.base import INITIAL_SCALE, Alphas, Mixture, Mixtures
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.relax.fair_darts import FairDarts
from rnnnas.nas.relax.node_softmax import NodeSoftmax
from rnnnas.nas.relax.p_darts import PDarts
from rnnnas.nas.relax.pc_darts import PcDarts
from rnnnas.nas.relax.sdarts import SdartsAdversarial, SdartsRandom, shares
from rnnnas.nas.space import CellSpace, recurrent_space

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
def test_darts_has_the_gradient_of_a_softmax(kind: str) -> None:
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


@pytest.mark.parametrize("kind", SPACES)
def test_p_darts_computes_only_what_is_left(kind: str) -> None:
    spaces = SPACES[kind]
    alphas = alphas_of("p-darts", spaces)
    mixtures = PDarts().mix(alphas, spaces, 0.0, seeded(0))
    same = Darts().mix(alphas, spaces, 0.0, seeded(0))
    for name, space in spaces.items():
        assert torch.equal(mixtures[name].weights, same[name].weights)
        left = [(e, o) for e, row in enumerate(space.allowed) for o, ok in enumerate(row) if ok]
        everything = len(left) == len(space.edges) * len(space.ops)
        assert mixtures[name].paths == (None if everything else tuple(left))


# Softmaxes over a node


@pytest.mark.parametrize("kind", SPACES)
def test_node_softmax_is_one_softmax_a_node(kind: str) -> None:
    spaces = SPACES[kind]
    alphas = alphas_of("node-softmax", spaces, 2.0)
    mixtures = NodeSoftmax().mix(alphas, spaces, 0.0, seeded(0))
    for name, space in spaces.items():
        table = alphas[name].tolist()
        for node in range(space.nodes):
            places = [(e, o) for e in space.rows(node) for o in range(len(space.ops))]
            flat = [table[e][o] for e, o in places]
            wanted = softmax_by_hand(flat, tuple(space.allowed[e][o] for e, o in places))
            found = [mixtures[name].weights[e, o].item() for e, o in places]
            assert found == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("kind", SPACES)
def test_pc_darts_multiplies_two_softmaxes(kind: str) -> None:
    spaces = SPACES[kind]
    alphas = alphas_of("pc-darts", spaces, 2.0)
    mixtures = PcDarts().mix(alphas, spaces, 0.0, seeded(0))
    for name, space in spaces.items():
        beta = alphas[f"{name}.beta"]
        assert beta.shape == (len(space.edges), 1)
        for node in range(space.nodes):
            rows = list(space.rows(node))
            usable = tuple(any(space.allowed[e]) for e in rows)
            of_edge = softmax_by_hand([beta[e].item() for e in rows], usable)
            for e, share in zip(rows, of_edge, strict=True):
                of_op = softmax_by_hand(alphas[name][e].tolist(), space.allowed[e])
                wanted = [share * p for p in of_op]
                assert mixtures[name].weights[e].tolist() == pytest.approx(wanted, rel=1e-12)


# FairDARTS


def test_fair_darts_gates_each_operation_and_pushes_to_0_or_1() -> None:
    spaces = SPACES["two cells"]
    alphas = alphas_of("fair-darts", spaces, 2.0)
    weights = FairDarts().mix(alphas, spaces, 0.0, seeded(0))
    terms = []
    for name, space in spaces.items():
        for e, row in enumerate(space.allowed):
            for o, ok in enumerate(row):
                gate = 1 / (1 + math.exp(-alphas[name][e, o].item())) if ok else 0.0
                assert weights[name].weights[e, o].item() == pytest.approx(gate, rel=1e-12)
                terms += [(gate - 0.5) ** 2] if ok else []
    penalty = FairDarts().penalty(alphas, spaces, 0.0)
    assert penalty is not None
    assert penalty.item() == pytest.approx(-10 * sum(terms) / len(terms), rel=1e-12)
    assert FairDarts(zero_one=0.0).penalty(alphas, spaces, 0.0) is None
    penalty.backward()  # type: ignore[no-untyped-call]
    for name, space in spaces.items():
        grad = alphas[name].grad
        assert grad is not None
        allowed = torch.tensor(space.allowed)
        # Downhill is away from a half, on either side.
        assert bool((grad.sign() == -alphas[name].sign())[allowed].all())


# SmoothDARTS


def test_shares_are_cut_and_made_to_sum_to_1() -> None:
    space = CellSpace(inputs=1, nodes=1, ops=("none", "a", "b"), keep=1,
                      allowed=((False, True, True),))  # fmt: skip
    start = torch.tensor([[0.0, 0.3, 0.7]], dtype=DOUBLE)
    for table, wanted in (
        ([9.0, 0.5, 0.3], [0.0, 0.625, 0.375]),
        ([9.0, -0.5, 1.5], [0.0, 0.0, 1.0]),
        ([9.0, -0.1, -0.2], [0.0, 0.0, 1.0]),  # nothing left: the largest of the start
    ):
        result = shares(torch.tensor([table], dtype=DOUBLE), start, space)
        torch.testing.assert_close(result, torch.tensor([wanted], dtype=DOUBLE))


def unused(mixtures: Mixtures) -> tuple[Tensor, dict[str, Tensor]]:
    raise AssertionError("no gradient is needed")


@pytest.mark.parametrize(("progress", "epsilon"), [(0.0, 0.03), (0.5, 0.165), (1.0, 0.3)])
def test_random_smoothing_moves_by_up_to_epsilon(progress: float, epsilon: float) -> None:
    """On an edge with shares far from 0 and 1, dividing by the sum undoes itself in ratios."""
    space = {"cell": recurrent_space(60)}
    start = torch.full((len(space["cell"].edges), 5), 0.2, dtype=DOUBLE)
    method = SdartsRandom()
    mixtures = {"cell": Mixture(start)}
    moved = method.perturb(mixtures, space, progress, seeded(1), unused)["cell"].weights
    torch.testing.assert_close(moved.sum(-1), torch.ones(len(moved), dtype=DOUBLE))
    # The same draws, by hand.
    noise = torch.empty_like(start).uniform_(-epsilon, epsilon, generator=seeded(1))
    cut = (start + noise).clamp(0, 1)
    torch.testing.assert_close(moved, cut / cut.sum(-1, keepdim=True))
    assert float(noise.max()) > 0.99 * epsilon and float(noise.min()) < -0.99 * epsilon


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", ["sdarts-rs", "sdarts-adv"])
def test_smoothing_leaves_shares_and_what_is_not_allowed(kind: str, name: str) -> None:
    spaces = SPACES[kind]
    method = SdartsRandom() if name == "sdarts-rs" else SdartsAdversarial()
    alphas = alphas_of(name, spaces, 2.0)
    mixtures = method.mix(alphas, spaces, 1.0, seeded(0))
    directions = {n: torch.randn(m.weights.shape, dtype=DOUBLE, generator=seeded(3))
                  for n, m in mixtures.items()}  # fmt: skip

    def gradients(tried: Mixtures) -> tuple[Tensor, dict[str, Tensor]]:
        loss = torch.stack([(directions[n] * m.weights).sum() for n, m in tried.items()]).sum()
        return loss, directions

    result = method.perturb(mixtures, spaces, 1.0, seeded(1), gradients)
    again = method.perturb(mixtures, spaces, 1.0, seeded(1), gradients)
    for n, space in spaces.items():
        weights, allowed = result[n].weights, torch.tensor(space.allowed)
        assert not weights.requires_grad and torch.equal(weights, again[n].weights)
        assert not torch.equal(weights, mixtures[n].weights)
        assert bool((weights[~allowed] == 0).all()) and bool((weights >= 0).all())
        sums = weights.sum(-1)[allowed.any(-1)]
        torch.testing.assert_close(sums, torch.ones_like(sums))


def ascent_by_hand(
    start: list[list[float]], tried: list[list[float]], target: list[list[float]], epsilon: float
) -> list[list[float]]:
    """Seven steps up Σ (m - t)², entry by entry, everything allowed."""
    for _ in range(7):
        for e, row in enumerate(tried):
            stepped = []
            for o, now in enumerate(row):
                gradient = 2 * (now - target[e][o])
                up = now + 2 * epsilon / 7 * ((gradient > 0) - (gradient < 0))
                near = start[e][o] + max(-epsilon, min(epsilon, up - start[e][o]))
                stepped.append(max(0.0, min(1.0, near)))
            total = sum(stepped)
            tried[e] = [value / total for value in stepped]
    return tried


def test_adversarial_smoothing_is_projected_ascent() -> None:
    spaces = {"cell": CNN}
    draws = seeded(2)
    rows = len(CNN.edges)
    start = torch.randn(rows, 4, dtype=DOUBLE, generator=draws).softmax(-1)
    target = torch.randn(rows, 4, dtype=DOUBLE, generator=draws).softmax(-1)
    passes = []

    def gradients(tried: Mixtures) -> tuple[Tensor, dict[str, Tensor]]:
        passes.append(1)
        apart = tried["cell"].weights - target
        return apart.square().sum(), {"cell": 2 * apart}

    for progress, epsilon in ((0.0, 0.03), (1.0, 0.3)):
        passes.clear()
        mixtures = {"cell": Mixture(start)}
        method = SdartsAdversarial()
        result = method.perturb(mixtures, spaces, progress, seeded(4), gradients)["cell"].weights
        assert len(passes) == 9  # one before, seven on the way, one after
        noise = torch.empty_like(start).uniform_(-epsilon, epsilon, generator=seeded(4))
        begin = (start + noise).clamp(0, 1)
        begin = begin / begin.sum(-1, keepdim=True)
        wanted = ascent_by_hand(start.tolist(), begin.tolist(), target.tolist(), epsilon)
        torch.testing.assert_close(result, torch.tensor(wanted, dtype=DOUBLE), rtol=1e-10, atol=0)
        assert (result - target).square().sum() > (start - target).square().sum()


def test_adversarial_smoothing_stays_where_the_loss_does_not_rise() -> None:
    start = torch.full((len(CNN.edges), 4), 0.25, dtype=DOUBLE)
    mixtures = {"cell": Mixture(start)}
    seen = iter([1.0] + 7 * [5.0] + [1.0])  # up on the way, and no higher at the end

    def gradients(tried: Mixtures) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor(next(seen)), {"cell": torch.ones_like(start)}

    result = SdartsAdversarial().perturb(mixtures, {"cell": CNN}, 0.5, seeded(0), gradients)
    assert result["cell"].weights is start
