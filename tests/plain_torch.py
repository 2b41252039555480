"""torch's own operations in place of the compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rnnnas.lm.fast import cpu_library


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, or where there is no compiler. No dispatch mode sees what kernels do."""
    monkeypatch.setattr(cpu_library, "usable", lambda *tensors, low=False: False)


@contextmanager
def off(wanted: bool = True) -> Iterator[None]:
    """Within it, as `without_kernels` where that is wanted."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if wanted:
            without_kernels(monkeypatch)
        yield
