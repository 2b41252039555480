"""Where corpora, runs and latency tables lie: under `$RNNNAS_HOME`, or the current directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

FIRST_SEED = 1  # of runs that are told none
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


def default_folder(kind: str, config: Any, called: str = "") -> Path:
    """Where a run lies that is told no folder."""
    name = config.method if kind == "search" else called
    return run_folder(kind, config.corpus, name, config.seed)


def run_folder(kind: str, corpus: str, called: str, seed: int | None) -> Path:
    """checkpoints/KIND-CORPUS-NAME-sSEED, with a name that is fit for a folder. seed: None for that
    of a run that is told none.
    """
    name = (Path(called).name or called).removesuffix(".json")
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return checkpoints_folder() / f"{kind}-{corpus}-{safe}-s{FIRST_SEED if seed is None else seed}"


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
