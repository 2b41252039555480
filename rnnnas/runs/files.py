"""Files that last: atomic writes, content digests, and checkpoints that are checked when read.

A checkpoint is what `torch.save` writes, a zip archive, of {"format", "digest", "content"}. Two
checks guard it. The seal, a SHA-256 over all bytes of the file, stands in the archive's comment:
it is verified before a byte is decoded, so that damage anywhere, padding included, is refused.
The digest is a SHA-256 over the decoded values: it names the content whatever wrote it, and two
runs that end in the same state have the same digest. torch is imported where it is used.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from rnnnas.errors import CheckpointError, DiskError, UsageError, check_no_pipe, visible

_TEMPORARY = re.compile(r"(\..+)\.([0-9a-f]{16})([0-9a-f]{16})\.tmp", re.DOTALL)
_MOST_BYTES = 1 << 28  # of a JSON file
DEPTH = 100  # levels of nesting in a JSON file that is read
RESTORE = "restore the file from a copy, or start a new run with --fresh"


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


def is_read_only(error: DiskError) -> bool:
    """Whether nothing could be written at all: by the disk's kind, or for want of rights."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


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
    temporary = path.with_name(_temporary_name(path.name[:40]))
    with disk_errors(path):
        raw = _Raw(temporary, "x+")
    _hold(raw.fileno())
    try:
        # The buffer reads too: a checkpoint is read back to be sealed.
        with io.BufferedRandom(raw) as file:
            try:
                write(cast(BinaryIO, file))
                file.flush()
                os.fsync(raw.fileno())
                if os.name == "posix":  # while it is open, others know that it is written
                    os.replace(temporary, path)
            except BaseException:
                raw.abandoned = True
                raise
        if os.name != "posix":
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


def check_replaceable(path: Path, suffixes: Sequence[str]) -> None:
    """Raises UsageError where a file is there whose name ends otherwise: it holds something else.

    suffixes: that what is to be written may have, in lower case.
    """
    with disk_errors(path):
        there = path.is_file() and path.stat().st_size > 0
    if there and path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{path} exists, and by its name it holds something else: it is left as it is",
            f"give --out another name, one that ends in {' or '.join(suffixes)}",
        )


def write_where_told(path: Path, data: bytes, suffixes: Sequence[str]) -> None:
    """Write to a path that the user named: links are followed, devices and pipes written to.

    Raises:
        UsageError: as `check_replaceable`.
        DiskError: as `write_atomic`.
    """
    check_replaceable(path, suffixes)
    with disk_errors(path):
        special = path.exists() and not path.is_file()
        target = Path(os.path.realpath(path))
        if target.is_symlink():  # what is left of links that lead to each other
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if special:
            with path.open("wb") as file:
                file.write(data)
            return
    with suppress(DiskError, OSError):  # of another command that was killed
        remove_temporaries(target.parent)
    write_atomic(target, lambda file: file.write(data))


def _hold(handle: int) -> bool:
    """Mark an open file as being written by this process; False where another process writes it.

    True as well where there are no file locks.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


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


def _temporary_name(stem: str) -> str:
    """A name that nobody else has given: random, and with a digest that only we append."""
    start, token = f".{stem}", secrets.token_hex(8)
    return f"{start}.{token}{_proof(start, token)}.tmp"


def _proof(start: str, token: str) -> str:
    text = f"rnnnas {start} {token}".encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def is_temporary(path: Path) -> bool:
    """Whether `path` is the temporary file of an atomic write of ours.

    Its name ends in a digest of the rest: a file of the user's that merely looks like one has
    another, and is no concern of ours.
    """
    match = _TEMPORARY.fullmatch(path.name)
    if match is None or match[3] != _proof(match[1], match[2]):
        return False
    return path.is_file() and not path.is_symlink()


def remove_temporaries(folder: Path) -> int:
    """Remove what killed writers left in `folder`; returns how many files there were.

    What a process is writing stays.
    """
    count = 0
    for path in [path for path in folder.iterdir() if is_temporary(path)]:
        with disk_errors(path), suppress(FileNotFoundError), path.open("rb") as file:
            if _hold(file.fileno()):
                path.unlink()
                count += 1
    return count


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


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. A byte-order mark in front is skipped.

    Raises:
        ValueError: where it is no JSON, or nested deeper than `DEPTH`: no file of ours is, and
            what walks through it recursively could not.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH} levels") from None
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEPTH + 1):
        if not level:
            return value
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, (dict, list))
        ]
    raise ValueError(f"nested deeper than {DEPTH} levels")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        CheckpointError: where the file is missing, unreadable or damaged, each said as such.
    """
    try:
        check_no_pipe(path)
        with path.open("rb") as file:  # perhaps a device without an end
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        return parse_json(data)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise CheckpointError(f"{path} is damaged: {error}", RESTORE) from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: as `read_json`, and where it holds another value.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise CheckpointError(f"{path} is damaged: a {kind} in place of an object", RESTORE)
    return value


