"""Where corpora, runs and latency tables lie: under `$RNNNAS_HOME`, or the current directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_told: ContextVar[Path | None] = ContextVar("home", default=None)


def home() -> Path:
    """The folder that everything lies under by default."""
    return _told.get() or Path(os.environ.get("RNNNAS_HOME") or ".")


def corpora_folder() -> Path:
    """The folder of prepared corpora."""
    return home() / "corpora"


def checkpoints_folder() -> Path:
    """The folder that runs lie in unless they are told another."""
    return home() / "checkpoints"


@contextmanager
def home_at(folder: Path | str | None) -> Iterator[None]:
    """Within the block, `folder` is the home; None leaves it as it is."""
    if folder is None:
        yield
        return
    token = _told.set(Path(folder))
    try:
        yield
    finally:
        _told.reset(token)
