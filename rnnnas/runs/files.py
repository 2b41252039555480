"""Files that last: atomic writes, content digests, and checkpoints that are checked when read.

A checkpoint is what `torch.save` writes, a zip archive, of {"format", "digest", "content"}. Two
checks guard it. The seal, a SHA-256 over all bytes of the file, stands in the archive's comment:
it is verified before a byte is decoded, so that damage anywhere, padding included, is refused.
The digest is a SHA-256 over the decoded values: it names the content whatever wrote it, and two
runs that end in the same state have the same digest. torch is imported where it is used.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from rnnnas.errors import CheckpointError, DiskError, UsageError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_RESTORE = "restore the file from a copy, or start a new run with --fresh"


def disk_error(path: Path, error: BaseException) -> DiskError:
    """The DiskError that says why `path` could not be written and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else str(error).partition("\n")[0]
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "make room there, then give the same command again; the last save is intact"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "choose a folder that may be written to, e.g. with --out"
    elif number in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOENT, errno.ELOOP, errno.EISDIR):
        remedy = "give another path, e.g. with --out"
    else:
        remedy = "check the disk, then give the same command again; the last save is intact"
    return DiskError(f"{path} could not be written: {reason}", remedy)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into the DiskError for `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


class _Raw(io.FileIO):
    """The file under a write: it remembers the first error, and can be told to write no more.

    torch.save reports a failed write as a RuntimeError without its reason; a buffer tries the
    failed write again when it is closed.
    """

    error: OSError | None = None
    abandoned = False

    def write(self, data: Any, /) -> int:
        if self.abandoned:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by what `write` puts into the binary file it is given, or not at all.

    The file is written beside its place, flushed, synced and renamed, and the folder is synced.
    Whatever fails, the temporary file is removed and an older file stays as it was.

    Raises:
        DiskError: naming the path, the reason and the remedy.
    """
    path = Path(path)
    # The start of the name will do: the whole and the ending may be more than a name can hold.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    with disk_errors(path):
        raw = _Raw(temporary, "x+")
    try:
        # The buffer reads too: a checkpoint is read back to be sealed.
        with io.BufferedRandom(raw) as file:
            try:
                write(cast(BinaryIO, file))
                file.flush()
                os.fsync(raw.fileno())
            except BaseException:
                raw.abandoned = True
                raise
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(path, error) from error
        if isinstance(error, RuntimeError) and raw.error is not None:
            raise disk_error(path, raw.error) from error
        raise


def write_where_told(path: Path, data: bytes) -> None:
    """Write to a path that the user named: links are followed, devices and pipes written to.

    Raises:
        DiskError: as `write_atomic`.
    """
    with disk_errors(path):
        special = path.exists() and not path.is_file()
        target = Path(os.path.realpath(path))
        if target.is_symlink():  # what is left of links that lead to each other
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if special:
            with path.open("wb") as file:
                file.write(data)
            return
    write_atomic(target, lambda file: file.write(data))


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder; the file itself is synced.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether `path` is named like the temporary file of an atomic write."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporaries(folder: Path) -> int:
    """Remove what killed writers left in `folder`; returns how many files there were."""
    left = [path for path in folder.iterdir() if is_temporary(path)]
    for path in left:
        with disk_errors(path):
            path.unlink(missing_ok=True)
    return len(left)


def json_plain(value: Any) -> Any:
    """`value` as JSON gives it back: tuples as lists, mappings as dicts, non-finite floats None.

    Strict JSON has no NaN and no infinity, and many readers refuse them.
    """
    if isinstance(value, Mapping):
        return {str(key): json_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented strict JSON, keys in their own order.

    Raises:
        DiskError: where the file cannot be written.
    """
    text = json.dumps(json_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A path that is no valid Unicode holds lone surrogates: JSON can say them as escapes.
    write_atomic(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        CheckpointError: where the file is missing, unreadable or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}", _RESTORE) from error
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise CheckpointError(f"{path} is damaged: {error}", _RESTORE) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class Lock:
    """A hold on a folder that ends with the process, so that no two processes write one run.

    Raises:
        UsageError: where another process, or another part of this one, holds it.
        DiskError: where the lock file cannot be made.
    """

    NAME = ".lock"

    def __init__(self, folder: Path) -> None:
        with disk_errors(folder / self.NAME):
            self._handle = os.open(folder / self.NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._handle, 20).decode("ascii", "replace").strip()
            self.release()
            raise UsageError(
                f"{folder} is in use by another process" + (f" ({holder})" if holder else ""),
                "wait until it ends, or choose another folder with --out",
            ) from error
        except OSError:  # a file system without locks: better a run than none
            return
        with disk_errors(folder / self.NAME):
            os.ftruncate(self._handle, 0)
            os.write(self._handle, str(os.getpid()).encode())

    def release(self) -> None:
        """Let others in; further calls do nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
