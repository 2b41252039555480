"""Which library multiplies: never one that has no fast way for how a factor lies in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matmul_times import Recorder
from plain_torch import off
from torch import Tensor

from rnnnas.lm.fast import cpu_library, derived, derived_whole, matmul, openblas
from rnnnas.lm.fast.matmul import SMALL, accumulate, multiply
from rnnnas.nas.zoo import ZOO

LAYOUTS = ("plain", "turned", "rows", "columns", "turned columns")
DENSE = LAYOUTS[:3]
BOUND = 1.5  # times the plainest way's time


def lying(matrix: Tensor, how: str) -> Tensor:
    """The same numbers, lying in memory as `how` says: parts are slices of larger matrices."""
    rows, columns = matrix.shape
    if how == "turned":
        return matrix.t().contiguous().t()
    if how == "rows":
        return torch.cat([matrix] * 3)[rows : 2 * rows]
    if how == "columns":
        return torch.cat([matrix] * 3, 1)[:, columns : 2 * columns]
    if how == "turned columns":
        return torch.cat([matrix.t()] * 3, 1)[:, rows : 2 * rows].t()
    return matrix


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """On a processor for which oneDNN is the choice: the factors that it was given."""
    if matmul._ONEDNN is None:
        pytest.skip("no oneDNN on this platform")
    own: Any = matmul._ONEDNN
    given: list[tuple[Tensor, Tensor]] = []

    def noted(a: Tensor, turned: Tensor, *rest: Any) -> Tensor:
        given.append((a, turned.t()))
        return own(a, turned, *rest)

    monkeypatch.setattr(matmul, "_ONEDNN", noted)
    monkeypatch.setattr(matmul, "_FOREIGN", True)
    monkeypatch.setattr(openblas, "leads", lambda: False)
    return given


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("wide", [True, False])
def test_no_slice_of_columns_reaches_onednn(
    by_onednn: list[Any], monkeypatch: pytest.MonkeyPatch, left: str, right: str, wide: bool
) -> None:
    monkeypatch.setattr(matmul, "_WIDE", wide)
    draws = torch.Generator().manual_seed(1)
    m, k, n = 150, 140, 130
    assert m * k * n > SMALL
    a, b = torch.randn(m, k, generator=draws), torch.randn(k, n, generator=draws)
    exact = (a.double() @ b.double()).float()
    total = torch.ones(m, n)
    a, b = lying(a, left), lying(b, right)
    torch.testing.assert_close(multiply(a, b), exact, rtol=1e-4, atol=1e-4)
    accumulate(total, a, b)
    torch.testing.assert_close(total, 1 + exact, rtol=1e-4, atol=1e-4)
    if wide:
        calls = 2 if left in DENSE and right in DENSE else 0
    else:  # where nothing is to be copied
        calls = 1 if left in ("plain", "rows") and right == "turned" else 0
    assert len(by_onednn) == calls


def test_intels_own_library_leads_on_intels_processors(
    by_onednn: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = torch.ones(150, 140), torch.ones(140, 130)
    monkeypatch.setattr(matmul, "_WIDE", True)
    multiply(a, b)
    monkeypatch.setattr(matmul, "_FOREIGN", False)
    multiply(a, b)
    assert len(by_onednn) == 1


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_training_step_has_dense_factors_only(
    compiled: bool, low: bool, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of nodes that share a state are formed together, then told apart."""
    monkeypatch.setattr(derived_whole, "suits", lambda *args, **options: whole)
    if compiled and cpu_library.built().library is None:
        pytest.skip(cpu_library.built().reason)
    gene = ZOO["DARTS_V2"].genotype.recurrent
    draws = torch.Generator().manual_seed(2)
    shapes = (3, 5, 6), (5, 6), (12, 12), (8, 6, 12)
    leaves = [torch.randn(*shape, generator=draws).requires_grad_() for shape in shapes]
    recorder = Recorder()
    with recorder.everywhere(), off(not compiled):
        derived.unroll(*leaves, gene, None, None, low=low).sum().backward()
    ours = [call for call in recorder.calls if call.name in ("multiply", "accumulate")]
    assert len(ours) >= 3
    for call in ours:
        assert all(matmul._dense(factor.make()) for factor in (call.a, call.b)), call


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["", "AVX512_CORE", "AVX2"])
def test_no_product_of_the_presets_takes_longer_than_the_plainest_way(instructions: str) -> None:
    """Of every library, layout, type and size that a step meets, each the least of several."""
    precisions = ["float32"]
    if not instructions and cpu_library.has_bfloat16():
        precisions.append("bfloat16")
    script = Path(__file__).with_name("matmul_times.py")
    path = {"PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    limit = {"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {}
    done = subprocess.run(
        [sys.executable, str(script), str(BOUND), *precisions],
        env={**os.environ, **path, **limit}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(count > 3 for count in found["counts"].values())
    assert not found["slow"]
