"""The own normalisation and the pixels of a factorised reduction: values, gradients, twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnnas.cnn import fast_batch_norm, fast_cell, ops
from rnnnas.cnn.fast_convolutions import halves
from rnnnas.cnn.model import CnnConfig, ConvNet
from rnnnas.cnn.noise import SILENCE
from rnnnas.cnn.ops import DERIVED, FactorisedReduction, Norm
from rnnnas.cnn.space import image_spaces
from rnnnas.cnn.zoo import ZOO
from rnnnas.nas.relax.base import Mixture
from rnnnas.types import Batch

DOUBLE = torch.float64
LAST = torch.channels_last


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, dtype=DOUBLE, generator=seeded(seed)) * 2 + 1
    return x.contiguous(memory_format=LAST)


def twice(out: Tensor, leaves: Any) -> list[Tensor]:
    """The value, the gradients of a curved function of it, and theirs."""
    seed = torch.randn(out.shape, dtype=DOUBLE, generator=seeded(8))
    first = torch.autograd.grad((out.tanh() * seed).sum(), leaves, create_graph=True)
    weighed = [(g.sin() * torch.randn(g.shape, dtype=DOUBLE, generator=seeded(9))).sum()
               for g in first]  # fmt: skip
    second = torch.autograd.grad(torch.stack(weighed).sum(), leaves)
    return [out, *first, *second]


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# 3 x 7 x 5 pixels have no power of two, 4 x 6 x 2 have 16, 64 x 8 x 8 more than a row takes.
@pytest.mark.parametrize("shape", [(3, 5, 7, 5), (4, 3, 6, 2), (64, 12, 8, 8), (2, 700, 2, 2)])
@pytest.mark.parametrize(("affine", "shifted"), [(True, True), (True, False), (False, False)])
def test_values_gradients_and_theirs_are_torchs(
    shape: tuple[int, ...], affine: bool, shifted: bool
) -> None:
    x = images(*shape).requires_grad_()
    w, b = (torch.randn(shape[1], dtype=DOUBLE, generator=seeded(s)).requires_grad_()
            for s in (1, 2))  # fmt: skip
    weight, bias = w if affine else None, b if shifted else None
    leaves = [x, *(t for t in (weight, bias) if t is not None)]
    # Large, so that the sum of squares of what is normalised is not the count.
    ours = fast_batch_norm.batch_norm(x, None, None, weight, bias, 0.1, 0.5)
    assert ours.is_contiguous(memory_format=LAST)
    plain = x.contiguous()  # torch's backward pass for this order
    theirs = F.batch_norm(plain, None, None, weight, bias, True, 0.1, 0.5)
    close(twice(ours, leaves), twice(theirs, leaves))


def test_a_gradient_in_another_order_is_the_same() -> None:
    x = images(4, 3, 6, 6).requires_grad_()
    out = fast_batch_norm.batch_norm(x, None, None, None, None, 0.1, 1e-5)
    seed = torch.randn(4, 5, 6, 6, dtype=DOUBLE, generator=seeded(3))
    (slow,) = torch.autograd.grad(
        F.batch_norm(x.contiguous(), None, None, None, None, True), x, seed[:, 1:4]
    )
    order = seed.contiguous(memory_format=LAST)[:, 1:4]
    for grad in (seed[:, 1:4], order):
        (own,) = torch.autograd.grad(out, x, grad, retain_graph=True)
        torch.testing.assert_close(own, slow, rtol=1e-10, atol=1e-10)


def test_running_statistics_run_as_torchs_and_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_batch_norm, "LEAST", 64 * 16 * 16)
    both = []
    for quick in (True, False):
        layer = Norm(12, DERIVED).double()
        layer.quick = quick
        with torch.no_grad():
            assert layer.weight is not None and layer.bias is not None
            layer.weight.uniform_(0.5, 2, generator=seeded(1))
            layer.bias.normal_(generator=seeded(2))
        outs = [layer(images(64, 12, 16, 16, seed=s), True) for s in range(3)]
        assert layer.mean is not None and layer.variance is not None
        both.append([*outs, layer.mean, layer.variance, layer(images(64, 12, 16, 16), False)])
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_a_large_mean_costs_no_digits_of_a_small_variance() -> None:
    x = (images(64, 12, 8, 8) / 2 + 1000).float().contiguous(memory_format=LAST)
    seen, statistic = torch.zeros(12), torch.zeros(12)
    fast_batch_norm.batch_norm(x, seen, statistic, None, None, 1.0, 1e-5)
    exact = x.double().transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(statistic.double(), exact, rtol=1e-5, atol=0)


def test_it_serves_large_channels_last_images_in_full_precision_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast_batch_norm, "LEAST", 64 * 16 * 16)
    x = torch.zeros(64, 3, 16, 16).contiguous(memory_format=LAST)
    assert fast_batch_norm.suits(x) and fast_batch_norm.suits(x.double())
    assert not fast_batch_norm.suits(x.contiguous())
    assert not fast_batch_norm.suits(x[:63]) and not fast_batch_norm.suits(x.bfloat16())
    assert not fast_batch_norm.suits(x.to("meta"))
    assert not fast_batch_norm.suits(x[:, :2])


@pytest.mark.parametrize("size", [(6, 8), (7, 8), (6, 5), (7, 5), (1, 1)])
def test_halves_are_the_even_pixels_and_those_diagonal_to_them(size: tuple[int, int]) -> None:
    x = images(2, 3, *size).requires_grad_()
    even, odd = halves(x)
    h, w = size
    padded = F.pad(x, (0, 1 + w % 2, 0, 1 + h % 2))
    expected = [x[:, :, ::2, ::2], padded[:, :, 1 : h + 1 + h % 2 : 2, 1 : w + 1 + w % 2 : 2]]
    shape = (2, 3, -(-h // 2), -(-w // 2))
    assert even.shape == odd.shape == shape
    assert all(part.is_contiguous(memory_format=LAST) for part in (even, odd))
    close(twice(torch.stack([even, odd]), [x]), twice(torch.stack(expected), [x]))


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_a_quick_reduction_is_the_readable_one(size: tuple[int, int]) -> None:
    layer = FactorisedReduction(3, 5, ops.SEARCH, seeded(1)).double()
    x = images(2, 3, *size).requires_grad_()
    leaves = [x, layer.even.weight, layer.odd.weight]
    results = []
    for quick in (True, False):
        layer.even.quick = layer.odd.quick = quick
        results.append([*twice(layer(x, True), leaves), *twice(layer.rectified(x, True), leaves)])
    close(*results)


def test_a_quick_reductions_backward_pass_makes_one_image_of_full_size() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Made(TorchDispatchMode):
        kept: list[Tensor] = []  # so that no memory serves twice

        def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = f(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.numel() == x.numel():
                self.kept.append(out)
            return out

    layer = FactorisedReduction(4, 4, ops.SEARCH, seeded(1)).double()
    layer.even.quick = layer.odd.quick = True
    x = images(2, 4, 8, 8).requires_grad_()
    out = layer(x, True)
    with Made() as made:
        torch.autograd.grad(out, x, torch.ones_like(out))
    assert len({full.data_ptr() for full in made.kept}) == 1


@pytest.mark.parametrize("path", ["fast", "reference"])
def test_the_fast_path_alone_uses_both(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_batch_norm, "LEAST", 16 * 32 * 32)
    seen: set[str] = set()

    def spied(module: Any, name: str) -> None:
        original = getattr(module, name)

        def spy(*given: Any) -> Any:
            seen.add(name)
            return original(*given)

        monkeypatch.setattr(module, name, spy)

    for module, name in (
        (fast_batch_norm, "batch_norm"),
        (fast_batch_norm, "by_running"),
        (ops, "halves"),
    ):
        spied(module, name)
    assert fast_cell.fast_batch_norm is fast_batch_norm and ops.fast_batch_norm is fast_batch_norm
    batch = Batch(torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64))
    net = ConvNet(CnnConfig(channels=4, layers=3, path=path), ZOO["DARTS_V2"].genotype, 2,
                  generator=seeded(0))  # fmt: skip
    net(batch, None, {}, SILENCE)
    net(batch, None, {}, None)
    used = {"batch_norm", "by_running", "halves"} if path == "fast" else set()
    assert seen == used
    searched = ConvNet(CnnConfig(channels=2, layers=2, path=path), image_spaces(), 2,
                       generator=seeded(0))  # fmt: skip
    seen.clear()
    p = {name: Mixture(torch.full((14, 8), 0.1)) for name in image_spaces()}
    searched(batch, None, p, SILENCE)
    assert seen == used - {"by_running"}


def test_an_evaluation_in_parts_gives_the_scores_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnnas.cnn import model

    net = ConvNet(CnnConfig(channels=4, layers=3), ZOO["DARTS_V2"].genotype, 5,
                  generator=seeded(0)).double()  # fmt: skip
    x = torch.randn(7, 3, 8, 8, dtype=DOUBLE, generator=seeded(1))
    counts: list[int] = []
    net.stem.register_forward_hook(lambda _, given, __: counts.append(len(given[0])))
    whole = net.logits(x)
    monkeypatch.setattr(model, "PIXELS", 3 * 64)
    torch.testing.assert_close(net.logits(x), whole, rtol=1e-12, atol=1e-12)
    assert counts == [7, 3, 3, 1]
    searched = ConvNet(CnnConfig(channels=2, layers=2), image_spaces(), 2, generator=seeded(0))
    searched.stem.register_forward_hook(lambda _, given, __: counts.append(len(given[0])))
    p = {name: Mixture(torch.full((14, 8), 0.1)) for name in image_spaces()}
    searched.logits(x.float(), p)
    assert counts[-1] == 7  # its normalisations see the whole batch
