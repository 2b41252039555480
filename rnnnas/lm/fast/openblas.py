"""Products of float matrices by the OpenBLAS that numpy brings, on all of torch's threads.

Legend: M rows, K inner, W columns.

torch's CPU products are MKL's and oneDNN's. On a processor of AMD with AVX2 and no more OpenBLAS'
reach up to 1.8 times the speed of MKL's (benchmarks/README.md). It has threads of its own, which
would stand in the way of torch's; so it is held to one, and a kernel shares a product out.
"""

from __future__ import annotations

import ctypes
import functools
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from rnnnas.lm.fast import cpu_library

# Multiplications of a part that one thread makes, at least.
PART = 2_000_000
# Parts of a product for up to so many threads, and for more. They hardly depend on the threads'
# number, for every part's sums are added up in an order of its own, and they are few, for every
# part costs as much as reading the shorter factor once more.
PARTS = (4, 16)
MOST_THREADS = 16  # that it is chosen for: more would have no part
_LETTERS = {torch.float32: "s", torch.float64: "d"}


@functools.cache
def _library() -> ctypes.CDLL | None:
    """numpy's own, with 64-bit integers. numpy's products have one thread afterwards, too."""
    numpy = find_spec("numpy")
    if numpy is None or numpy.origin is None:
        return None
    for path in sorted(Path(numpy.origin).parent.with_name("numpy.libs").glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for prefix in ("scipy_", ""):  # of numpy 2, and of numpy 1
            limit = getattr(library, f"{prefix}openblas_set_num_threads64_", None)
            if limit is not None and hasattr(library, f"{prefix}cblas_sgemm64_"):
                limit(ctypes.c_int(1))
                return library
    return None


@functools.cache
def _gemm(dtype: torch.dtype) -> int | None:
    """The address of its product of such matrices; None where there is none to call."""
    library = _library() if dtype in _LETTERS and cpu_library.built().library is not None else None
    if library is None:
        return None
    for prefix in ("scipy_", ""):
        function = getattr(library, f"{prefix}cblas_{_LETTERS[dtype]}gemm64_", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


def leads() -> bool:
    """Whether this is the kind of processor on which it was measured to be the fastest."""
    return _kind() and torch.get_num_threads() <= MOST_THREADS


@functools.cache
def _kind() -> bool:
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    capability = torch.backends.cpu.get_cpu_capability()
    return "AuthenticAMD" in about and capability == "AVX2"


def usable(a: Tensor, b: Tensor, out: Tensor | None = None) -> bool:
    """Whether `multiply` takes them: matrices of float32 or float64 on the CPU whose rows or
    columns are dense, those of `out` its rows.
    """
    given = (a, b) if out is None else (a, b, out)
    if any(t.dtype != a.dtype or t.device.type != "cpu" for t in given):
        return False
    if _lead(a) is None or _lead(b) is None or out is not None and not _along(out):
        return False
    return _gemm(a.dtype) is not None


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
    """a (M, K) times b (K, W), without a graph; only where they are `usable`. (M, W).

    The result is the same, bit by bit, for one thread to four, and for any number above.

    Args:
        add: to what `out` holds.

    Raises:
        ValueError: where shapes do not fit: memory beyond a matrix would be read.
    """
    rows, inner = a.shape
    columns = b.shape[1]
    out = a.new_empty(rows, columns) if out is None else out
    if len(b) != inner or out.shape != (rows, columns):
        raise ValueError(
            f"matrices {tuple(a.shape)} and {tuple(b.shape)} do not give {tuple(out.shape)}"
        )
    threads = torch.get_num_threads()
    few, more = PARTS
    parts = max(1, min(few if threads <= few else more, rows * inner * columns // PART))
    lead_a, lead_b = _lead(a), _lead(b)
    assert lead_a is not None and lead_b is not None
    cpu_library.function("multiply", a.dtype)(
        _gemm(a.dtype), rows, inner, columns, lead_a[0], a.data_ptr(), lead_a[1],
        lead_b[0], b.data_ptr(), lead_b[1], float(add), out.data_ptr(), out.stride(0),
        parts, threads,
    )  # fmt: skip
    return out


def _along(matrix: Tensor) -> bool:
    """Whether rows are dense and do not overlap."""
    return matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]


def _lead(matrix: Tensor) -> tuple[bool, int] | None:
    """Whether its columns are what is dense, and the elements from one to the next."""
    if _along(matrix):
        return False, matrix.stride(0)
    return (True, matrix.stride(1)) if _along(matrix.t()) else None
