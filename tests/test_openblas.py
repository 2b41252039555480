"""Products by numpy's OpenBLAS: torch's own values, however matrices lie and threads are many."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from rnnnas.lm.cell import unroll as reference
from rnnnas.lm.fast import cpu_library, derived_whole, matmul, openblas
from rnnnas.lm.fast.derived import unroll
from rnnnas.lm.fast.matmul import accumulate, multiply, project
from rnnnas.lm.loss import cross_entropy, cross_entropy_reference
from rnnnas.nas.zoo import ZOO

SHAPES = [(1, 1, 1), (5, 7, 3), (64, 33, 130), (130, 33, 64), (257, 512, 31), (2, 300, 1000)]
there = openblas._gemm(torch.float64) is not None
needed = pytest.mark.skipif(not there, reason="no kernels, or no OpenBLAS beside numpy")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Makes OpenBLAS the choice for every size on any processor; the shapes that it was given."""
    shapes: list[tuple[int, ...]] = []

    def noted(a: Tensor, b: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
        shapes.append((*a.shape, b.shape[1]))
        return own(a, b, out, add=add)

    own = openblas.multiply
    monkeypatch.setattr(openblas, "multiply", noted)
    monkeypatch.setattr(openblas, "leads", lambda: True)
    monkeypatch.setattr(matmul, "SMALL_OPENBLAS", 0)
    return shapes


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def lying(matrix: Tensor, how: str) -> Tensor:
    """The same numbers: rows dense, columns dense, or rows as a part of longer ones."""
    if how == "turned":
        return matrix.t().contiguous().t()
    if how == "part":
        return torch.cat([matrix, matrix], 1)[:, : matrix.shape[1]]
    return matrix


@needed
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", ["plain", "turned", "part"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_product_and_the_sum(
    threads: None, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], how: str,
    number: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(openblas, "PART", 1)  # every product is shared out
    m, k, n = shape
    a, b = lying(rand(m, k), how), lying(rand(k, n), how)
    torch.set_num_threads(number)
    torch.testing.assert_close(openblas.multiply(a, b), a @ b, rtol=1e-12, atol=1e-12)
    wider = torch.full((m, n + 3), float("nan"), dtype=torch.float64)  # what was there is no factor
    assert openblas.usable(a, b, wider[:, :n])
    openblas.multiply(a, b, wider[:, :n])
    torch.testing.assert_close(wider[:, :n], a @ b, rtol=1e-12, atol=1e-12)
    assert wider[:, n:].isnan().all()  # nothing was written beside it
    total = rand(m, n)
    openblas.multiply(a, b, total, add=True)
    torch.testing.assert_close(total, rand(m, n) + a @ b, rtol=1e-12, atol=1e-12)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(64, 170, 400), (64, 850, 1700), (300, 700, 200)])
