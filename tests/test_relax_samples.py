"""The relaxations that sample: their distributions, values and gradients against formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sample_spaces import CNN, DOUBLE, SPACES, alphas_of, seeded
from torch import Tensor

from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.choices import choice_softmax, choices_of, gumbel
from rnnnas.nas.relax.drnas import LEAST, DrNas, concentrations
from rnnnas.nas.relax.gdas import Gdas, GdasSoft
from rnnnas.nas.relax.proxyless import Proxyless
from rnnnas.nas.relax.snas import Snas
from rnnnas.nas.space import CellSpace, recurrent_space

Places = list[list[tuple[int, int]]]


def choices_by_hand(space: CellSpace) -> Places:
    """The allowed (edge, operation) pairs of every choice, in order."""
    nodes = [list(space.rows(node)) for node in range(space.nodes)]
    owners = nodes if space.keep == 1 else [[edge] for rows in nodes for edge in rows]
    ops = [o for o, op in enumerate(space.ops) if space.keep == 2 or op != "none"]
    found = [[(e, o) for e in rows for o in ops if space.allowed[e][o]] for rows in owners]
    return [places for places in found if places]


@pytest.mark.parametrize("kind", SPACES)
def test_choices_are_a_nodes_or_an_edges(kind: str) -> None:
    for space in SPACES[kind].values():
        choices = choices_of(space, torch.device("cpu"))
        table = torch.randn(len(space.edges), len(space.ops), dtype=DOUBLE, generator=seeded(0))
        taken = choices.take(table)
        by_hand = choices_by_hand(space)
        assert len(taken) == len(by_hand)
        for row, places in zip(taken.tolist(), by_hand, strict=True):
            own = [value for value in row if value > -math.inf]
            assert own == [float(table[e, o]) for e, o in places]
        back = choices.put(taken, table)
        stands = torch.zeros_like(table)
        for places in by_hand:
            for at in places:
                stands[at] = 1.0
        assert torch.equal(back, table * stands)
        p = choice_softmax(table, space)
        for places in by_hand:
            powers = [math.exp(float(table[e, o])) for e, o in places]
            wanted = [power / sum(powers) for power in powers]
            assert [float(p[e, o]) for e, o in places] == pytest.approx(wanted, rel=1e-12)


def test_gumbel_noise_is_minus_the_log_of_an_exponential() -> None:
    g = gumbel(torch.empty(200_000, dtype=DOUBLE), seeded(0))
    # F(x) = exp(-exp(-x)): mean 0.57722, variance π²/6.
    assert abs(float(g.mean()) - 0.57722) < 0.01
    assert abs(float(g.var()) - math.pi**2 / 6) < 0.03
    for x in (-1.0, 0.0, 1.0, 3.0):
        assert abs(float((g <= x).double().mean()) - math.exp(-math.exp(-x))) < 0.005


def test_gumbel_noise_that_is_not_finite_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.Tensor.exponential_
    calls = []

    def unlucky(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        result = original(self, *args, **kwargs)
        if len(calls) == 1:
            result[1], result[2] = 0.0, torch.inf
        return result

    monkeypatch.setattr(torch.Tensor, "exponential_", unlucky)
    g = gumbel(torch.empty(5), seeded(0))
    assert len(calls) == 2 and bool(torch.isfinite(g).all())
    first, second = (original(torch.empty(5), generator=d) for d in [seeded(0)] * 2)
    assert torch.equal(g[[0, 3, 4]], -first.log()[[0, 3, 4]])
    assert not torch.equal(first, second)


# GDAS


def drawn_softmax(alpha: Tensor, space: CellSpace, tau: float, seed: int) -> Tensor:
    """softmax((α + g) / τ) within each choice, differentiable, with the draws of one mixture."""
    by_hand = choices_by_hand(space)
    most = max(map(len, by_hand))
    g = gumbel(torch.empty(len(by_hand), most, dtype=DOUBLE), seeded(seed))
    p = torch.zeros(alpha.shape, dtype=DOUBLE)
    for row, places in enumerate(by_hand):
        logits = torch.stack([alpha[e, o] + g[row, i] for i, (e, o) in enumerate(places)])
        for value, (e, o) in zip((logits / tau).softmax(0), places, strict=True):
            p = p.index_put((torch.tensor(e), torch.tensor(o)), value)
    return p


@pytest.mark.parametrize("reach", ["sampled", "all"])
@pytest.mark.parametrize("kind", SPACES)
def test_gdas_has_the_value_of_one_hot_and_the_gradient_of_the_softmax(
    kind: str, reach: Any
) -> None:
    progress, tau = 0.25, 10 + 0.25 * (0.1 - 10)
    for name, space in SPACES[kind].items():
        spaces = {name: space}
        alpha = alphas_of("gdas", spaces)[name]
        method = Gdas(reach=reach)
        weights, paths = method.mix({name: alpha}, spaces, progress, seeded(8), "alphas")[name]
        p = drawn_softmax(alpha, space, tau, 8)
        best = [max(places, key=lambda at: p[at].item()) for places in choices_by_hand(space)]
        wanted = torch.zeros_like(p)
        for e, o in best:
            wanted[e, o] = 1.0
        assert torch.equal(weights.detach(), wanted)  # not nearly: exactly
        assert paths == (tuple(sorted(best)) if reach == "sampled" else None)
        lean = method.mix({name: alpha}, spaces, progress, seeded(8), "weights")[name]
        assert torch.equal(lean.weights.detach(), wanted) and lean.paths == tuple(sorted(best))
        gradients = torch.randn(p.shape, dtype=DOUBLE, generator=seeded(9))
        (grad,) = torch.autograd.grad((weights * gradients).sum(), [alpha])
        used = gradients * wanted if reach == "sampled" else gradients
        (expected,) = torch.autograd.grad((p * used).sum(), [alpha])
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-14)


def frequencies(method: Any, alpha: Tensor, space: CellSpace, draws: int) -> Tensor:
    total = torch.zeros_like(alpha)
    for seed in range(draws):
        total += method.mix({"cell": alpha}, {"cell": space}, 0.5, seeded(seed))["cell"].weights
    return total / draws


@pytest.mark.parametrize("space", [recurrent_space(3), CNN], ids=["node", "edge"])
@pytest.mark.parametrize("method", [Gdas(), Proxyless()], ids=["gdas", "proxyless"])
def test_paths_are_drawn_as_often_as_the_softmax_says(method: Any, space: CellSpace) -> None:
    alpha = torch.randn(len(space.edges), len(space.ops), dtype=DOUBLE, generator=seeded(3))
    p = choice_softmax(alpha, space)
    draws = 1500
    found = frequencies(method, alpha, space, draws)
    assert bool(((found - p).abs() <= 4.5 * (p * (1 - p) / draws).sqrt()).all())


@pytest.mark.parametrize(
    ("method", "tau"),
    [(GdasSoft(), 10 + 0.3 * (1 - 10)), (Snas(), 0.03**0.3), (Snas(tau_start=2.0), 2 * 0.015**0.3)],
    ids=["gdas-soft", "snas", "snas from 2"],
)
def test_soft_samples_are_a_concrete_distribution(method: Any, tau: float) -> None:
    """The mixture is softmax((α + g) / τ) over each edge; its largest entry is a draw by p."""
    spaces = {"cell": recurrent_space(90)}
    rows = len(spaces["cell"].edges)
    alpha = torch.tensor([[0.3, -0.5, 0.9, 0.0, 0.1]], dtype=DOUBLE).repeat(rows, 1)
    weights = method.mix({"cell": alpha}, spaces, 0.3, seeded(4))["cell"].weights
    expected = ((alpha + gumbel(alpha, seeded(4))) / tau).softmax(-1)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-300)
    p = alpha[0].softmax(0)
    share = torch.bincount(weights.argmax(-1), minlength=5) / rows
    assert bool(((share - p).abs() < 4.5 * (p * (1 - p) / rows).sqrt()).all())


def test_only_snas_learns_its_alphas_on_the_training_text() -> None:
    assert Snas.level == "train" and GdasSoft.level == "valid"


# ProxylessNAS


@pytest.mark.parametrize("kind", SPACES)
def test_proxyless_gate_gradient_is_the_explicit_sum(kind: str) -> None:
    """∂L/∂α_i = Σ_j ∂L/∂g_j p_j (δ_ij - p_i) over the pair; equation 4 of the paper."""
    for name, space in SPACES[kind].items():
        spaces = {name: space}
        alpha = alphas_of("proxyless", spaces)[name]
        weights, paths = Proxyless().mix({name: alpha}, spaces, 0.0, seeded(6), "alphas")[name]
        assert paths is not None
        gradients = torch.randn(alpha.shape, dtype=DOUBLE, generator=seeded(7))
        (grad,) = torch.autograd.grad((weights * gradients).sum(), [alpha])
        expected = torch.zeros_like(grad)
        for places in choices_by_hand(space):
            pair = [at for at in places if at in paths]
            assert len(pair) == min(2, len(places))
            assert sorted(weights[at].item() for at in pair) == [0.0, 1.0][-len(pair) :]
            mass = sum(math.exp(alpha[at].item()) for at in pair)
            p = [math.exp(alpha[at].item()) / mass for at in pair]
            for i, at in enumerate(pair):
                expected[at] = sum(
                    gradients[other].item() * p[j] * ((i == j) - p[i])
                    for j, other in enumerate(pair)
                )
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)


def test_proxyless_draws_pairs_without_replacement() -> None:
    """P(pair {a, b}) = p_a p_b / (1 - p_a) + p_b p_a / (1 - p_b), and then the active one."""
    space = CellSpace(inputs=1, nodes=1, ops=("a", "b", "c", "d"), keep=1)
    alpha = torch.tensor([[0.0, 0.7, -0.4, 1.1]], dtype=DOUBLE)
    p = alpha[0].softmax(0).tolist()
    draws = 2000
    pairs: dict[Any, int] = {}
    active: dict[Any, int] = {}
    for seed in range(draws):
        drawn = Proxyless().mix({"c": alpha}, {"c": space}, 0.0, seeded(seed), "alphas")["c"]
        assert drawn.paths is not None
        pair = tuple(o for _, o in drawn.paths)
        pairs[pair] = pairs.get(pair, 0) + 1
        active[pair] = active.get(pair, 0) + int(drawn.weights[0, pair[0]])
    assert len(pairs) == 6
    for (a, b), count in pairs.items():
        q = p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
        assert abs(count / draws - q) < 4.5 * math.sqrt(q * (1 - q) / draws)
        r = p[a] / (p[a] + p[b])
        assert abs(active[a, b] / count - r) < 4.5 * math.sqrt(r * (1 - r) / count)


@pytest.mark.parametrize("stray", [0.0, 0.1])
@pytest.mark.parametrize("kind", SPACES)
def test_proxyless_leaves_all_other_probabilities(kind: str, stray: float) -> None:
    """stray: how far an optimiser with momentum and decay moves what was not drawn."""
    spaces = SPACES[kind]
    alphas = alphas_of("proxyless", spaces)
    method = Proxyless()
    mixtures = method.mix(alphas, spaces, 0.0, seeded(1), "alphas")
    before = {name: a.detach().clone() for name, a in alphas.items()}
    moved = {}
    with torch.no_grad():
        for name, alpha in alphas.items():
            alpha += stray * torch.randn(alpha.shape, dtype=DOUBLE, generator=seeded(5))
            for at in mixtures[name].paths or ():
                alpha[at] += 0.5 * torch.randn((), dtype=DOUBLE, generator=seeded(sum(at)))
            moved[name] = alpha.clone()
        method.adjust(alphas, before, mixtures, spaces)
    for name, space in spaces.items():
        paths = mixtures[name].paths
        assert paths is not None
        rest = torch.ones_like(alphas[name], dtype=torch.bool)
        for at in paths:
            rest[at] = False
        old, new = (choice_softmax(a[name], space).detach() for a in (before, alphas))
        torch.testing.assert_close(new[rest], old[rest], rtol=1e-12, atol=1e-15)
        assert torch.equal(alphas[name][rest], before[name][rest])
        for places in choices_by_hand(space):
            pair = [at for at in places if at in paths]
            shifts = [(alphas[name][at] - moved[name][at]).item() for at in pair]
            assert max(shifts) - min(shifts) < 1e-12  # the pair's own ratio stays what it learned
            one, other = (
                sum(math.exp(a[name][at].item()) for at in pair) for a in (before, alphas)
            )
            assert one == pytest.approx(other, rel=1e-12)


# DrNAS


def dirichlet(alpha_row: list[float], draws: int) -> tuple[Tensor, Tensor]:
    """Many draws at once: an edge each. Returns θ (n, 5), and the alphas (n, 5), a leaf."""
    space = {"cell": recurrent_space(draws)}
    alpha = torch.tensor([alpha_row], dtype=DOUBLE).repeat(len(space["cell"].edges), 1)
    alpha.requires_grad_()
    return DrNas().mix({"cell": alpha}, space, 0.0, seeded(5))["cell"].weights, alpha


ROW = [0.5, -1.0, 2.0, 0.0, -0.3]


def test_drnas_has_the_moments_of_a_dirichlet() -> None:
    theta, _ = dirichlet(ROW, 200)  # 20,100 edges
    c = torch.tensor([a + 1 if a > 0 else math.exp(a) for a in ROW], dtype=DOUBLE)
    mean = c / c.sum()
    var = mean * (1 - mean) / (c.sum() + 1)
    assert bool(((theta.mean(0) - mean).abs() < 4.5 * (var / len(theta)).sqrt()).all())
    torch.testing.assert_close(theta.var(0), var, rtol=0.06, atol=0)
    pair = -mean[0] * mean[2] / (c.sum() + 1)
    found = ((theta[:, 0] - mean[0]) * (theta[:, 2] - mean[2])).mean()
    torch.testing.assert_close(found, pair, rtol=0.1, atol=0)
    scores = DrNas().scores(
        {"cell": torch.tensor([ROW], dtype=DOUBLE)}, {"cell": recurrent_space(1)}
    )
    torch.testing.assert_close(scores["cell"][0], mean)


def test_drnas_gradients_average_to_that_of_the_mean() -> None:
    """E[dΣ v θ² / dα] against the derivative of E[Σ v θ²], which is known in closed form."""
    v = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=DOUBLE)
    theta, alpha = dirichlet(ROW, 200)
    (grad,) = torch.autograd.grad((v * theta.square()).sum(), [alpha])
    row = torch.tensor(ROW, dtype=DOUBLE, requires_grad=True)
    c = torch.where(row > 0, row + 1, row.exp())
    second = c * (c + 1) / (c.sum() * (c.sum() + 1))  # E[θ²]
    (expected,) = torch.autograd.grad((v * second).sum(), [row])
    error = grad.std(0) / math.sqrt(len(grad))
    assert bool(((grad.mean(0) - expected).abs() < 4.5 * error).all())
    assert bool((error < 0.1 * expected.abs().max()).all())


def test_drnas_pulls_concentrations_towards_1() -> None:
    spaces = SPACES["two cells"]
    alphas = alphas_of("drnas", spaces)
    penalty = DrNas(l2=0.02).penalty(alphas, spaces, 0.0)
    assert penalty is not None
    squares = sum(x * x for a in alphas.values() for row in a.tolist() for x in row)
    assert penalty.item() == pytest.approx(0.01 * squares, rel=1e-12)
    assert DrNas(l2=0.0).penalty(alphas, spaces, 0.0) is None


def test_drnas_survives_alphas_at_which_a_gamma_draw_underflows() -> None:
    alpha = torch.full((1, 5), -200.0, requires_grad=True)
    assert torch.equal(concentrations(alpha.detach()), torch.full((1, 5), LEAST))
    mixture: Mixture = DrNas().mix({"cell": alpha}, {"cell": recurrent_space(1)}, 0.0, seeded(0))[
        "cell"
    ]
    assert mixture.weights.sum().item() == pytest.approx(1.0)
    assert bool(torch.isfinite(mixture.weights).all())
