"""The objective's derivative along a direction, and its gradient: against double backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from plain_torch import off
from torch import Tensor
from torch.func import functional_call

from rnnnas.lm.fast import cpu_library, mixture_whole, tangent_mixture, tangent_whole
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import recurrent_space
from rnnnas.types import Batch

DOUBLE = torch.float64
NOISE = {"dropout": 0.3, "dropoutx": 0.2, "dropouth": 0.2, "dropouti": 0.1, "dropoute": 0.2}
WORDS = 13
needed = pytest.mark.skipif(cpu_library.built().library is None, reason=cpu_library.built().reason)
# How a window is computed: in one call of kernels, the same without tiles, step by step, by torch.
FORMS = [*(pytest.param(form, marks=needed) for form in ("whole", "untiled", "stepwise")), "torch"]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"noise": {}},
    "masks": {},
    "penalties": {"ar": 0.3, "tar": 0.7},
    "partial": {"partial": 2},
    "partial and wide": {"partial": 4, "hidden": 136, "streams": 18, "steps": 2},
    "wide": {"hidden": 70, "streams": 35, "steps": 2, "nodes": 2},
    "paths": {"paths": True},
    "an empty node": {"paths": "none"},
    "layers": {"layers": 3, "tar": 0.1},
    "softmaxes": {"softmaxes": 3},
    "few streams": {"streams": 3},
    "one node": {"nodes": 1},
}


def network(
    *, seed: int = 1, hidden: int = 8, streams: int = 5, steps: int = 4, nodes: int = 3,
    ar: float = 0.0, tar: float = 0.0, noise: dict[str, float] | None = None,
    paths: Any = None, dtype: torch.dtype = DOUBLE, scale: float = 12.0, **config: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """The network, its weights, a direction, and a window with its hidden state, mixture and
    masks.
    """
    draws = torch.Generator().manual_seed(seed)
    space = recurrent_space(nodes)
    net = RecurrentLM(
        ModelConfig(hidden=hidden, nodes=nodes, **config), WORDS, space,
        noise=NoiseConfig(**(NOISE if noise is None else noise)),
        penalty=PenaltyConfig(ar=ar, tar=tar), generator=draws,
    ).to(dtype)  # fmt: skip
    weights = {name: p.detach() * scale for name, p in net.named_parameters()}
    vector = {n: torch.randn(w.shape, generator=draws, dtype=DOUBLE) for n, w in weights.items()}
    vector = {n: v.to(dtype) for n, v in vector.items()}
    words = torch.randint(WORDS, (steps + 1, streams), generator=draws)
    batch = Batch(words[:-1], words[1:])
    layers = config.get("layers", 1)
    hidden_state = [
        torch.randn(streams, hidden, generator=draws, dtype=DOUBLE) for _ in range(layers)
    ]
    table = torch.randn(len(space.edges), 5, generator=draws, dtype=DOUBLE).softmax(-1)
    chosen = None
    if paths == "none":  # the last node adds nothing
        chosen = tuple((e, 1 + e % 4) for e in range(len(space.edges))[:-nodes])
        chosen = (*chosen, (len(space.edges) - 1, 0))
    elif paths:
        chosen = tuple((e, o) for e in range(len(space.edges)) for o in (e % 5, (2 * e) % 5))
    masks = net.noise(batch, draws)
    hidden_state = (
        tuple(h.to(dtype) for h in hidden_state) if layers > 1 else hidden_state[0].to(dtype)
    )
    return net, weights, vector, batch, hidden_state, Mixture(table.to(dtype), chosen), masks


def oracle(case: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """By double backward through the readable cell."""
    net, weights, vector, batch, hidden_state, mixture, masks = case
    readable = net._twin()
    readable.config = type(net.config)(
        **{name: getattr(net.config, name) for name in ("hidden", "nodes", "layers", "softmaxes",
                                                        "partial")}, path="reference",
    )  # fmt: skip
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    table = mixture.weights.clone().requires_grad_()
    mixtures = {"recurrent": mixture._replace(weights=table)}
    loss = functional_call(readable, leaves, (batch, hidden_state, mixtures, masks))
    grads = torch.autograd.grad(loss.objective, list(leaves.values()), create_graph=True)
    moved = sum((g * vector[n]).sum() for n, g in zip(leaves, grads, strict=True))
    assert isinstance(moved, Tensor)
    return moved.detach(), torch.autograd.grad(moved, table)[0]


@contextmanager
def computed(form: str) -> Iterator[None]:
    """Within it windows are computed in one of `FORMS`."""
    with off(form == "torch"), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(mixture_whole, "suits", lambda *args, **low: form != "stepwise")
        if form == "untiled":
            monkeypatch.setattr(tangent_whole, "tiled", lambda: False)
        yield


def found(case: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    net, weights, vector, batch, hidden_state, mixture, masks = case
    table = mixture.weights.clone().requires_grad_()
    mixtures = {"recurrent": mixture._replace(weights=table)}
    moved = net.directional(weights, vector, batch, hidden_state, mixtures, masks)
    return moved.detach(), torch.autograd.grad(moved, table)[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_double_backward(name: str, form: str) -> None:
    case = network(**CASES[name])
    value, gradient = oracle(case)
    assert float(gradient.norm()) > 1e-3
    with computed(form):
        moved, got = found(case)
    torch.testing.assert_close(moved, value, rtol=1e-9, atol=1e-10)
    assert float((got - gradient).norm() / gradient.norm()) < 1e-9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(2, 5))
def test_whatever_the_draw(seed: int, form: str) -> None:
    case = network(seed=seed, ar=0.1, tar=0.2, nodes=4, paths=seed == 3)
    value, gradient = oracle(case)
    with computed(form):
        moved, got = found(case)
    torch.testing.assert_close(moved, value, rtol=1e-9, atol=1e-10)
    assert float((got - gradient).norm() / gradient.norm()) < 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_a_direction_counts_linearly(form: str) -> None:
    """A difference of gradients would not: this one has no small step."""
    net, weights, vector, *rest = network(tar=0.2)
    with computed(form):
        once = found((net, weights, vector, *rest))
        often = found((net, weights, {n: 1e8 * v for n, v in vector.items()}, *rest))
    for one, other in zip(once, often, strict=True):
        torch.testing.assert_close(other, 1e8 * one, rtol=1e-10, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-4), ("bfloat16", 0.06)])
def test_its_error_in_single_precision(precision: str, bound: float, form: str) -> None:
    size = {"hidden": 32, "streams": 16, "steps": 8, "scale": 4.0}
    _, gradient = oracle(network(**size))
    with computed(form):
        _, got = found(network(**size, dtype=torch.float32, precision=precision))
    error = float((got.double() - gradient).norm() / gradient.norm())
    assert 0 < error < bound


@needed
@pytest.mark.parametrize("form", ["whole", "stepwise"])
def test_the_kernels_are_used(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tangent_mixture, "Elementwise", None)
    if form == "whole":
        monkeypatch.setattr(tangent_mixture, "_DualUnroll", None)
    with computed(form):
        found(network())


@needed
@pytest.mark.parametrize(
    ("dtype", "low"), [(DOUBLE, False), (torch.float32, False), (torch.float32, True)]
)
def test_the_number_of_threads_changes_no_window(dtype: torch.dtype, low: bool) -> None:
    draws = torch.Generator().manual_seed(3)
    hidden, streams, steps, nodes = 40, 70, 3, 4

    def dual(*shape: int) -> tangent_mixture.Dual:
        return tangent_mixture.Dual(*(torch.randn(*shape, generator=draws).to(dtype) for _ in "vt"))

    space = recurrent_space(nodes)
    x = dual(steps, streams, hidden)
    h, first, matrices = dual(streams, hidden).value, dual(80, 80), dual(nodes, hidden, 80)
    table = torch.rand(len(space.edges), 5, generator=draws).to(dtype).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made = tangent_mixture.unroll(
                x, h, first, matrices, space, table, None, h.abs(), low=low
            )
            gradient = torch.autograd.grad(made.tangent.sum() + made.value.square().sum(), table)
            results.append((*(part.detach() for part in made), *gradient))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needed
def test_small_cells_alone_are_one_call() -> None:
    """What is larger, and what computes a part of its units, goes step by step."""
    assert mixture_whole.suits(100, 8) and not mixture_whole.suits(2000, 8)
    case = network(partial=2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tangent_mixture, "WholeDual", None)
        found(case)


def test_it_goes_back_once_and_keeps_nothing_without_gradients() -> None:
    net, weights, vector, batch, hidden_state, mixture, masks = network()
    table = mixture.weights.clone().requires_grad_()
    args = (weights, vector, batch, hidden_state)
    moved = net.directional(*args, {"recurrent": Mixture(table)}, masks)
    torch.autograd.grad(moved, table, retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(moved, table)
    with torch.no_grad():
        again = net.directional(*args, {"recurrent": Mixture(table)}, masks)
    torch.testing.assert_close(again, moved.detach(), rtol=1e-12, atol=1e-12)
    wrong = Batch(batch.inputs, batch.targets.clone().fill_(WORDS))
    with pytest.raises(IndexError, match=f"target {WORDS}"):
        net.directional(weights, vector, wrong, hidden_state, {"recurrent": Mixture(table)}, masks)
