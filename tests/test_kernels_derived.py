"""The compiled kernels of a derived cell in training: the same values as the readable cell."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from plain_torch import without_kernels
from torch import Tensor

from rnnnas.lm.cell import unroll as reference
from rnnnas.lm.fast import cpu_library, derived, derived_cpu, derived_whole
from rnnnas.lm.fast.buffers import WORKSPACE, Workspace
from rnnnas.lm.fast.derived import unroll
from rnnnas.nas.genotype import RECURRENT, CellGene, Genotype
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.zoo import ZOO

pytestmark = pytest.mark.skipif(
    cpu_library.built().library is None, reason=cpu_library.built().reason
)


def case(
    seed: int, dtype: torch.dtype, *, streams: int = 5, hidden: int = 6, steps: int = 3,
    nodes: int = 5, mask: bool = True,
) -> tuple[Any, ...]:  # fmt: skip
    """inputs, h, first, nodes, a random cell with a concat of its own, masks of x and h."""
    draws, rng = torch.Generator().manual_seed(seed), random.Random(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64).to(dtype)

    cell = recurrent_space(nodes).sample(rng)
    concat = tuple(sorted(rng.sample(range(1, nodes + 1), rng.randint(1, nodes))))
    masks = (rand(streams, 4).abs(), rand(streams, hidden).abs()) if mask else (None, None)
    scale = hidden**-0.5
    return (
        rand(steps, streams, 4), rand(streams, hidden), rand(4 + hidden, 2 * hidden),
        rand(nodes, hidden, 2 * hidden) * 2 * scale, replace(cell, concat=concat), *masks,
    )  # fmt: skip


def gradients(form: Any, made: tuple[Any, ...], **options: Any) -> list[Tensor]:
    """The outputs and the gradients of all tensors, under a fixed gradient of the outputs."""
    leaves = [t.clone().requires_grad_() for t in made[:4]]
    out = form(*leaves, *made[4:], **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.fixture(autouse=True, params=["whole", "untiled", "stepwise"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The form that runs where there are kernels; "untiled": whole, without tiles of bfloat16."""
    monkeypatch.setattr(derived_whole, "suits", lambda *args, **low: request.param != "stepwise")
    if request.param == "untiled":
        monkeypatch.setattr(derived_whole, "tiled", lambda: False)
    form = "CompiledUnroll" if request.param != "stepwise" else "WholeUnroll"
    monkeypatch.setattr(derived if form == "CompiledUnroll" else derived_whole, form, None)
    return str(request.param)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where torch's operations run instead of the kernels."""
    monkeypatch.setattr(derived, "_DerivedUnroll", None)
    yield


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def one_op(op: str) -> CellGene:
    """A chain, a fork and a concat that leaves states out, all of one operation."""
    nodes = [[[op, source]] for source in (0, 0, 1, 1, 1, 2)]
    plain = {"nodes": nodes, "concat": [2, 4, 6]}
    return Genotype.from_plain({RECURRENT: plain}).recurrent


