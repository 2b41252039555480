"""Which ranks that were started by hand live on this machine, from their first moment on.

Before a rank can reach the others' store it imports its libraries and opens its corpus, for some
seconds. It is known meanwhile by a folder of its own among the temporary ones, whose name says
whose it is and whose only file says which rank.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rnnnas.processes import clear_scratch, make_scratch, scratch_folders

_FILE = "rank"


@dataclass
class _Here:
    """folder: this process's; began: when, in seconds of the clock; seen: ranks that lived once."""

    folder: Path
    start: str
    began: float
    seen: set[int] = field(default_factory=set)


_here: _Here | None = None


def announce() -> None:
    """Say that this rank lives, where the environment names one that was started by hand."""
    global _here
    about = [os.environ.get(name, "").strip() for name in _NAMES]
    rank = os.environ.get("RANK", "").strip()
    if not (all(about) and rank.isdigit()) or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # there is no room: then others wait longer for it
        atexit.register(clear_scratch, Path(tempfile.gettempdir()))  # of those that were killed
        _here = _Here(make_scratch(), " ".join(about), time.time())
        (_here.folder / _FILE).write_text(f"{_here.start} {rank}")
        gone()


_NAMES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")


def gone() -> set[int]:
    """The ranks of the same start that lived on this machine beside this one, and do no more."""
    if _here is None:
        return set()
    living, ended = set(), set()
    for folder, over in scratch_folders():
        try:
            start, _, rank = (folder / _FILE).read_text().rpartition(" ")
            late = folder.stat().st_mtime >= _here.began
        except (OSError, ValueError):
            continue
        if start == _here.start and rank.isdigit():
            if not over:
                living.add(int(rank))
            elif late:
                ended.add(int(rank))
    _here.seen |= living | ended
    return _here.seen - living


def withdraw() -> None:
    """Remove this rank's folder: the others know it by now."""
    global _here
    if _here is not None:
        shutil.rmtree(_here.folder, ignore_errors=True)
        _here = None
