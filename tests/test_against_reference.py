"""The product against the specification in `tests/reference`, in float64, over random sizes."""

from __future__ import annotations

import random
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from reference import hypergradient as rule
from reference.cell import Masks, Pass, Step, derived_cell, language_model, ones
from reference.search_cell import derived, search_cell, shares
from torch import Tensor

from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import TIED, ModelConfig, RecurrentLM
from rnnnas.lm.noise import LMNoise, NoiseConfig
from rnnnas.nas.architect import hypergradient
from rnnnas.nas.derive import derive
from rnnnas.nas.genotype import CellGene
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.types import Batch, InnerStep

DOUBLE = torch.float64
NOISE = NoiseConfig(dropout=0.4, dropouti=0.2, dropoute=0.1, dropoutx=0.3, dropouth=0.25)
PENALTY = PenaltyConfig(ar=0.7, tar=0.4)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Case(NamedTuple):
    """A network with two windows, of sizes that the seed decides."""

    net: RecurrentLM
    train: tuple[Batch, Tensor]
    valid: tuple[Batch, Tensor]
    alpha: Tensor
    rng: random.Random


def case(seed: int, path: str, *, searched: bool, scale: float = 8.0, most: int = 5) -> Case:
    """scale: of the weights, so that gates and the loss are far from linear; most: nodes."""
    rng = random.Random(seed)
    draws = torch.Generator().manual_seed(seed)
    units, vocabulary, nodes = rng.randint(2, 7), rng.randint(4, 17), rng.randint(1, most)
    streams = rng.randint(2, 5)
    space = recurrent_space(nodes)
    cell: CellSpace | CellGene = space if searched else space.sample(rng)
    net = RecurrentLM(
        ModelConfig(hidden=units, nodes=nodes, path=path), vocabulary, cell,  # type: ignore[arg-type]
        noise=NOISE, penalty=PENALTY, generator=draws,
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=draws, dtype=DOUBLE) * 0.04).mul_(scale)
    windows = []
    for _ in range(2):
        ids = torch.randint(vocabulary, (rng.randint(1, 6) + 1, streams), generator=draws)
        state = torch.randn(streams, units, generator=draws, dtype=DOUBLE)
        windows.append((Batch(ids[:-1], ids[1:]), state))
    alpha = torch.randn(len(space.edges), 5, generator=draws, dtype=DOUBLE)
    return Case(net, windows[0], windows[1], alpha, rng)


def weights_of(net: RecurrentLM) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def masks_of(noise: LMNoise) -> Masks:
    parts = {name: getattr(noise, name) for name in ("words", "inputs", "x", "h", "outputs")}
    return Masks(**parts)


def cell_of(net: RecurrentLM, weights: dict[str, Tensor], masks: Masks, mixture: Any) -> Step:
    if isinstance(net.cell, CellGene):
        nodes = [(gene.op, gene.source) for (gene,) in net.cell.nodes]
        return derived_cell(nodes, net.cell.concat, weights, masks)
    return search_cell(mixture, weights, masks)


def specified(
    net: RecurrentLM, weights: dict[str, Tensor], window: tuple[Batch, Tensor], masks: Masks,
    mixture: Tensor | None = None, penalty: PenaltyConfig = PENALTY,
) -> Pass:  # fmt: skip
    (words, targets), h = window
    step = cell_of(net, weights, masks, mixture)
    return language_model(step, weights, words, targets, h, masks, **asdict(penalty))


