"""Text of other encodings as UTF-8, block by block."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

from rnnnas.errors import DataError, UsageError, nearest

MIXED = "mixed"  # UTF-8, and Windows-1252 where a line is not
_USUAL = ["utf-8", "utf-16", "latin-1", "windows-1252", "shift_jis", "gb18030", "big5", "koi8-r",
          MIXED]  # fmt: skip


def check_encoding(encoding: str) -> str:
    """The encoding's name as Python has it, or `mixed`. Raises UsageError where it is not known."""
    if encoding.lower() == MIXED:
        return MIXED
    try:
        found = codecs.lookup(encoding)
        if not found._is_text_encoding or found.name in ("idna", "punycode"):
            raise LookupError
    except (LookupError, ValueError) as error:
        raise UsageError(
            f"encoding {encoding!r} is not known{nearest(encoding.lower(), _USUAL)}",
            f"Usual ones are {', '.join(_USUAL[:-1])}; {MIXED} reads UTF-8 and, where a line is "
            "not, Windows-1252.",
        ) from error
    return found.name


def recoded(blocks: Iterable[bytes], encoding: str, name: str) -> Iterator[bytes]:
    """UTF-8 out of blocks in `encoding`, as `check_encoding` gave it. Raises DataError."""
    if encoding == MIXED:
        yield from _mixed(blocks)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    read = 0
    try:
        for block in blocks:
            yield decoder.decode(block).encode("utf-8")
            read += len(block)
        yield decoder.decode(b"", final=True).encode("utf-8")
    except UnicodeError as error:
        raise DataError(
            f"{name}: not {encoding} (near byte {read + getattr(error, 'start', 0) + 1:,})",
            "Give the encoding that the text was saved in with --encoding.",
        ) from error


def _mixed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *rows, rest = (rest + block).split(b"\n")
        if rows:
            yield b"".join(_mended(row) + b"\n" for row in rows)
    yield _mended(rest)


def _mended(row: bytes) -> bytes:
    try:
        row.decode("utf-8")
        return row
    except UnicodeDecodeError:
        try:
            return row.decode("windows-1252").encode("utf-8")
        except UnicodeDecodeError:  # five bytes that Windows-1252 has no character for
            return row.decode("latin-1").encode("utf-8")


def advice(blocks: Iterable[bytes]) -> str:
    """What to do with a text that is not UTF-8, by how many of its lines are not."""
    good = bad = 0
    rest = b""

    def count(row: bytes) -> None:
        nonlocal good, bad
        try:
            good += not row.decode("utf-8").isascii()
        except UnicodeDecodeError:
            bad += 1

    for block in blocks:
        *rows, rest = (rest + block).split(b"\n")
        for row in rows:
            count(row)
    count(rest)
    if good > bad:
        return (
            f"{bad:,} lines are not UTF-8 and {good:,} others are: `corpus add` with --encoding "
            "mixed reads those few as Windows-1252; or correct them."
        )
    return (
        "Where it is Windows-1252, give `corpus add` --encoding windows-1252, or convert it: "
        "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
    )
