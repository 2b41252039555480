"""The architect against closed forms, against itself, and on two kinds of network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnnas.errors import UsageError
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas import architect
from rnnnas.nas.architect import Architect, hypergradient
from rnnnas.nas.relax.base import Mixture, Relaxation
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.optim import inner_step
from rnnnas.types import Batch, InnerStep, Loss

DOUBLE = torch.float64


def loss_of(value: Tensor, penalty: Tensor | None = None) -> Loss:
    extra = torch.zeros_like(value) if penalty is None else penalty
    return Loss(value=value, count=1, hidden_state=None, penalty=extra)


class Identity(Relaxation):
    """A relaxation whose mixture is the alphas themselves."""

    def init(self, spaces: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            name: torch.randn(len(s.edges), len(s.ops), dtype=DOUBLE, generator=generator)
            for name, s in spaces.items()
        }

    def mix(
        self, alphas: Any, spaces: Any, progress: float, generator: Any, step: Any = "weights"
    ) -> dict[str, Mixture]:
        return {name: Mixture(alpha) for name, alpha in alphas.items()}

    def scores(self, alphas: Any, spaces: Any) -> dict[str, Tensor]:
        return dict(alphas)


class Quadratic(nn.Module):
    """Train: ½|w - A m|²; validation: ½|w - b|² + c·m; told apart by the batch's inputs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.space = {"cell": CellSpace(inputs=1, nodes=1, ops=("none", "a", "b"), keep=1)}
        draws = torch.Generator().manual_seed(size)
        self.w = nn.Parameter(torch.randn(size, dtype=DOUBLE, generator=draws))
        self.map = torch.randn(size, 3, dtype=DOUBLE, generator=draws)
        self.goal = torch.randn(size, dtype=DOUBLE, generator=draws)
        self.direct = torch.randn(3, dtype=DOUBLE, generator=draws)

    def noise(self, batch: Batch, generator: torch.Generator) -> None:
        return None

    def forward(
        self, batch: Batch, hidden_state: Any, mixtures: Mapping[str, Mixture], noise: Any
    ) -> Loss:
        m = mixtures["cell"].weights[0]
        if batch.inputs.item() == 0:
            return loss_of(0.5 * (self.w - self.map @ m).square().sum())
        return loss_of(0.5 * (self.w - self.goal).square().sum() + self.direct @ m)


TRAIN = (Batch(torch.tensor(0), torch.tensor(0)), None)
VALID = (Batch(torch.tensor(1), torch.tensor(0)), None)


