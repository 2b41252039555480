"""Settings that every test runs under."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

# Tests work on small tensors, and often beside other processes: one thread each is fastest, and
# what runs in a subprocess inherits it. Set before torch is imported.
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"


def pytest_configure(config: pytest.Config) -> None:
    """Without a card Triton's kernels are interpreted; it asks when it is imported.

    And no test depends on whether the processor multiplies bfloat16.
    """
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # the workers run the tests, and begin when this is over
    import arithmetic
    import torch  # after the line above

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    arithmetic.pin()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What libraries, test modules and six thousand tests hold stays until the end.

    To look through it for garbage, again and again, takes longer than many a test.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches draw nothing for TensorBoard: it takes a sixth of a short one's time."""
    monkeypatch.setattr("rnnnas.searching.supernet._draw", lambda *_: None)
