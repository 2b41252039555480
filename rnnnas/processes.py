"""Processes that belong together: whose child this one is, and folders that end with it."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARENT = "RNNNAS_PARENT"  # the process that started this one, which ends when that one does
GRACE = 20.0  # seconds that a process has to save, once the one that started it has gone
LOOK = 1.0  # seconds between two looks for it
_TORCHRUN = "TORCHELASTIC_RUN_ID"
_SCRATCH = re.compile(r"(rnnnas-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{16})-([0-9a-f]{16})")
_torchruns: int | None = None


def orphaned() -> bool:
    """Whether the process that started this one, as one of several, has gone."""
    parent = os.environ.get(PARENT) or (None if _torchruns is None else str(_torchruns))
    return parent is not None and parent != str(os.getppid())


def end_with_parent() -> None:
    """From here on, end this process once the one that started it as one of several has gone.

    Wherever it is: it gets a SIGTERM, upon which a run's loop saves first, and where it waits for
    something and hears none, it is ended after `GRACE` seconds. Does nothing in a process that a
    person or another program started. Call it once, at the start.
    """
    global _torchruns
    if not os.environ.get(PARENT):
        if _TORCHRUN not in os.environ or sys.platform == "win32":
            return
        _torchruns = os.getppid()

    def watch() -> None:
        while not orphaned():
            time.sleep(LOOK)
        print("rnnnas: the process that started this one has gone", file=sys.stderr, flush=True)
        for folder in _given:
            shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_with(parent: int) -> None:
    """End this process with the one of that number, which started it by other means."""
    if sys.platform != "win32":
        os.environ[PARENT] = str(parent)
        end_with_parent()


_given: list[Path] = []


def end_folder_with_parent(folder: Path) -> None:
    """Have `end_with_parent` remove a folder of `scratch_folder` that the parent handed on."""
    if _is_scratch(folder):
        _given.append(folder)


@contextlib.contextmanager
def scratch_folder(where: Path | None = None) -> Iterator[Path]:
    """A new folder for the block, in `where` or the system's temporary folder.

    It goes with the block. What a process of ours that was killed left there goes, too: the name
    of such a folder says whose it is, and ends in a digest that only we append.
    """
    place = Path(tempfile.gettempdir() if where is None else where)
    clear_scratch(place)
    folder = place / _scratch_name()
    try:  # a signal's exception may come right after it is made
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_scratch() -> Path:
    """A new folder as those of `scratch_folder`, that goes with this process."""
    folder = Path(tempfile.gettempdir()) / _scratch_name()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def scratch_folders() -> list[tuple[Path, bool]]:
    """The folders of this kind among the temporary ones, and whether their process is over."""
    try:
        found = list(Path(tempfile.gettempdir()).glob("rnnnas-*"))
    except OSError:
        return []
    return [(path, _is_over(path.name)) for path in found if _is_scratch(path)]


def clear_scratch(place: Path) -> int:
    """Remove the folders in `place` whose processes have ended; returns how many there were."""
    gone = 0
    with contextlib.suppress(OSError):
        for path in place.glob("rnnnas-*"):
            if _is_scratch(path) and _is_over(path.name):
                shutil.rmtree(path, ignore_errors=True)
                gone += 1
    return gone


def _scratch_name() -> str:
    name = f"rnnnas-{_machine()}-{os.getpid()}-{_begun(os.getpid())}-{secrets.token_hex(8)}"
    return f"{name}-{_proof(name)}"


def _proof(name: str) -> str:
    return hashlib.sha256(f"rnnnas {name}".encode()).hexdigest()[:16]


def _is_scratch(path: Path) -> bool:
    """Whether a folder was made by `scratch_folder`, by this user."""
    match = _SCRATCH.fullmatch(path.name)
    if match is None or match[5] != _proof(match[1]):
        return False
    try:
        about = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and (os.name == "nt" or about.st_uid == os.geteuid())


def _is_over(name: str) -> bool:
    """Whether the process that a scratch folder is named for has ended, on this machine."""
    match = _SCRATCH.fullmatch(name)
    if match is None or match[2] != _machine():
        return False
    number = int(match[3])
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return _begun(number) != match[4]  # another process by now has that number


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _begun(number: int) -> str:
    """When a process began, in the system's ticks; '0' where the system does not say, and '-1' for
    one that has ended, and that its parent has not asked for.
    """
    try:
        about = Path(f"/proc/{number}/stat").read_text(errors="replace")
    except OSError:
        return "0"
    fields = about.rpartition(")")[2].split()
    return "-1" if fields[0] in "ZX" else fields[19]


def answers() -> BinaryIO:
    """Standard output as a worker's answers take it; from then on what is printed, by a user's
    plug-in for instance, goes to standard error.
    """
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out