@pytest.mark.parametrize("order", ["finite", "exact"])
@pytest.mark.parametrize("clip", [0.0, 0.3, 1e3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_quadratic_has_its_known_answer(order: Any, clip: float, weight_decay: float) -> None:
    """w' = w - lr (coef (w - A m) + wd w), so dL/dm = c + lr coef Aᵀ (w' - b)."""
    net = Quadratic(7)
    alphas = {"cell": torch.randn(1, 3, dtype=DOUBLE).requires_grad_()}
    lr = 0.7
    m, w = alphas["cell"].detach()[0], net.w.detach()
    g = w - net.map @ m
    coef = min(1.0, clip / (float(g.norm()) + 1e-6)) if clip else 1.0
    ahead = w - lr * (coef * g + weight_decay * w)
    expected = net.direct + lr * coef * net.map.T @ (ahead - net.goal)
    inner = InnerStep(lr=lr, clip=clip, weight_decay=weight_decay)
    grads, loss = hypergradient(
        net, alphas, Identity(), train=TRAIN, valid=VALID, inner=inner, order=order,
        progress=0.0, generator=torch.Generator(),
    )  # fmt: skip
    torch.testing.assert_close(grads["cell"][0], expected, rtol=1e-9, atol=1e-10)
    outer = 0.5 * (ahead - net.goal).square().sum() + net.direct @ m
    torch.testing.assert_close(loss.value, outer, rtol=1e-12, atol=0)


def test_first_order_ignores_the_look_ahead() -> None:
    net = Quadratic(5)
    alphas = {"cell": torch.randn(1, 3, dtype=DOUBLE).requires_grad_()}
    grads, _ = hypergradient(
        net, alphas, Identity(), train=TRAIN, valid=VALID, inner=InnerStep(lr=9.0), order="first",
        progress=0.0, generator=torch.Generator(),
    )  # fmt: skip
    torch.testing.assert_close(grads["cell"][0], net.direct)


class SmallConv(nn.Module):
    """Two mixed convolutional edges with a batch normalisation that keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.space = {"normal": CellSpace(inputs=1, nodes=2, ops=("none", "conv", "pool"), keep=1)}
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3))
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.double()

    def noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        keep = torch.empty(len(batch.inputs), 4, 1, 1, dtype=DOUBLE)
        return keep.bernoulli_(0.8, generator=generator) / 0.8

    def forward(
        self, batch: Batch, hidden_state: Any, mixtures: Mapping[str, Mixture], noise: Tensor
    ) -> Loss:
        weights = mixtures["normal"].weights
        states = [self.stem(batch.inputs) * noise]
        edges = self.space["normal"].edges
        for node in (1, 2):
            total = torch.zeros_like(states[0])
            for e, (source, target) in enumerate(edges):
                if target == node:
                    x = states[source]
                    total = total + weights[e, 1] * self.convs[e](x).tanh()
                    total = total + weights[e, 2] * F.avg_pool2d(x, 3, 1, 1)
            states.append(self.norm(total))
        logits = self.head(states[-1].mean((2, 3)))
        return loss_of(F.cross_entropy(logits, batch.targets), 1e-3 * states[-1].square().mean())


def conv_case(seed: int) -> tuple[SmallConv, tuple[Batch, None], tuple[Batch, None]]:
    torch.manual_seed(seed)
    batches = [
        (Batch(torch.randn(4, 3, 5, 5, dtype=DOUBLE), torch.randint(5, (4,))), None)
        for _ in range(2)
    ]
    return SmallConv(), batches[0], batches[1]


def recurrent_case(seed: int) -> tuple[RecurrentLM, Any, Any]:
    draws = torch.Generator().manual_seed(seed)
    net = RecurrentLM(
        ModelConfig(hidden=6, nodes=3, path="reference"), 11, recurrent_space(3),
        noise=NoiseConfig(dropout=0.3, dropoutx=0.2, dropouth=0.2, dropouti=0.1, dropoute=0.1),
        penalty=PenaltyConfig(ar=0.1, tar=0.2), generator=draws,
    ).double()  # fmt: skip
    with torch.no_grad():  # larger weights than the initial ones: a curved loss
        for p in net.parameters():
            p.mul_(10)
    cases = []
    for _ in range(2):
        words = torch.randint(11, (6, 4), generator=draws)
        hidden_state = torch.randn(4, 6, dtype=DOUBLE, generator=draws)
        cases.append((Batch(words[:-1], words[1:]), hidden_state))
    return net, cases[0], cases[1]


def total_loss(
    net: nn.Module, alpha: Tensor, train: Any, valid: Any, inner: InnerStep, seed: int,
    constant: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """L_val(w'(alpha)) written out plainly, by torch's own SGD arithmetic; and the clip factor.

    constant: a clip factor to use instead of the one that follows from the gradient.
    """
    name = next(iter(net.space))  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(seed)
    train_noise = net.noise(train[0], draws)  # type: ignore[operator]
    valid_noise = net.noise(valid[0], draws)  # type: ignore[operator]
    mixture = {name: Mixture(alpha.softmax(-1))}
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    weights = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    loss = torch.func.functional_call(net, {**weights, **buffers}, (*train, mixture, train_noise))
    grads = torch.autograd.grad(loss.value + loss.penalty, list(weights.values()))
    norm = torch.cat([g.flatten() for g in grads]).norm()
    factor = torch.clamp(inner.clip / (norm + 1e-6), max=1.0) if inner.clip else torch.ones(())
    used = factor if constant is None else constant
    ahead = {}
    for (n, w), g in zip(weights.items(), grads, strict=True):
        step = used * g + inner.weight_decay * w
        if inner.momentum:
            step = step + inner.momentum * inner.buffers[n]
        ahead[n] = (w - inner.lr * step).detach()
    after = torch.func.functional_call(net, {**ahead, **buffers}, (*valid, mixture, valid_noise))
    return after.value.detach(), factor.detach()


@pytest.mark.parametrize("case", ["conv", "recurrent"])
@pytest.mark.parametrize(
    ("through_clip", "clip", "seed"), [(False, 0.0, 0), (False, 0.05, 1), (True, 0.05, 0)]
)
def test_orders_agree_with_numerical_derivative(
    case: str, through_clip: bool, clip: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact = d/dα of the whole two-level computation; the finite difference tends to it."""
    net, train, valid = conv_case(seed) if case == "conv" else recurrent_case(seed)
    name = next(iter(net.space))
    torch.manual_seed(seed)
    alpha = torch.randn(len(net.space[name].edges), len(net.space[name].ops), dtype=DOUBLE)
    alphas = {name: alpha.requires_grad_()}
    buffers = {n: torch.randn_like(p) * 0.01 for n, p in net.named_parameters()}
    inner = InnerStep(lr=0.3, clip=clip, weight_decay=0.01, momentum=0.9, buffers=buffers)

    def gradient(order: Any) -> Tensor:
        grads, _ = hypergradient(
            net, alphas, Darts(), train=train, valid=valid, inner=inner, order=order,
            progress=0.0, generator=torch.Generator().manual_seed(7), through_clip=through_clip,
        )  # fmt: skip
        return grads[name]

    exact, published = gradient("exact"), gradient("finite")
    monkeypatch.setattr(architect, "PERTURBATION", 1e-5)
    finite = gradient("finite")
    _, factor = total_loss(net, alpha.detach(), train, valid, inner, 7, None)
    assert (float(factor) < 1) == (clip > 0)
    constant = None if through_clip else factor
    # Along directions in which a mistake in any alpha's derivative shows.
    h = 1e-6
    directions = torch.randn(6, *alpha.shape, dtype=DOUBLE)

    def along(gradient: Tensor) -> Tensor:
        return (directions * gradient).sum((1, 2))

    numeric = torch.zeros(len(directions), dtype=DOUBLE)
    for i, shift in enumerate(h * directions):
        up, _ = total_loss(net, alpha.detach() + shift, train, valid, inner, 7, constant)
        down, _ = total_loss(net, alpha.detach() - shift, train, valid, inner, 7, constant)
        numeric[i] = (up - down) / (2 * h)
    scale = float(numeric.norm())
    assert scale > 1e-6
    assert float((along(exact) - numeric).norm()) / scale < 1e-5
    assert float((finite - exact).norm()) < 1e-5 * float(exact.norm())
    first = gradient("first")
    second_order_term = float((first - exact).norm())
    # At the published radius curvature and kinks cost some of the term, but not most of it.
    assert float((published - exact).norm()) < 0.3 * second_order_term


@pytest.mark.parametrize("order", ["first", "finite", "exact"])
@pytest.mark.parametrize("case", ["conv", "recurrent"])
def test_leaves_the_network_alone(case: str, order: Any) -> None:
    net, train, valid = conv_case(3) if case == "conv" else recurrent_case(3)
    name = next(iter(net.space))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    alphas = Darts().init(net.space, torch.Generator().manual_seed(0))
    alphas = {name: alphas[name].detach().double().requires_grad_()}
    Architect(
        net, alphas, Darts(), torch.optim.Adam(list(alphas.values()), lr=0.1), order
    ).step(
        train=train, valid=valid, inner=InnerStep(lr=0.1), progress=0.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    for n, t in net.state_dict().items():
        assert torch.equal(t, before[n]), f"{n} was changed"


def test_frozen_noise_is_what_makes_the_finite_difference_right() -> None:
    """With masks redrawn in each evaluation the second-order term would be mostly noise."""
    net, train, valid = recurrent_case(5)
    alphas = {"recurrent": torch.randn(6, 5, dtype=DOUBLE).requires_grad_()}
    inner = InnerStep(lr=0.3, clip=0.25)

    def gradient(order: Any) -> Tensor:
        return hypergradient(
            net, alphas, Darts(), train=train, valid=valid, inner=inner, order=order,
            progress=0.0, generator=torch.Generator().manual_seed(1),
        )[0]["recurrent"]  # fmt: skip

    exact, finite = gradient("exact"), gradient("finite")
    assert float((finite - exact).norm() / (exact - gradient("first")).norm()) < 0.05
    calls = iter(range(100))
    original = type(net).forward

    def redrawn(self: Any, batch: Batch, hidden_state: Any, mixtures: Any, noise: Any) -> Loss:
        fresh = self.noise(batch, torch.Generator().manual_seed(next(calls)))
        return original(self, batch, hidden_state, mixtures, fresh)

    type(net).forward = redrawn  # type: ignore[method-assign]
    try:
        noisy = gradient("finite")
    finally:
        type(net).forward = original  # type: ignore[method-assign]
    assert float((noisy - exact).norm() / (exact - gradient("first")).norm()) > 1


def test_non_finite_gradients_do_not_reach_the_alphas() -> None:
    net = Quadratic(4)
    with torch.no_grad():
        net.w[0] = torch.inf
    alphas = {"cell": torch.zeros(1, 3, dtype=DOUBLE).requires_grad_()}
    loss = Architect(
        net, alphas, Identity(), torch.optim.Adam(list(alphas.values())), "finite"
    ).step(
        train=TRAIN, valid=VALID, inner=InnerStep(lr=1.0), progress=0.0,
        generator=torch.Generator(),
    )  # fmt: skip
    assert not torch.isfinite(loss.value)
    assert torch.equal(alphas["cell"], torch.zeros(1, 3, dtype=DOUBLE))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_inner_step_mirrors_the_optimiser(momentum: float) -> None:
    """The look-ahead weights equal those of the real clipped step."""
    from rnnnas.nas.lookahead import ahead as look_ahead

    net, train, _ = conv_case(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum, weight_decay=0.01)
    mixtures = {"normal": Mixture(torch.full((3, 3), 0.3, dtype=DOUBLE))}
    for _ in range(3):
        noise = net.noise(train[0], torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        net(*train, mixtures, noise).objective.backward()
        gradient = {n: p.grad.clone() for n, p in net.named_parameters()}
        weights = {n: p.detach().clone() for n, p in net.named_parameters()}
        inner = inner_step(net, optimizer, 0.05, lr=0.1)
        ahead = look_ahead(weights, gradient, inner, constant_clip=True)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        optimizer.step()
        for n, p in net.named_parameters():
            torch.testing.assert_close(ahead[n], p.detach(), rtol=1e-12, atol=1e-14)


def test_inner_step_refuses_what_it_cannot_mirror() -> None:
    net = nn.Linear(2, 2)
    for optimizer in (
        torch.optim.Adam(net.parameters()),
        torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, nesterov=True),
        torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, dampening=0.5),
        torch.optim.SGD([{"params": [net.weight]}, {"params": [net.bias]}], lr=1.0),
    ):
        with pytest.raises(UsageError):
            inner_step(net, optimizer, 0.0, lr=1.0)
