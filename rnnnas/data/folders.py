"""The folder of a corpus on disk: made beside its place, exchanged in one step, removed when ours.

A corpus is prepared inside a hidden folder, `.NAME.RANDOM.partial/corpus`, and renamed. Replacing
another is one atomic exchange where the system has one (Linux' renameat2); elsewhere it is two
renames, and what a kill between them leaves is put back at the next opening (`recover`). Only what
is provably ours is ever removed: hidden folders that hold our mark, and folders that hold a
description of ours and no other file than those it lists (`foreign_part`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shlex
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rnnnas.data.text_files import shown
from rnnnas.errors import DataError, UsageError

DESCRIPTION, VOCABULARY = "corpus.json", "vocab.json"
MARK = ".rnnnas"  # in a hidden folder of ours: its own name, then machine and process
_INNER, _OLD = "corpus", "replaced"
_SPLIT_FILES = ("bin", "images", "labels", "spans")
_FILES = frozenset(
    {DESCRIPTION, VOCABULARY}
    | {f"{split}.{ending}" for split in ("train", "valid", "test") for ending in _SPLIT_FILES}
)
_STALE = 24 * 3600  # seconds after which a hidden folder is left over from a killed preparation
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def hidden_sibling(folder: Path) -> Iterator[Path]:
    """An empty folder, hidden beside `folder`; gone afterwards unless it was renamed."""
    for left in _hidden(folder):
        with contextlib.suppress(OSError):
            if not (left / _OLD).exists() and _is_over(left):
                shutil.rmtree(left)
    # Named before it is made: a signal's exception in between finds what to remove.
    hidden = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    try:
        hidden.mkdir(mode=0o700)
        (hidden / MARK).write_text(f"{hidden.name}\n{socket.gethostname()}\n{os.getpid()}\n")
        inner = hidden / _INNER
        inner.mkdir(mode=0o755)
        inner.chmod(0o755)
        yield inner
    finally:
        # The mark goes last: what a kill leaves of this can be told for ours.
        if not (hidden / _OLD).exists():
            shutil.rmtree(hidden / _INNER, ignore_errors=True)
            shutil.rmtree(hidden, ignore_errors=True)


def _hidden(folder: Path) -> list[Path]:
    """The hidden folders of ours beside `folder`, a live process's included."""
    found = []
    prefix, suffix = f".{folder.name}.", ".partial"
    with contextlib.suppress(OSError):
        for path in sorted(folder.parent.iterdir()):
            if path.name.startswith(prefix) and path.name.endswith(suffix):
                with contextlib.suppress(OSError, ValueError):
                    if (path / MARK).read_text().split("\n")[0] == path.name:
                        found.append(path)
    return found


