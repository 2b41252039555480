"""The mixture of softmaxes against its definition, gradients too, and what it keeps in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rnnnas.lm import loss, softmaxes
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.genotype import Genotype
from rnnnas.types import Batch

DOUBLE = torch.float64
H, D, V = 6, 5, 13
CELL = Genotype.from_text("tanh0 relu1").recurrent


def case(rows: int, count: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """outputs, projections, prior, weight, bias; targets."""
    draws = torch.Generator().manual_seed(seed)
    shapes = [(rows, H), (count, H, D), (H, count), (V, D), (V,)]
    leaves = [
        torch.randn(shape, dtype=DOUBLE, generator=draws).requires_grad_() for shape in shapes
    ]
    return leaves, torch.randint(V, (rows,), generator=draws)


def definition(leaves: list[Tensor], targets: Tensor) -> Tensor:
    """Row by row, softmax by softmax: p = Σ_k π_k softmax(W tanh(P_k h) + b)."""
    outputs, projections, prior, weight, bias = leaves
    nats = torch.zeros((), dtype=DOUBLE)
    for h, target in zip(outputs, targets, strict=True):
        shares = torch.exp(h @ prior)
        shares = shares / shares.sum()
        chance = torch.zeros((), dtype=DOUBLE)
        for share, projection in zip(shares, projections, strict=True):
            words = torch.exp(torch.tanh(h @ projection) @ weight.T + bias)
            chance = chance + share * words[target] / words.sum()
        nats = nats - torch.log(chance)
    return nats / len(targets)


@pytest.mark.parametrize("form", ["cross_entropy", "cross_entropy_reference"])
@pytest.mark.parametrize(("rows", "count"), [(1, 2), (7, 3), (9, 2), (4, 9), (5, 1)])
def test_value_and_gradients(
    form: str, rows: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK", 8)  # several chunks, the last one short; one row a chunk
    leaves, targets = case(rows, count, rows + count)
    value = getattr(softmaxes, form)(*leaves, targets)
    wanted = definition(leaves, targets)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    grads = torch.autograd.grad(3 * value, leaves)
    expected = torch.autograd.grad(3 * wanted, leaves)
    for grad, right, leaf in zip(grads, expected, leaves, strict=True):
        assert grad.shape == leaf.shape
        torch.testing.assert_close(grad, right, rtol=1e-9, atol=1e-13)


def test_probabilities_add_up_to_one() -> None:
    leaves, _ = case(4, 3)
    logs = softmaxes.log_probabilities(*leaves)
    assert logs.shape == (4, V)
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(4, dtype=DOUBLE))
    cube = softmaxes.log_probabilities(leaves[0].view(2, 2, H), *leaves[1:])
    torch.testing.assert_close(cube.view(4, V), logs)


@pytest.mark.parametrize("size", [1e3, 1e5])
def test_large_scores_do_not_overflow(size: float) -> None:
    """One softmax gives the target nothing that a float can hold; the other decides."""
    outputs = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    projections = torch.zeros(2, 2, 1, dtype=DOUBLE)
    projections[:, 0, 0] = torch.tensor([40.0, -40.0], dtype=DOUBLE)  # tanh: 1 and -1
    prior = torch.tensor([[0.0, -size], [0.0, 0.0]], dtype=DOUBLE)
    weight = torch.tensor([[size], [-size]], dtype=DOUBLE)
    leaves = [leaf.requires_grad_() for leaf in (outputs, projections, prior, weight)]
    bias, target = torch.zeros(2, dtype=DOUBLE), torch.tensor([1])
    # log(e^0 · e^(-2 size) + e^(-size) · e^0) = -size
    value = softmaxes.cross_entropy(*leaves, bias, target)
    torch.testing.assert_close(value, torch.tensor(size, dtype=DOUBLE))
    for grad in torch.autograd.grad(value, leaves):
        assert bool(torch.isfinite(grad).all())


def test_without_gradients_none_are_formed() -> None:
    leaves, targets = case(5, 2)
    with torch.no_grad():
        value = softmaxes.cross_entropy(*leaves, targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, definition(leaves, targets).detach())
    frozen = softmaxes.cross_entropy(*(leaf.detach() for leaf in leaves), targets)
    assert not frozen.requires_grad
    some = [leaves[0], *(leaf.detach() for leaf in leaves[1:])]
    (grad,) = torch.autograd.grad(softmaxes.cross_entropy(*some, targets), [leaves[0]])
    (wanted,) = torch.autograd.grad(definition(leaves, targets), [leaves[0]])
    torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-13)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    leaves, targets = case(5, 2)
    (grad, *_) = torch.autograd.grad(
        softmaxes.cross_entropy(*leaves, targets), leaves, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable|twice|does not require grad"):
        torch.autograd.grad(grad.square().sum(), leaves)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gave, in numbers of 4 bytes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.nbytes // 4)
        return result


@pytest.mark.parametrize("count", [1, 4])
def test_no_tensor_over_all_targets_and_words_is_kept_or_made(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK", 8)
    steps, streams, hidden, vocabulary = 10, 6, 4, 200
    net = RecurrentLM(
        ModelConfig(hidden=hidden, softmaxes=count), vocabulary, CELL,
        noise=NoiseConfig(dropout=0.5), penalty=PenaltyConfig(tar=1.0),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    ids = torch.randint(vocabulary, (steps + 1, streams))
    batch = Batch(ids[:-1], ids[1:])
    noise = net.noise(batch, torch.Generator().manual_seed(1))
    WORKSPACE.clear()  # a larger buffer of an earlier test would serve as well
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(batch, None, {}, noise).objective.backward()
    whole = steps * streams * vocabulary
    # What is kept: the outputs, and the gradient of the decoder's matrix.
    assert max(kept) == max(steps * streams, vocabulary) * hidden < whole / 4
    # Nothing that ever lives is larger than the logits of one chunk.
    assert largest.numbers <= 8 * vocabulary < whole / 4
    reference = RecurrentLM(
        ModelConfig(hidden=hidden, softmaxes=count, path="reference"), vocabulary, CELL,
        noise=NoiseConfig(), penalty=PenaltyConfig(), generator=torch.Generator(),
    )  # fmt: skip
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        reference(batch, None, {}, noise)
    assert max(kept) >= whole, "the check would show it"


def test_one_softmax_has_the_parameters_it_always_had() -> None:
    sizes = {}
    for count in (1, 2, 15):
        net = RecurrentLM(
            ModelConfig(hidden=7, softmaxes=count), 20, CELL,
            noise=NoiseConfig(), penalty=PenaltyConfig(),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        sizes[count] = sum(p.numel() for p in net.parameters())
        state = net.state_dict()
        assert set(state) - {"embedding", "bias", "first", "nodes"} == (
            {"projections", "prior"} if count > 1 else set()
        )
        if count == 1:
            plain = state
        assert all(torch.equal(value, state[name]) for name, value in plain.items())
    assert sizes[2] - sizes[1] == 2 * (7 * 7 + 7)
    assert sizes[15] - sizes[1] == 15 * (7 * 7 + 7)