# What the system says for reasons of its own: nothing is wrong with the file.
_PASSING = frozenset(
    getattr(errno, name)
    for name in ("EMFILE", "ENFILE", "EIO", "ENOMEM", "ESTALE", "EAGAIN", "EINTR", "ETIMEDOUT")
    if hasattr(errno, name)
)


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The CheckpointError that says why `path` could not be read, and what helps."""
    if error.errno in _PASSING:
        remedy = "that is the system's trouble, not the file's: end it, then give the command again"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "close other programs or raise the limit (ulimit -n), then try again"
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = "give yourself the right to read it"
    else:
        remedy = RESTORE if os.path.lexists(path) else "check the path"
    return CheckpointError(f"{path} cannot be read: {reason_of(error)}", remedy)


def reason_of(error: OSError) -> str:
    return error.strerror or str(error)


class Lock:
    """A hold on a folder that ends with the process, so that no two processes write one run.

    The lock is the operating system's, by the library `filelock`; the file is opened here, since
    no link is followed, and no file of the user's by that name is emptied.

    Raises:
        UsageError: where another process, or another part of this one, holds it.
        DiskError: where the lock file cannot be made.
    """

    NAME = ".lock"

    def __init__(self, folder: Path) -> None:
        from filelock import lock_descriptor

        path = folder / self.NAME
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        if path.is_symlink():  # also where the system has no O_NOFOLLOW
            raise UsageError(
                f"{path} is a link, not a lock of ours: it is left as it is",
                "choose another folder with --out",
            )
        with disk_errors(path):
            self._handle = os.open(path, flags, 0o666)
        try:
            held = lock_descriptor(self._handle, blocking=False)
        except OSError as error:  # better a run than none
            self._warn(folder, reason_of(error))
            return
        if not held:
            holder = self._content(20).decode("ascii", "replace").strip()
            self.release()
            raise UsageError(
                f"{folder} is in use by another process" + (f" ({holder})" if holder else ""),
                "wait until it ends, or choose another folder with --out",
            )
        if not self._ours():  # a file of the user's by that name: it holds as well, as it is
            return
        with disk_errors(path):
            os.ftruncate(self._handle, 0)
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, str(os.getpid()).encode())

    def _content(self, size: int) -> bytes:
        """The beginning of the file; nothing where the lock of another keeps it from being read."""
        try:
            os.lseek(self._handle, 0, os.SEEK_SET)
            return os.read(self._handle, size)
        except OSError:
            return b""

    def _ours(self) -> bool:
        """Whether the file is empty or holds a number, as ours do."""
        about = os.fstat(self._handle)
        held = self._content(21) if stat.S_ISREG(about.st_mode) else b"?"
        return not held or (len(held) <= 20 and held.strip().isdigit())

    @classmethod
    def is_held(cls, folder: Path) -> bool:
        """Whether a process of this machine holds a folder.

        Looking must not keep a run from starting: where the file can be read, the lock is tried
        only if the process that it names is alive.
        """
        from filelock import lock_descriptor

        path = folder / cls.NAME
        try:
            if sys.platform != "win32":  # there nobody else can read it, and kill(0) is no question
                os.kill(int(path.read_text(encoding="ascii")), 0)
            with path.open("rb") as file:
                return not lock_descriptor(file.fileno(), blocking=False)
        except PermissionError:
            return sys.platform != "win32"  # the process is alive, and somebody else's
        except (OSError, ValueError):
            return False

    @staticmethod
    def _warn(folder: Path, why: str) -> None:
        text = f"WARNING: a second process writing {folder} would not be noticed: no locks ({why})"
        print(visible(text), file=sys.stderr, flush=True)

    def release(self) -> None:
        """Let others in; further calls do nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