def _is_over(hidden: Path) -> bool:
    """Whether the preparation that made a hidden folder has ended, by its process or its age."""
    lines = (hidden / MARK).read_text().split("\n")
    if len(lines) > 2 and lines[1] == socket.gethostname() and lines[2].isdecimal():
        try:
            os.kill(int(lines[2]), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass
    return time.time() - hidden.stat().st_mtime > _STALE


def recover(folder: Path) -> None:
    """Put back the corpus that a kill between two renames left hidden, where none is at `folder`.

    Does nothing otherwise, and where the system exchanges folders in one step.
    """
    if os.path.lexists(folder):
        return
    for hidden in _hidden(folder):
        if (hidden / _OLD).is_dir():
            with contextlib.suppress(OSError):
                (hidden / _OLD).rename(folder)
                return


def foreign_part(folder: Path) -> str | None:
    """Why a folder is not a corpus of ours, or None where it is one, whole or damaged.

    Ours: it holds a description in our form and, beside it, only files that corpora consist of.
    """
    try:
        if folder.is_symlink():
            return "it is a link"
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name not in _FILES or not entry.is_file(follow_symlinks=False):
                return f"it holds {shown(entry.name)}"
        described = json.loads((folder / DESCRIPTION).read_bytes())
    except FileNotFoundError:
        return f"it has no {DESCRIPTION}"
    except (OSError, ValueError, RecursionError) as error:
        return f"its {DESCRIPTION} is not a description ({_reason(error)})"
    keys = ("format", "name", "kind", "sha256", "splits")
    if not isinstance(described, dict) or any(key not in described for key in keys):
        return f"its {DESCRIPTION} is not a description of a corpus"
    return None


def _reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def check_apart(source: Path, folder: Path) -> None:
    """Refuse a source that would be replaced by the corpus made of it.

    Raises UsageError where `source` is the folder of the corpus, or lies in it.
    """
    one, two = Path(os.path.realpath(source)), Path(os.path.realpath(folder))
    if one == two or two in one.parents:
        raise UsageError(
            f"{shown(source)} lies where the corpus {folder.name} itself would be written",
            f"It is left as it is. Choose another name: rnnnas corpus add {folder.name}-2 "
            f"--from {shlex.quote(shown(source))}",
        )


def foreign(folder: Path, name: str, why: str) -> DataError:
    """The error for a folder under a corpus' name that is none of ours."""
    return DataError(
        f"{shown(folder)} is not a corpus that rnnnas prepared: {why}",
        "It is left as it is. Use another name, or add it as a source: "
        f"rnnnas corpus add {name}-2 --from {shlex.quote(shown(folder))}",
    )


def install(hidden: Path, folder: Path, name: str, same: Callable[[], bool], replace: bool) -> None:
    """Rename the finished folder into place, unless the `same` content is there already.

    Raises DataError where other content is there and not `replace`, or what is there is not ours.
    """
    recover(folder)
    if not os.path.lexists(folder):
        try:
            hidden.rename(folder)
        except OSError:
            # Another process may have prepared the same corpus meanwhile.
            if not folder.exists():
                raise
        else:
            sync_folder(folder.parent)
            return
    if not folder.is_dir():
        raise DataError(f"{shown(folder)}: is a file", "Choose another corpus name.")
    if why := foreign_part(folder):
        raise foreign(folder, name, why)
    if same():
        return
    if not replace:
        raise DataError(
            f"corpus {name} exists with other content or damage ({shown(folder)})",
            "Use --replace to prepare it anew, or choose another name.",
        )
    if not exchange(hidden, folder):
        _two_renames(hidden, folder)
    elif why := foreign_part(hidden):  # somebody put a file there meanwhile: give it back
        exchange(hidden, folder)
        raise foreign(folder, name, why)
    sync_folder(folder.parent)


@cache
def _renameat2() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None


def exchange(one: Path, two: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot.

    Raises OSError for any other failure.
    """
    call = _renameat2()
    if call is None:
        return False
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(two), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(two))


def _two_renames(hidden: Path, folder: Path) -> None:
    """Replace `folder` by `hidden`; a kill in between is mended by `recover`."""
    old = hidden.parent / _OLD
    folder.rename(old)
    sync_folder(folder.parent)
    for _ in range(100):
        try:
            hidden.rename(folder)
        except OSError:
            # Someone who opened the corpus took this moment for a kill and put the old one back.
            if not folder.exists():
                raise
            folder.rename(old)
        else:
            break
    shutil.rmtree(old)


def remove(folder: Path, name: str) -> None:
    """Remove a corpus of ours, and nothing else.

    Raises DataError where there is none, or what is there is not ours.
    """
    if not os.path.lexists(folder):
        raise DataError(f"there is no prepared corpus {name!r}", "See `rnnnas corpus list`.")
    if folder.is_symlink() or not folder.is_dir():
        raise foreign(folder, name, "it is a link" if folder.is_symlink() else "it is a file")
    if why := foreign_part(folder):
        raise foreign(folder, name, why)
    # First out of sight in one step: half a corpus is never seen under the name.
    with hidden_sibling(folder) as hidden:
        gone = hidden / "removed"
        folder.rename(gone)
        if why := foreign_part(gone):  # somebody put a file there meanwhile: give it back
            gone.rename(folder)
            raise foreign(folder, name, why)
    sync_folder(folder.parent)
