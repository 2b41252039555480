"""Products of float matrices by the OpenBLAS that numpy brings, on all of torch's threads.

Legend: M rows, K inner, W columns.

torch's CPU products are MKL's and oneDNN's. On a processor of AMD with AVX2 and no more OpenBLAS'
reach up to 1.8 times the speed of MKL's (benchmarks/README.md). It has threads of its own, which
would stand in the way of torch's; so it is held to one while a kernel shares a product out.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

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


class _Library(NamedTuple):
    """numpy's OpenBLAS, with 64-bit integers. prefix: of its names (numpy 2 has one)."""

    library: ctypes.CDLL
    prefix: str
    threads: Callable[[], int]
    set_threads: Callable[[int], None]


@functools.cache
def _library() -> _Library | None:
    numpy = find_spec("numpy")
    if numpy is None or numpy.origin is None:
        return None
    for path in sorted(Path(numpy.origin).parent.with_name("numpy.libs").glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for prefix in ("scipy_", ""):  # of numpy 2, and of numpy 1
            threads = getattr(library, f"{prefix}openblas_get_num_threads64_", None)
            limit = getattr(library, f"{prefix}openblas_set_num_threads64_", None)
            if threads and limit and hasattr(library, f"{prefix}cblas_sgemm64_"):
                limit.argtypes, limit.restype = [ctypes.c_int], None
                return _Library(library, prefix, threads, limit)
    return None


class _Hold:
    """Holds OpenBLAS to one thread while any product of ours runs; then numpy has its own again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._before = 1

    @contextmanager
    def __call__(self) -> Iterator[None]:
        found = _library()
        assert found is not None
        with self._lock:
            if not self._running:
                self._before = found.threads()
                found.set_threads(1)
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    found.set_threads(self._before)


_held = _Hold()


@functools.cache
def _gemm(dtype: torch.dtype) -> int | None:
    """The address of its product of such matrices; None where there is none to call."""
    found = _library() if dtype in _LETTERS and cpu_library.built().library is not None else None
    if found is None:
        return None
    function = getattr(found.library, f"{found.prefix}cblas_{_LETTERS[dtype]}gemm64_", None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


@functools.cache
def maker() -> str:
    """The processor's maker as the processor names it, GenuineIntel say; empty if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [f"vendor_id: {platform.processor().rpartition(' ')[2]}"]  # as Windows tells it
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(named, "")


def leads() -> bool:
    """Whether this is the kind of processor on which it was measured to be the fastest."""
    return _kind() and torch.get_num_threads() <= MOST_THREADS


def _kind() -> bool:
    return maker() == "AuthenticAMD" and torch.backends.cpu.get_cpu_capability() == "AVX2"


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
    with _held():
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
