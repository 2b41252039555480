"""tanh near 0 and far from it: its relative error in every fast form of the cells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_torch import off
from torch import Tensor

from rnnnas.distributed import ALONE
from rnnnas.lm.cell import unroll as reference
from rnnnas.lm.fast import cpu_library, derived, derived_cuda, triton_support
from rnnnas.lm.fast.mixture_cpu import Compiled, Elementwise
from rnnnas.lm.fast.mixture_plan import start_of
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.zoo import ZOO

BOUND = 5e-7  # of the relative error, about 4 units in the last place of a float32
OPEN = 87.0  # a gate's argument at which it is 1
compiled = pytest.param(
    True,
    marks=pytest.mark.skipif(
        cpu_library.built().library is None, reason=cpu_library.built().reason
    ),
)


def arguments() -> Tensor:
    """Both signs, 1e-8 to 20, and 0; (1, B, H)."""
    sizes = torch.logspace(-8, torch.tensor(20.0).log10().item(), 2047, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), sizes, -sizes, sizes[:1]]).float()


def worst(found: Tensor, z: Tensor) -> float:
    """The largest relative error of tanh(z)."""
    exact = torch.tanh(z.double())
    error = (found.double() - exact).abs() / exact.abs().clamp_min(1e-300)
    assert bool(torch.isfinite(found).all()) and float(found[z == 0].abs().max()) == 0
    return float(error[z != 0].max())


def through_a_cell(z: Tensor) -> Tensor:
    """tanh(z) out of the first state of a derived cell whose gate is open.

    Its one node halves that state: f(0) = 0 by the identity through a gate that is half open.
    """
    hidden, streams = 64, z.numel() // 64
    inputs = torch.cat([z.view(1, streams, hidden), torch.ones(1, streams, 1)], -1)
    first = torch.zeros(2 * hidden + 1, 2 * hidden)
    first[:hidden, hidden:] = torch.eye(hidden)
    first[hidden, :hidden] = OPEN
    nodes = torch.zeros(1, hidden, 2 * hidden)
    plain = {"nodes": [[["identity", 0]]], "concat": [1]}
    gene = Genotype.from_plain({RECURRENT: plain}).recurrent
    out = derived.unroll(inputs, torch.zeros(streams, hidden), first, nodes, gene, None, None)
    return 2 * out.detach().reshape(z.shape)


@pytest.mark.parametrize("kernel", [compiled, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_of_a_derived_cell(kernel: bool, gradients: bool) -> None:
    z = arguments()
    with off(not kernel), torch.set_grad_enabled(gradients):
        assert worst(through_a_cell(z), z) < BOUND
        few = z[::8]  # of few streams: another kernel
        assert worst(through_a_cell(few), few) < BOUND


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_of_the_kernels_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    monkeypatch.setattr(triton_support, "usable", lambda *tensors: True)
    if not torch.cuda.is_available():  # they are interpreted
        monkeypatch.setattr(derived_cuda, "FLAT", {"ROWS": 16, "UNITS": 64})
    z = arguments()
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with place:
        assert worst(through_a_cell(z.to(place)).cpu(), z) < BOUND


@pytest.mark.parametrize("form", [Elementwise, pytest.param(Compiled, marks=compiled.marks)])
def test_under_a_mixture(form: type[Elementwise]) -> None:
    z = arguments().view(-1, 64)
    h = torch.zeros_like(z)
    work = form(h, [start_of(h)], 64, h.new_ones(()), ALONE)
    total = torch.empty_like(h)
    product = torch.cat([torch.full_like(z, OPEN), z], -1)
    work.mix(0, product.unsqueeze(0), h.unsqueeze(0), total)
    work.close()
    assert worst(total.flatten(), z.flatten()) < BOUND


@pytest.mark.parametrize("name", ["DARTS_V1", "ENAS"])
@pytest.mark.parametrize("kernel", [compiled, False])
def test_gradients_of_a_fresh_cell_are_as_near_as_torchs(name: str, kernel: bool) -> None:
    """Fresh weights lie in ±0.04: the arguments of every tanh are small."""
    gene = ZOO[name].genotype.recurrent
    draws = torch.Generator().manual_seed(1)
    hidden, streams, steps = 32, 8, 10

    def weights(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64).uniform_(-0.04, 0.04, generator=draws)

    made = (
        weights(steps, streams, hidden), torch.zeros(streams, hidden, dtype=torch.float64),
        weights(2 * hidden, 2 * hidden), weights(len(gene.nodes), hidden, 2 * hidden),
    )  # fmt: skip
    gradient = torch.randn(steps, streams, hidden, generator=draws, dtype=torch.float64)

    def gradients(form: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in made]
        out = form(*leaves, gene, None, None)
        return list(torch.autograd.grad(out, leaves, gradient.to(dtype)))

    # Of the same float32 numbers.
    made = tuple(t.float().double() for t in made)
    gradient = gradient.float().double()
    exact = gradients(reference, torch.float64)
    usual = gradients(reference, torch.float32)
    with off(not kernel):
        found = gradients(derived.unroll, torch.float32)
    for one, other, wanted in zip(found, usual, exact, strict=True):
        errors = [float((t.double() - wanted).norm() / wanted.norm()) for t in (one, other)]
        assert errors[0] < 2 * errors[1] + 1e-6
