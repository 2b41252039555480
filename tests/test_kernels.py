"""The compiled kernels: the same values as torch's operations, and what happens without them."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_torch import without_kernels
from torch import Tensor

from rnnnas.cli.common import say_kernels
from rnnnas.lm.cell import unroll as reference
from rnnnas.lm.fast import cpu_library, derived, derived_whole, matmul, mixture, mixture_whole
from rnnnas.lm.fast import triton_support as devices
from rnnnas.lm.fast.matmul import SMALL, accumulate, multiply
from rnnnas.lm.fast.mixture import unroll
from rnnnas.lm.loss import cross_entropy, cross_entropy_reference
from rnnnas.lm.search_cell import unroll_reference
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.zoo import ZOO

needed = pytest.mark.skipif(cpu_library.built().library is None, reason=cpu_library.built().reason)


def cell(
    seed: int, dtype: torch.dtype, *, streams: int = 5, hidden: int = 6, partial: int = 1,
    steps: int = 3, nodes: int = 4, mask: bool = True,
) -> tuple[Any, ...]:  # fmt: skip
    draws = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws).to(dtype)

    space, units = recurrent_space(nodes), hidden // partial
    mixture = rand(len(space.edges), 5).softmax(-1)
    masks = (rand(streams, hidden).abs(), rand(streams, hidden).abs()) if mask else (None, None)
    return (
        rand(steps, streams, hidden), rand(streams, hidden), rand(2 * hidden, 2 * hidden),
        rand(nodes, units, 2 * units), space, mixture, *masks,
    )  # fmt: skip


def gradients(form: Any, made: tuple[Any, ...], **options: Any) -> list[Tensor]:
    """The outputs and the gradients of all tensors, under a fixed gradient of the outputs."""
    leaves = [t.clone().requires_grad_() for t in (*made[:4], made[5])]
    inputs, h, first, nodes, mixture = leaves
    out = form(inputs, h, first, nodes, made[4], mixture, *made[6:], **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["whole", "untiled", "stepwise"])
def forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How kernels compute a window: in one call, the same without tiles, or step by step."""
    monkeypatch.setattr(mixture_whole, "suits", lambda *args, **low: request.param != "stepwise")
    if request.param == "untiled":
        monkeypatch.setattr(mixture_whole, "tiled", lambda: False)
    return str(request.param)


SIZES = [
    {}, {"mask": False}, {"streams": 37, "hidden": 150}, {"hidden": 8, "partial": 4},
    {"streams": 33, "hidden": 132, "partial": 2}, {"nodes": 1}, {"streams": 2, "hidden": 1},
]  # fmt: skip


@needed
@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_and_without_kernels_the_cell_is_the_reference(
    monkeypatch: pytest.MonkeyPatch, size: dict[str, Any], seed: int
) -> None:
    made = cell(seed, torch.float64, **size)
    paths = None if seed < 3 else tuple((e, 1 + e % 4) for e in range(len(made[4].edges)))
    expected = gradients(unroll_reference, made, paths=paths)
    compiled = gradients(unroll, made, paths=paths)
    without_kernels(monkeypatch)
    plain = gradients(unroll, made, paths=paths)
    for wanted, got, other in zip(expected, compiled, plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other, wanted, rtol=1e-9, atol=1e-9)
    assert any(not torch.equal(a, b) for a, b in zip(compiled, plain, strict=True)) or not size


@needed
@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("size", SIZES)
def test_in_single_precision_kernels_are_as_near_as_torch(
    monkeypatch: pytest.MonkeyPatch, size: dict[str, Any]
) -> None:
    made = cell(4, torch.float32, **size)
    exact = gradients(unroll, cell(4, torch.float64, **size))
    compiled = gradients(unroll, made)
    without_kernels(monkeypatch)
    plain = gradients(unroll, made)
    for wanted, got, other in zip(exact, compiled, plain, strict=True):
        error, usual = (float((t.double() - wanted).norm()) for t in (got, other))
        # Of two streams gradients are what is left of numbers around 1, whose last bit is 1e-7.
        assert error <= 3 * usual + 1e-6 * float(wanted.norm()) + 1e-8


@needed
@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("partial", [1, 2])
def test_rounded_products_change_kernels_no_more_than_torch(
    monkeypatch: pytest.MonkeyPatch, partial: int
) -> None:
    made = cell(5, torch.float32, streams=24, hidden=64, partial=partial)
    exact = gradients(unroll, made)
    compiled = gradients(unroll, made, low=True)
    without_kernels(monkeypatch)
    plain = gradients(unroll, made, low=True)
    for wanted, got, other in zip(exact, compiled, plain, strict=True):
        usual = float((other - wanted).norm())
        assert 0 < float((got - wanted).norm()) < 1.2 * usual
        assert float((got - other).norm()) < 0.3 * usual, "they round in the same places"


