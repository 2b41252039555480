"""Expected failures: each carries its exit code and reads as cause, then remedy."""

from __future__ import annotations

import errno
from pathlib import Path


class RnnnasError(Exception):
    """An expected failure, shown as one or two lines and never as a traceback.

    `cause` says what is wrong and where; `remedy` says what to do about it.
    """

    exit_code = 1
    quiet = False  # whether another process of the same run says it

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}\n{remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy


class UsageError(RnnnasError):
    """An option, key or name that is not understood."""

    exit_code = 2


class DataError(RnnnasError):
    """A corpus or text that cannot be used."""

    exit_code = 3


class CheckpointError(RnnnasError):
    """A checkpoint or run folder that is damaged or does not fit."""

    exit_code = 4


class DiskError(RnnnasError):
    """A file that could not be written."""

    exit_code = 5


class DivergedError(RnnnasError):
    """A run whose loss stayed non-finite."""

    exit_code = 6


class Interrupted(RnnnasError):
    """A run that was asked to stop: its state is saved first."""

    def __init__(self, cause: str, remedy: str, exit_code: int) -> None:
        super().__init__(cause, remedy)
        self.exit_code = exit_code


_VISIBLE = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"
}


def visible(text: object) -> str:
    """A text that a terminal may be given: control characters, and what no encoding has, escaped.

    Names, words and errors come from files that others wrote; raw, an escape sequence in them
    could rewrite what stands on the screen. Tabs and line ends stay.
    """
    return str(text).encode("utf-8", "backslashreplace").decode().translate(_VISIBLE)


def check_no_pipe(path: Path) -> None:
    """Raises OSError where a path is a pipe: to open one waits for a writer, perhaps for ever."""
    if path.is_fifo():
        raise OSError(errno.ESPIPE, "it is a pipe, not a file", str(path))


def nearest(word: str, known: list[str]) -> str:
    """' (did you mean ...?)' for the known word closest to `word`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
