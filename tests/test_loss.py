"""The chunked loss against its definition, gradients too; the penalties against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.lm import loss as losses
from rnnnas.lm.loss import PenaltyConfig, cross_entropy, cross_entropy_reference, penalty

DOUBLE = torch.float64


def case(rows: int, seed: int) -> tuple[list[Tensor], Tensor]:
    draws = torch.Generator().manual_seed(seed)
    leaves = [
        torch.randn(*shape, dtype=DOUBLE, generator=draws).requires_grad_()
        for shape in ((rows, 6), (13, 6), (13,))
    ]
    return leaves, torch.randint(13, (rows,), generator=draws)


@pytest.mark.parametrize("rows", [1, 4, 5, 17])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradients(rows: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", 4)  # several chunks, the last one short
    leaves, targets = case(rows, seed)
    values = [f(*leaves, targets) for f in (cross_entropy_reference, cross_entropy)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(3.0 * values[0], leaves)
    for grad, wanted in zip(torch.autograd.grad(3.0 * values[1], leaves), expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-12)


def test_gradients_are_formed_only_where_wanted() -> None:
    leaves, targets = case(5, 0)
    for wanted in range(3):
        some = [leaf if i == wanted else leaf.detach() for i, leaf in enumerate(leaves)]
        (grad,) = torch.autograd.grad(cross_entropy(*some, targets), [some[wanted]])
        (expected,) = torch.autograd.grad(cross_entropy_reference(*leaves, targets), leaves[wanted])
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert not cross_entropy(*leaves, targets).requires_grad


def test_a_second_derivative_is_refused_not_wrong() -> None:
    leaves, targets = case(5, 0)
    (grad, *_) = torch.autograd.grad(cross_entropy(*leaves, targets), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|twice|does not require grad"):
        torch.autograd.grad(grad.square().sum(), leaves)


def test_large_logits_do_not_overflow() -> None:
    outputs = torch.full((3, 2), 1e3, dtype=DOUBLE)
    weight = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]], dtype=DOUBLE)
    value = cross_entropy(outputs, weight, torch.zeros(3, dtype=DOUBLE), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(value, torch.tensor(3000.0 / 3, dtype=DOUBLE))


def test_penalties_by_their_formulas() -> None:
    raw, dropped = torch.randn(4, 2, 3, dtype=DOUBLE), torch.randn(4, 2, 3, dtype=DOUBLE)
    tar = sum(
        float((raw[t + 1, b, k] - raw[t, b, k]) ** 2)
        for t in range(3) for b in range(2) for k in range(3)
    ) / 18  # fmt: skip
    ar = float((dropped**2).sum()) / 24
    value = float(penalty(PenaltyConfig(ar=0.3, tar=0.7), raw, dropped))
    assert value == pytest.approx(0.3 * ar + 0.7 * tar, rel=1e-12)
    assert float(penalty(PenaltyConfig(), raw, dropped)) == 0.0
    # A window of one step has no differences: nothing, not nan.
    assert float(penalty(PenaltyConfig(tar=1.0), raw[:1], dropped[:1])) == 0.0


def test_negative_penalties_are_refused() -> None:
    with pytest.raises(UsageError, match="penalty.tar"):
        PenaltyConfig(tar=-1.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bfloat16_products_are_close_and_nothing_else_is_rounded(seed: int) -> None:
    leaves, targets = case(700, seed)
    single = [leaf.detach().float().requires_grad_() for leaf in leaves]
    value = cross_entropy(*single, targets, low=True)
    expected = cross_entropy_reference(*leaves, targets)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=5e-3)
    grads = torch.autograd.grad(value, single)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, leaves), strict=True):
        assert grad.dtype == torch.float32
        assert float((grad - wanted).norm() / wanted.norm()) < 1e-2
    # The bias takes part in no product: its gradient keeps the sum of a softmax to float32.
    assert abs(float(grads[2].sum())) < 1e-6