SIZES = [
    {}, {"mask": False}, {"streams": 1}, {"streams": 1, "hidden": 1, "nodes": 1, "steps": 1},
    {"streams": 37, "hidden": 43, "nodes": 8}, {"streams": 3, "hidden": 16, "mask": False},
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(6))
def test_values_and_every_gradient(used: None, size: dict[str, Any], seed: int) -> None:
    made = case(seed, torch.float64, **size)
    for wanted, got in zip(gradients(reference, made), gradients(unroll, made), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", ["tanh", "relu", "sigmoid", "identity"])
@pytest.mark.parametrize("masks", [(True, False), (False, True)])
def test_every_operation_alone(used: None, op: str, masks: tuple[bool, bool]) -> None:
    made = case(1, torch.float64, nodes=6, hidden=11)
    own = [m if there else None for m, there in zip(made[5:], masks, strict=True)]
    made = (*made[:4], one_op(op), *own)
    for wanted, got in zip(gradients(reference, made), gradients(unroll, made), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["DARTS_V2", "ENAS", "NAO"])
def test_without_kernels_the_values_are_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Torch's operations are the form of a device, and of a machine without a compiler."""
    gene = ZOO[name].genotype.recurrent
    made = case(2, torch.float64, nodes=len(gene.nodes), hidden=9)
    made = (*made[:4], gene, *made[5:])
    wanted, compiled = gradients(reference, made), gradients(unroll, made)
    without_kernels(monkeypatch)
    monkeypatch.setattr(derived, "CompiledUnroll", None)
    monkeypatch.setattr(derived_whole, "WholeUnroll", None)
    for exact, got, other in zip(wanted, compiled, gradients(unroll, made), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_in_single_precision_kernels_are_as_near_as_torch(
    monkeypatch: pytest.MonkeyPatch, size: dict[str, Any]
) -> None:
    made, exact = (case(4, dtype, **size) for dtype in (torch.float32, torch.float64))
    compiled = gradients(unroll, made)
    without_kernels(monkeypatch)
    plain = gradients(unroll, made)
    for wanted, got, other in zip(gradients(reference, exact), compiled, plain, strict=True):
        error, usual = (float((t.double() - wanted).norm()) for t in (got, other))
        assert error <= 3 * usual + 1e-6 * float(wanted.norm())


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("seed", [5, 6])
def test_rounded_products_change_kernels_no_more_than_torch(
    monkeypatch: pytest.MonkeyPatch, mask: bool, seed: int
) -> None:
    made = case(seed, torch.float32, streams=24, hidden=64, mask=mask)
    exact, compiled = gradients(unroll, made), gradients(unroll, made, low=True)
    without_kernels(monkeypatch)
    plain = gradients(unroll, made, low=True)
    for wanted, got, other in zip(exact, compiled, plain, strict=True):
        usual = float((other - wanted).norm())
        assert 0 < float((got - wanted).norm()) < 1.2 * usual
        assert float((got - other).norm()) < 0.5 * usual, "they round in the same places"


def test_tensors_need_not_be_dense(used: None) -> None:
    made = case(9, torch.float64, streams=6, hidden=4)
    wanted = gradients(unroll, made)
    leaves = [t.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for t in made[:4]]
    assert not any(t.is_contiguous() for t in leaves)
    masks = [m.t().contiguous().t() for m in made[5:]]
    out = unroll(*leaves, made[4], *masks)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    got = [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]
    for one, other in zip(wanted, got, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("op", ["tanh", "relu", "sigmoid", "identity"])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_number_stays_none(used: None, op: str, place: int, low: bool) -> None:
    """In the gate's half of a product, or in the candidate's."""
    made = case(6, torch.float32, hidden=4, nodes=6)
    made = (*made[:4], one_op(op), *made[5:])
    made[3][0, 0, 4 * place] = torch.nan
    out, *rest = gradients(unroll, made, low=low)
    assert all(bool(found.isnan().any()) for found in (out, *rest))
    made[3].zero_()
    made[5].fill_(torch.nan)  # it reaches the first state alone
    assert bool(gradients(unroll, made, low=low)[0].isnan().all())


@pytest.mark.parametrize("op", ["tanh", "relu", "sigmoid", "identity"])
def test_saturated_gates_and_large_candidates_stay_finite(used: None, op: str) -> None:
    """Nothing normalises a derived cell: values are compared where the operation bounds them."""
    made = case(7, torch.float32, hidden=4, nodes=6)
    for scale in (1e2, 1e4, 1e8):
        large = (*made[:2], made[2] * scale, made[3] * scale, one_op(op), *made[5:])
        if op in ("relu", "identity"):  # one step, or they would pass the largest float
            large = (made[0][:1], made[1], large[2], made[3], *large[4:])
        exact = (t.double() if isinstance(t, Tensor) else t for t in large)
        got, *rest = gradients(unroll, large)
        assert all(bool(found.isfinite().all()) for found in (got, *rest))
        if op in ("tanh", "sigmoid"):
            wanted = gradients(reference, tuple(exact))[0]
            torch.testing.assert_close(got.double(), wanted, rtol=2e-3, atol=2e-3)


def test_the_number_of_threads_changes_nothing(used: None, threads: None) -> None:
    made = case(8, torch.float64, streams=37, hidden=70, nodes=8)
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(gradients(unroll, made))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("wanted", range(4))
def test_one_gradient_alone(used: None, wanted: int) -> None:
    made = case(10, torch.float64)
    results = []
    for form in (reference, unroll):
        leaves = [t.clone() for t in made[:4]]
        leaves[wanted].requires_grad_()
        out = form(*leaves, *made[4:])
        results.append(torch.autograd.grad(out.square().sum(), leaves[wanted])[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_shapes_that_do_not_fit_are_refused(used: None) -> None:
    """A kernel would read beyond the end."""
    made = case(11, torch.float64)
    for place in range(4):
        for cut in (0, -1):
            wrong = list(made)
            wrong[place] = made[place].narrow(cut, 0, made[place].shape[cut] - 1)
            if (place, cut) == (0, 0):
                continue  # one step less is no mistake
            with pytest.raises((RuntimeError, ValueError)):
                gradients(unroll, tuple(wrong))


def test_it_keeps_less_than_torchs_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(12, torch.float32, streams=8, hidden=16, steps=20)
    held = []
    for plain in (False, True):
        workspace = Workspace()
        for module in (derived, derived_cpu, derived_whole):
            monkeypatch.setattr(module, "WORKSPACE", workspace)
        if plain:
            without_kernels(monkeypatch)
        gradients(unroll, made)
        held.append(workspace.held())
    assert 0 < held[0] < 0.8 * held[1]
    assert WORKSPACE is not workspace
