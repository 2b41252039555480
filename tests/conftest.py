"""Settings that every test runs under."""

from __future__ import annotations

import os

import pytest

# Tests work on small tensors, and often beside other processes: one thread each is fastest, and
# what runs in a subprocess inherits it. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own operations only: compiled kernels are the CPU's, and no mode sees them."""
    from rnnnas.lm import fused_mixed, kernels

    for module in (fused_mixed, kernels):
        monkeypatch.setattr(module, "usable", lambda like: False)