@needed
def test_cells_up_to_a_size_are_computed_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (cell(5, torch.float32, hidden=hidden, steps=1) for hidden in (20, 450))
    with pytest.MonkeyPatch.context() as apart:
        apart.setattr(mixture, "_MixedUnroll", None)
        gradients(unroll, small)
        with pytest.raises(AttributeError):  # nor are those of which a part is computed
            gradients(unroll, cell(5, torch.float32, hidden=20, partial=2))
    monkeypatch.setattr(mixture, "WholeMixed", None)
    gradients(unroll, large)


@needed
@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("streams", [1, 3, 31, 48, 65])
def test_rounded_windows_of_any_shape(streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cell(6, torch.float32, streams=streams, hidden=50, steps=2, nodes=5)
    paths = tuple((e, 1 + e % 4) for e in range(len(made[4].edges)) if e % 4 != 1)
    compiled = gradients(unroll, made, low=True, paths=paths)
    without_kernels(monkeypatch)
    plain = gradients(unroll, made, low=True, paths=paths)
    for got, other in zip(compiled, plain, strict=True):
        assert float((got - other).norm()) <= 0.05 * float(other.norm()) + 1e-4


@needed
@pytest.mark.usefixtures("forms")
def test_tensors_need_not_be_dense() -> None:
    made = cell(9, torch.float64, streams=6, hidden=4)
    wanted = gradients(unroll, made)
    spread = tuple(
        t.transpose(-1, -2).contiguous().transpose(-1, -2) if isinstance(t, Tensor) else t
        for t in made
    )
    leaves = [t.detach().requires_grad_() for t in (*spread[:4], spread[5])]
    assert not leaves[1].is_contiguous()
    inputs, h, first, nodes, mixture = leaves
    out = unroll(inputs, h, first, nodes, made[4], mixture, *spread[6:])
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    # The gradient that comes back is not dense either.
    weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    got = [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]
    for one, other in zip(wanted, got, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@needed
def test_a_loss_that_is_lost_stays_lost() -> None:
    """No value that is not a number becomes one on the way."""
    for place in (0, 1):  # in the gate's half of a product, in the candidate's
        made = cell(6, torch.float32, hidden=4)
        made[3][0, 0, 4 * place] = torch.nan
        out, *rest = gradients(unroll, made)
        assert bool(out.isnan().any()) and all(bool(g.isnan().any()) for g in rest)
    logits = torch.zeros(3, 2)
    logits[1, 0] = torch.nan
    weight = torch.ones(7, 2)
    value = cross_entropy(logits, weight, torch.zeros(7), torch.tensor([1, 2, 3]))
    assert bool(value.isnan())


@needed
@pytest.mark.usefixtures("forms")
def test_saturated_gates_and_large_candidates_stay_finite() -> None:
    made = cell(7, torch.float32, hidden=4)
    for scale in (1e2, 1e4, 1e8):
        large = (*made[:2], made[2] * scale, made[3] * scale, *made[4:])
        exact = (t.double() if isinstance(t, Tensor) else t for t in large)
        got, *rest = gradients(unroll, large)
        wanted = gradients(unroll_reference, tuple(exact))[0]
        torch.testing.assert_close(got.double(), wanted, rtol=2e-3, atol=2e-3)
        assert all(bool(gradient.isfinite().all()) for gradient in rest)


@needed
@pytest.mark.usefixtures("forms")
def test_the_number_of_threads_changes_no_sum(threads: None) -> None:
    made = cell(8, torch.float64, streams=37, hidden=70)
    rows = torch.randn(70, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(90, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bias = torch.zeros(90, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(70)
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        nats = cross_entropy(rows, weight, bias, targets)
        bias_gradient = torch.autograd.grad(nats, bias)
        found.append([*gradients(unroll, made), nats.detach(), *bias_gradient])
        found[-1] += gradients(unroll, cell(8, torch.float32, streams=37, hidden=70), low=True)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@needed
@pytest.mark.parametrize("rows", [1, 17, 512, 700])
@pytest.mark.parametrize("kind", ["float64", "float32", "bfloat16"])
def test_the_loss_and_its_gradients(monkeypatch: pytest.MonkeyPatch, rows: int, kind: str) -> None:
    draws = torch.Generator().manual_seed(rows)
    low = kind == "bfloat16"
    dtype = torch.float64 if kind == "float64" else torch.float32
    outputs, weight, bias = (
        torch.randn(*shape, generator=draws).to(dtype) for shape in ((rows, 9), (83, 9), (83,))
    )
    targets = torch.randint(83, (rows,), generator=draws)

    def all_of(form: Any, *tensors: Tensor, **options: Any) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        value = form(*leaves, targets, **options)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    exact = all_of(cross_entropy_reference, outputs.double(), weight.double(), bias.double())
    compiled = all_of(cross_entropy, outputs, weight, bias, low=low)
    without_kernels(monkeypatch)
    plain = all_of(cross_entropy, outputs, weight, bias, low=low)
    for wanted, got, other in zip(exact, compiled, plain, strict=True):
        if kind != "float64":
            usual = float((other - wanted).norm())
            # Few rows are rounded to one side by chance: by half of bfloat16's last digit.
            least = 2**-8 * float(wanted.norm()) if low else 1e-6
            assert float((got - wanted).norm()) <= 1.3 * usual + least
        else:
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(other, wanted, rtol=1e-10, atol=1e-10)


@needed
def test_what_kernels_cannot_take_is_torchs_to_refuse_or_to_widen() -> None:
    """A kernel would read another type's numbers, or beyond the end."""
    rows, weight, bias = torch.ones(2, 3), torch.ones(5, 3), torch.ones(5)
    targets = torch.tensor([0, 4])
    with pytest.raises((RuntimeError, ValueError)):
        cross_entropy(rows, weight, torch.ones(4), targets)
    with pytest.raises((RuntimeError, ValueError)):
        cross_entropy(rows.double(), weight, bias, targets)
    twice = cross_entropy(rows.double(), weight.double(), bias.double(), targets, low=True)
    torch.testing.assert_close(float(twice), math.log(5), rtol=1e-2, atol=0)
    gene, cell_weights = ZOO["DARTS_V2"].genotype.recurrent, torch.ones(8, 3, 6)
    with torch.no_grad():
        for h, first, nodes in (
            (torch.ones(1, 3).double(), torch.ones(6, 6), cell_weights),
            (torch.ones(1, 3), torch.ones(6, 6), torch.ones(8, 2, 4)),
            (torch.ones(1, 2), torch.ones(6, 6), cell_weights),
        ):
            with pytest.raises((RuntimeError, ValueError)):
                derived.unroll(torch.ones(2, 1, 3), h, first, nodes, gene, None, None)
    made = cell(10, torch.float64)
    one = (*made[:7], made[7][:1])  # a mask for all streams
    for wanted, got in zip(gradients(unroll_reference, one), gradients(unroll, one), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert not cpu_library.usable(rows, weight.double()) and not cpu_library.usable(
        rows.double(), low=True
    )


@needed
@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_beyond_the_vocabulary_is_refused(target: int) -> None:
    with pytest.raises(IndexError, match=f"target {target}"):
        cross_entropy(torch.ones(2, 3), torch.ones(5, 3), torch.ones(5), torch.tensor([0, target]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("wide_vectors", [True, False])
def test_products(
    dtype: torch.dtype, small: bool, wide_vectors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever library, wherever the factors lie; sums are added to what is there."""
    monkeypatch.setattr(matmul, "_WIDE", wide_vectors)
    monkeypatch.setattr(matmul, "_FOREIGN", True)
    draws = torch.Generator().manual_seed(3)
    m, k, n = (4, 5, 6) if small else (200, 150, 130)
    assert (m * k * n > SMALL) is not small
    a, b = (torch.randn(*s, generator=draws).to(dtype) for s in ((m, k), (k, n)))
    exact = a.double() @ b.double()
    bound = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.2}[dtype]
    out = torch.empty(m, n, dtype=dtype)
    wide = torch.empty(m, n, dtype=torch.float64)
    for left, right in ((a, b), (a.t().contiguous().t(), b), (a, b.t().contiguous().t())):
        assert multiply(left, right, out=out) is out
        assert multiply(left, right, out=wide) is wide
        for got in (multiply(left, right), out, wide):
            assert float((got.double() - exact).abs().max()) < bound * k**0.5
        for total in (torch.ones_like(out), torch.ones_like(wide)):
            accumulate(total, left, right)
            assert float((total.double() - 1 - exact).abs().max()) < bound * k**0.5


def note(tmp_path: Path, **environment: str) -> str:
    """The reason that a process with this environment gives for having no kernels."""
    code = "from rnnnas.lm.fast.cpu_library import built; print(built().reason)"
    path = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **path, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.slow
@needed
def test_kernels_are_compiled_once_and_their_absence_is_explained(tmp_path: Path) -> None:
    assert note(tmp_path) == ""
    (library,) = (tmp_path / "rnnnas").glob("*.so")
    written = library.stat().st_mtime_ns
    assert note(tmp_path) == "" and library.stat().st_mtime_ns == written
    other = tmp_path / "other"
    assert "says so" in note(other, RNNNAS_KERNELS="off") and not other.exists()
    assert "/no-such-compiler" in note(other, CXX="/no-such-compiler")
    assert note(tmp_path, CXX="env g++") == "", "a compiler may have words before it"
    library.write_bytes(b"not a library")
    assert note(tmp_path) == "", "what cannot be loaded is made anew"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho it does not compile >&2\nexit 1\n")
    broken.chmod(0o755)
    assert note(other, CXX=str(broken)) == "it does not compile"
    nothing = tmp_path / "empty"
    nothing.mkdir()
    assert "no C++ compiler was found" in note(other, PATH=str(nothing), CXX="")


@needed
@pytest.mark.parametrize("streams", [1, 2, 10])
@pytest.mark.parametrize("seed", range(6))
def test_an_evaluation_is_the_reference(streams: int, seed: int, threads: None) -> None:
    rng = random.Random(seed)
    hidden, count = rng.choice([1, 5, 8, 19]), rng.randint(1, 8)
    ops = ("tanh", "relu", "sigmoid", "identity")
    nodes = tuple(((rng.choice(ops), rng.randint(0, i)),) for i in range(count))
    concat = tuple(sorted(rng.sample(range(1, count + 1), rng.randint(1, count))))
    plain = {"nodes": [[list(edge) for edge in node] for node in nodes], "concat": list(concat)}
    gene = Genotype.from_plain({RECURRENT: plain}).recurrent
    draws = torch.Generator().manual_seed(seed)
    x, h, first, matrices = (
        torch.randn(*shape, generator=draws, dtype=torch.float64)
        for shape in (
            (4, streams, hidden), (streams, hidden), (2 * hidden, 2 * hidden),
            (count, hidden, 2 * hidden),
        )
    )  # fmt: skip
    found = []
    with torch.no_grad():
        wanted = reference(x, h, first, matrices, gene, None, None)
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(derived.unroll(x, h, first, matrices, gene, None, None))
        single = [t.float() for t in (x, h, first, matrices)]
        rounded = derived.unroll(*single, gene, None, None)
    torch.testing.assert_close(found[0], wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(*found)
    torch.testing.assert_close(rounded.double(), wanted, rtol=1e-4, atol=1e-4)


@needed
def test_few_streams_are_evaluated_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("_stream", "_evaluate"):
        monkeypatch.setattr(derived, name, lambda *args, name=name: seen.append(name))
    monkeypatch.setattr(derived_whole, "evaluate", lambda *args: seen.append("whole"))
    gene = ZOO["DARTS_V2"].genotype.recurrent
    for streams in (1, 10, 11):
        x, h = torch.ones(2, streams, 3), torch.ones(streams, 3)
        with torch.no_grad():
            derived.unroll(x, h, torch.ones(6, 6), torch.ones(8, 3, 6), gene, None, None)
    assert seen == ["_stream", "_stream", "whole"]


def test_a_line_says_why_there_are_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        cpu_library, "built", lambda: cpu_library.Built(None, "no C++ compiler was found")
    )
    assert not cpu_library.usable(torch.ones(1))
    monkeypatch.setattr(devices, "reason", lambda _: "")
    say_kernels(torch.device("cuda"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(devices, "reason", lambda _: "Triton is not installed")
    say_kernels(torch.device("cuda"))
    told = capsys.readouterr().err
    assert told == "note: without kernels for CUDA, hence slower: Triton is not installed\n"
    say_kernels(torch.device("cpu"))
    told = capsys.readouterr().err
    assert told == "note: without compiled kernels, hence slower: no C++ compiler was found\n"


@pytest.mark.parametrize("able", [True, False])
def test_a_line_says_that_bfloat16_is_imitated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], able: bool
) -> None:
    monkeypatch.setattr(cpu_library, "built", lambda: cpu_library.Built(None, ""))
    monkeypatch.setattr(cpu_library, "has_bfloat16", lambda: able)
    for precision in ("auto", "float32"):
        say_kernels(torch.device("cpu"), precision)
    assert capsys.readouterr().err == ""
    say_kernels(torch.device("cpu"), "bfloat16")
    assert ("no bfloat16 products" in capsys.readouterr().err) is not able
