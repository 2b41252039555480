"""The loss over the vocabulary by tiles, against float64 of the same rounded factors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rnnnas.lm.fast import cpu_library
from rnnnas.lm.loss import cross_entropy, cross_entropy_reference

pytestmark = pytest.mark.skipif(
    not (cpu_library.built().library and cpu_library.tiled()),
    reason="neither this processor nor its compiler has tiles (AMX)",
)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def case(rows: int, hidden: int, words: int, size: float = 1.0) -> tuple[list[Tensor], Tensor]:
    """Outputs, weights and bias in float32, and targets."""
    draws = torch.Generator().manual_seed(rows + hidden + words)
    outputs = size * torch.randn(rows, hidden, generator=draws)
    weight = 0.3 * torch.randn(words, hidden, generator=draws)
    bias = torch.randn(words, generator=draws)
    return [outputs, weight, bias], torch.randint(words, (rows,), generator=draws)


def all_of(tensors: list[Tensor], targets: Tensor, *, by: float = 1.0) -> list[Tensor]:
    """The loss and `by` times its gradients, by tiles."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = cross_entropy(*leaves, targets, low=True)
    return [value.detach(), *torch.autograd.grad(by * value, leaves)]


def exact(tensors: list[Tensor], targets: Tensor) -> list[Tensor]:
    """The same by its definition, in float64, of the factors as bfloat16 has them."""
    outputs, weight, bias = tensors
    leaves = [t.double().requires_grad_() for t in (outputs.bfloat16(), weight.bfloat16(), bias)]
    value = cross_entropy_reference(*leaves, targets)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


SIZES = [
    (1, 1, 2), (5, 7, 13), (16, 32, 256), (33, 100, 1000), (561, 33, 257), (31, 200, 2049),
    (1025, 40, 333), (1100, 64, 300), (2050, 33, 100), (9000, 3, 70),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients(size: tuple[int, int, int]) -> None:
    tensors, targets = case(*size)
    found, wanted = all_of(tensors, targets), exact(tensors, targets)
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=2e-6)
    # No product makes the bias' gradient; the others are sums of gradients in bfloat16.
    for got, right, error in zip(found[1:], wanted[1:], (3e-3, 3e-3, 3e-6), strict=True):
        assert got.dtype == torch.float32
        assert float((got - right).norm() / right.norm()) < error


@pytest.mark.parametrize("size", [(40, 8, 600), (600, 40, 900)])
def test_large_logits_do_not_overflow(size: tuple[int, int, int]) -> None:
    tensors, targets = case(*size, size=300.0)
    found, wanted = all_of(tensors, targets), exact(tensors, targets)
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-5)
    assert float((found[2] - wanted[2]).norm() / wanted[2].norm()) < 1e-2


def test_a_factor_of_the_loss_reaches_the_gradients_each_time() -> None:
    tensors, targets = case(50, 20, 300)
    once, thrice = all_of(tensors, targets), all_of(tensors, targets, by=3.0)
    for one, three in zip(once[1:], thrice[1:], strict=True):
        torch.testing.assert_close(three, 3.0 * one, rtol=1e-6, atol=0)
    # What a pass hands out is the caller's own: the next one gives the same again.
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = cross_entropy(*leaves, targets, low=True)
    value.backward(retain_graph=True)
    for leaf, one in zip(leaves, once[1:], strict=True):
        assert leaf.grad is not None and torch.equal(leaf.grad, one)
        leaf.grad *= 2.0
        leaf.grad = None
    value.backward()
    for leaf, one in zip(leaves, once[1:], strict=True):
        assert leaf.grad is not None and torch.equal(leaf.grad, one)


@pytest.mark.parametrize("rows", [50, 1100])
def test_gradients_only_where_they_are_wanted(rows: int) -> None:
    tensors, targets = case(rows, 20, 300)
    whole = all_of(tensors, targets)
    for place in range(3):
        some = [t.clone().requires_grad_(i == place) for i, t in enumerate(tensors)]
        (grad,) = torch.autograd.grad(cross_entropy(*some, targets, low=True), [some[place]])
        assert torch.equal(grad, whole[1 + place])
    with torch.no_grad():
        value = cross_entropy(*tensors, targets, low=True)
    assert not value.requires_grad and torch.equal(value, whole[0])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_no_number_stays_none(which: int) -> None:
    tensors, targets = case(40, 9, 300)
    tensors[which].view(-1)[7] = float("nan")
    value, *grads = all_of(tensors, targets)
    assert bool(value.isnan())
    assert bool(grads[1].isnan().any())


@pytest.mark.parametrize("size", [(1, 3, 20), (561, 33, 2100), (1500, 33, 300)])
def test_the_number_of_threads_changes_no_bit(size: tuple[int, int, int], threads: None) -> None:
    tensors, targets = case(*size)
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(all_of(tensors, targets))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("target", [-1, 20])
def test_a_target_beyond_the_vocabulary_is_refused(target: int) -> None:
    tensors, targets = case(3, 4, 20)
    targets[1] = target
    with pytest.raises(IndexError, match=f"target {target} "):
        cross_entropy(*tensors, targets, low=True)


def test_shapes_that_do_not_fit_are_refused() -> None:
    tensors, targets = case(3, 4, 20)
    with pytest.raises(ValueError, match="shape"):
        cross_entropy(tensors[0], tensors[1][:, :3], tensors[2], targets, low=True)
    with pytest.raises(ValueError, match="shape"):
        cross_entropy(*tensors, targets[:2], low=True)
