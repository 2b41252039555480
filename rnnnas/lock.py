"""A lock on a folder."""

from __future__ import annotations

import os
from pathlib import Path

from rnnnas.errors import UsageError
from rnnnas.files import disk_errors


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
