"""The share of a step outside of kernels: the interpreter, autograd's and torch's bookkeeping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from rnnnas.lm.fast import cpu_library

_OWN = "kernel of ours: "
# Operations that describe or allocate tensors and compute nothing: they count as bookkeeping.
_DESCRIBING = {
    f"aten::{name}"
    for name in (
        "alias", "as_strided", "chunk", "contiguous", "detach", "detach_", "empty", "empty_like",
        "empty_strided", "expand", "expand_as", "flatten", "item", "lift_fresh", "narrow",
        "new_empty", "permute", "reshape", "resize_", "result_type", "select", "set_", "slice",
        "split", "split_with_sizes", "squeeze", "t", "to", "transpose", "unbind", "unsqueeze",
        "view", "_local_scalar_dense", "_reshape_alias", "_to_copy", "_unsafe_view", "is_nonzero",
    )
}  # fmt: skip


class Share(NamedTuple):
    """outside: seconds of a step outside of kernels. seconds: of the whole step."""

    outside: float
    seconds: float

    @property
    def share(self) -> float:
        """outside over seconds, between 0 and 1."""
        return min(1.0, self.outside / self.seconds)


@contextmanager
def _kernels_recorded() -> Iterator[None]:
    """Within it, calls of compiled kernels appear in a profile, as torch's operations do."""
    original = cpu_library.function

    def function(name: str, product: torch.dtype) -> Callable[..., None]:
        kernel = original(name, product)

        def recorded(*args: Any) -> None:
            with record_function(_OWN + name):
                kernel(*args)

        return recorded

    with patch.object(cpu_library, "function", function):
        yield


def computing_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that one call of `run` spends in kernels, and seconds of that whole call.

    Kernels are torch's operations that compute, each without what it calls, and those of our own.
    """
    with _kernels_recorded(), profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        run()
        wall = time.perf_counter() - began
    inside = 0.0
    for event in found.key_averages():
        own = event.key.startswith(_OWN)
        if own or (event.key.startswith("aten::") and event.key not in _DESCRIBING):
            inside += event.cpu_time_total if own else event.self_cpu_time_total
    return inside / 1e6, wall


def python_share(run: Callable[[], object], seconds: float, repeats: int) -> Share:
    """The share of a step that takes `seconds` when nobody looks.

    The time outside of kernels is the least of `repeats` profiled calls. It holds what profiling
    costs itself, about a microsecond an operation: the share is an upper bound.
    """
    outside = []
    for _ in range(repeats):
        inside, wall = computing_seconds(run)
        outside.append(wall - inside)
    return Share(max(0.0, min(outside)), seconds)