def test_the_number_of_threads_changes_no_product(
    threads: None, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    m, k, n = shape
    assert m * k * n > matmul.SMALL_OPENBLAS
    a, b = rand(m, k, dtype=dtype), rand(k, n, dtype=dtype)
    found = []
    for number in (1, 2, 3, 4, 5, 8):
        torch.set_num_threads(number)
        found.append(openblas.multiply(a, b))
    close = 1e-4 if dtype == torch.float32 else 1e-12  # sums of some hundred products of size 1
    for product in (found[0], found[4]):  # in 4 parts, and in up to 16
        torch.testing.assert_close(product.double(), a.double() @ b.double(), rtol=0, atol=close)
    assert all(torch.equal(found[0], other) for other in found[1:4])
    assert torch.equal(found[4], found[5])


@needed
@pytest.mark.parametrize("parts", [1, 3, 16])
def test_however_many_parts(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Fewer strips than parts, too, and a last strip that is not whole."""
    monkeypatch.setattr(openblas, "PART", 1)
    monkeypatch.setattr(openblas, "PARTS", (parts, parts))
    for m, k, n in ((3, 4, 5), (50, 4, 7), (7, 4, 250), (257, 4, 256)):
        a, b = rand(m, k), rand(k, n)
        torch.testing.assert_close(openblas.multiply(a, b), a @ b, rtol=1e-12, atol=1e-12)


def test_more_threads_than_it_has_parts_for_are_left_to_torch(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openblas, "_kind", lambda: True)
    torch.set_num_threads(openblas.MOST_THREADS)
    assert openblas.leads()
    torch.set_num_threads(openblas.MOST_THREADS + 1)
    assert not openblas.leads()


@needed
def test_what_it_does_not_take() -> None:
    a, b = rand(8, 6), rand(6, 4)
    assert openblas.usable(a, b)
    assert not openblas.usable(a.float(), b)
    assert not openblas.usable(a.bfloat16(), b.bfloat16())
    assert not openblas.usable(a[:, :1].expand(8, 6), b)  # rows of one element again and again
    assert not openblas.usable(a[:1].expand(8, 6), b)
    assert not openblas.usable(rand(8, 12)[:, ::2], b)
    assert not openblas.usable(a, b, rand(4, 8).t())
    for wrong in ((a, b.t(), None), (a, b, rand(8, 5)), (a, b, rand(9, 4))):
        with pytest.raises(ValueError, match="do not give"):
            openblas.multiply(*wrong)


@needed
def test_the_fast_cell_by_it(
    chosen: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived_whole, "suits", lambda *args, **low: False)  # as large cells
    gene = ZOO["DARTS_V2"].genotype.recurrent
    made = (rand(4, 5, 7), rand(5, 9), rand(16, 18) / 4, rand(8, 9, 18) / 3)
    found = []
    for form in (reference, unroll):
        leaves = [t.clone().requires_grad_() for t in made]
        out = form(*leaves, gene, None, None)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert (20, 7, 18) in chosen  # the input's product
    assert (5, 9, 18) in chosen  # a step's own
    assert (9, 20, 18) in chosen  # the gradient of a matrix


@needed
def test_the_loss_by_it(chosen: list[tuple[int, ...]]) -> None:
    rows = 513  # two chunks: the second adds to the gradient
    outputs, weight, bias = rand(rows, 6), rand(11, 6), rand(11)
    targets = torch.arange(rows) % 11
    found = []
    for form in (cross_entropy_reference, cross_entropy):
        leaves = [t.clone().requires_grad_() for t in (outputs, weight, bias)]
        value = form(*leaves, targets)
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert (512, 6, 11) in chosen
    assert (11, 1, 6) in chosen


@needed
def test_other_types_of_results(chosen: list[tuple[int, ...]]) -> None:
    """A product is rounded on its way into what has another type."""
    a, b = rand(8, 6), rand(6, 4)
    out = torch.empty(8, 4)
    assert multiply(a, b, out=out) is out
    torch.testing.assert_close(out, (a @ b).float(), rtol=1e-6, atol=1e-6)
    accumulate(out, a, b)
    torch.testing.assert_close(out, 2 * (a @ b).float(), rtol=1e-6, atol=1e-6)
    assert chosen == [(8, 6, 4)] * 2


@pytest.mark.parametrize("low", [False, True])
def test_gradients_of_the_inputs_product(low: bool) -> None:
    inputs, matrix = rand(3, 4, 5), rand(5, 6)
    leaves = [inputs.clone().requires_grad_(), matrix.clone().requires_grad_()]
    out = project(*leaves, low)
    gradient = rand(*out.shape)
    got = torch.autograd.grad(out, leaves, gradient)
    wanted = (gradient @ matrix.t(), torch.einsum("tbd,tbw->dw", inputs, gradient))
    close = {"rtol": 3e-2, "atol": 6e-2} if low else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(out, inputs @ matrix, **close)
    with pytest.raises(TypeError, match="factors of"):
        project(inputs.float(), matrix, low)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, **close)


@needed
def test_without_kernels_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openblas, "leads", lambda: True)
    monkeypatch.setattr(matmul, "SMALL_OPENBLAS", 0)
    monkeypatch.setattr(cpu_library, "built", lambda: cpu_library.Built(None, "of a test"))
    openblas._gemm.cache_clear()
    try:
        assert not openblas.usable(rand(8, 6), rand(6, 4))
        torch.testing.assert_close(multiply(rand(8, 6), rand(6, 4)), rand(8, 6) @ rand(6, 4))
    finally:
        openblas._gemm.cache_clear()


@needed
def test_numpy_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a product OpenBLAS has one thread; before and after it, as many as it had."""
    found = openblas._library()
    assert found is not None
    before = found.threads()
    within: list[int] = []
    own = cpu_library.function

    def noted(name: str, dtype: torch.dtype) -> Callable[..., None]:
        within.append(found.threads())
        return own(name, dtype)

    monkeypatch.setattr(cpu_library, "function", noted)
    try:
        for number in (1, 3):
            found.set_threads(number)
            openblas.multiply(rand(8, 6), rand(6, 4))
            with openblas._held():  # as when two threads multiply at once
                openblas.multiply(rand(8, 6), rand(6, 4))
                assert found.threads() == 1
            assert found.threads() == number
            with pytest.raises(ValueError, match="do not give"):
                openblas.multiply(rand(8, 6), rand(5, 4))
            assert found.threads() == number
    finally:
        found.set_threads(before)
    assert within == [1] * 4