PATHS = ["reference", "eager", "fast"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("searched", [False, True])
def test_loss_outputs_and_gradients(seed: int, path: str, searched: bool) -> None:
    """Of a training window: with every mask and both penalties."""
    net, window, _, alpha, _ = case(seed, path, searched=searched)
    noise = net.noise(window[0], torch.Generator().manual_seed(seed))
    mixture = shares(alpha).requires_grad_()
    given = {"recurrent": Mixture(mixture)} if searched else {}
    loss = net(*window, given, noise)
    own = {name: w.requires_grad_() for name, w in weights_of(net).items()}
    spec = specified(net, own, window, masks_of(noise), mixture)
    torch.testing.assert_close(loss.value, spec.loss, **CLOSE)
    torch.testing.assert_close(loss.penalty, spec.penalty, **CLOSE)
    torch.testing.assert_close(loss.hidden_state, spec.outputs[-1].detach(), **CLOSE)
    leaves = [*net.parameters(), *([mixture] if searched else [])]
    expected = [*own.values(), *([mixture] if searched else [])]
    found = torch.autograd.grad(loss.objective, leaves, allow_unused=True)
    wanted = torch.autograd.grad(spec.loss + spec.penalty, expected, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if one is None else one, zero if other is None else other, **CLOSE
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("searched", [False, True])
def test_evaluation_has_no_noise_and_the_batch_statistics(seed: int, searched: bool) -> None:
    net, window, _, alpha, _ = case(seed, "fast", searched=searched)
    mixture = shares(alpha)
    given = {"recurrent": Mixture(mixture)} if searched else {}
    silent = ones(len(net.bias), window[1].shape[0], window[1].shape[1])
    spec = specified(net, weights_of(net), window, silent, mixture)
    with torch.no_grad():
        loss = net(*window, given, None)
    torch.testing.assert_close(loss.value, spec.loss, **CLOSE)
    assert float(loss.penalty) == 0.0


@pytest.mark.parametrize("seed", range(40))
def test_the_derived_cell(seed: int) -> None:
    """Ties too: alphas of few values."""
    rng = random.Random(seed)
    space = recurrent_space(rng.randint(1, 8))
    draws = torch.Generator().manual_seed(seed)
    alpha = torch.randint(3, (len(space.edges), 5), generator=draws).double()
    genotype = derive(Darts(), {"recurrent": alpha}, {"recurrent": space})
    found = [(gene.op, gene.source) for (gene,) in genotype.recurrent.nodes]
    # The product's own softmax: in the last bit of another, ties would fall otherwise.
    mixture = alpha.softmax(-1)
    torch.testing.assert_close(shares(alpha), mixture, rtol=1e-14, atol=0)
    assert found == derived(mixture, space.nodes)
    assert genotype.recurrent.concat == tuple(range(1, space.nodes + 1))


# The alphas' gradient


class Levels(NamedTuple):
    """Both losses of the specification, and the product's gradient under the same masks."""

    case: Case
    plain: rule.Loss  # training, without penalties
    train: rule.Loss
    valid: rule.Loss
    alone: rule.Loss  # validation, where no masks were drawn for training before
    sgd: rule.Sgd

    def found(self, order: Any, *, published: bool = False) -> Tensor:
        net, train, valid, alpha, _ = self.case
        inner = InnerStep(
            lr=self.sgd.lr, clip=self.sgd.clip, weight_decay=self.sgd.decay,
            published=frozenset({TIED}) if published else None,
        )  # fmt: skip
        grads, _ = hypergradient(
            net, {"recurrent": alpha.clone().requires_grad_()}, Darts(), train=train, valid=valid,
            inner=inner, order=order, progress=0.0, generator=torch.Generator().manual_seed(5),
        )  # fmt: skip
        return grads["recurrent"]


def levels(seed: int, path: str, *, clipped: bool, most: int = 5) -> Levels:
    """clipped: whether the inner step's gradient is longer than its clip."""
    found = case(seed, path, searched=True, most=most)
    net = found.net
    draws = torch.Generator().manual_seed(5)
    noises = [masks_of(net.noise(w[0], draws)) for w in (found.train, found.valid)]
    noises.append(masks_of(net.noise(found.valid[0], torch.Generator().manual_seed(5))))
    weights = weights_of(net)

    def plain(w: dict[str, Tensor], alpha: Tensor) -> Tensor:
        return specified(net, w, found.train, noises[0], shares(alpha)).loss

    def train(w: dict[str, Tensor], alpha: Tensor) -> Tensor:
        spec = specified(net, w, found.train, noises[0], shares(alpha))
        return spec.loss + spec.penalty

    def valid(w: dict[str, Tensor], alpha: Tensor) -> Tensor:
        return specified(net, w, found.valid, noises[1], shares(alpha)).loss

    def alone(w: dict[str, Tensor], alpha: Tensor) -> Tensor:
        return specified(net, w, found.valid, noises[2], shares(alpha)).loss

    lengths = [float(rule.norm(rule.gradient(f, weights, found.alpha))) for f in (plain, train)]
    clip = 0.4 * min(lengths) if clipped else 2.5 * max(lengths)
    return Levels(found, plain, train, valid, alone, rule.Sgd(lr=0.3, clip=clip, decay=0.02))


@cache
def wanted(seed: int, clipped: bool) -> dict[str, Tensor]:
    """The alphas' gradient by the specification, which has no paths: once for all of them."""
    all_of = levels(seed, "reference", clipped=clipped)
    weights, alpha, sgd = weights_of(all_of.case.net), all_of.case.alpha, all_of.sgd
    two = (all_of.train, all_of.valid, weights, alpha, sgd)
    return {
        "first": rule.first_order(all_of.alone, weights, alpha),
        "finite": rule.finite(*two),
        "exact": rule.exact(*two),
        "published": rule.published(all_of.plain, all_of.valid, weights, alpha, sgd),
    }


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("path", PATHS)
def test_first_and_second_order_and_the_published_look_ahead(
    seed: int, path: str, clipped: bool
) -> None:
    all_of, spec = levels(seed, path, clipped=clipped), wanted(seed, clipped)
    torch.testing.assert_close(all_of.found("first"), spec["first"], **CLOSE)
    # A difference of nearly equal gradients: their rounding is divided by 0.02.
    finite = all_of.found("finite")
    torch.testing.assert_close(finite, spec["finite"], rtol=1e-9, atol=1e-12)
    published = all_of.found("finite", published=True)
    torch.testing.assert_close(published, spec["published"], rtol=1e-9, atol=1e-12)
    assert float((published - finite).norm()) > 1e-3 * float(published.norm())
    if path != "fast":  # it keeps no graph of its backward pass
        torch.testing.assert_close(all_of.found("exact"), spec["exact"], **CLOSE)


@pytest.mark.parametrize("seed", [1, 3, 5])  # gradients far above the rounding of a difference
def test_the_exact_rule_is_the_derivative_and_the_published_one_is_not(seed: int) -> None:
    """Judged by differences of the two-level loss itself."""
    all_of = levels(seed, "eager", clipped=True, most=2)
    two = (all_of.train, all_of.valid, weights_of(all_of.case.net), all_of.case.alpha, all_of.sgd)
    numerical = rule.numerical(*two)
    length = float(numerical.norm())
    off = float((all_of.found("exact") - numerical).norm()) / length
    published = float((all_of.found("finite", published=True) - numerical).norm()) / length
    assert off < 1e-5 < 1e-2 < published
