"""Text of other encodings as UTF-8, block by block."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain

from rnnnas.errors import DataError, UsageError, nearest

MIXED = "mixed"  # UTF-8, and Windows-1252 where a line is not
_HEAD = 65536  # bytes that tell the order of bytes
_CHANCE = 8  # characters beyond ASCII that are not UTF-8 by chance
_ASCII = bytes(range(128))
_NO_LETTERS = bytes(b for b in range(128) if not chr(b).isalpha())
_FOREIGN = 0.3  # of the letters: no language of Latin script has so many beyond ASCII
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


def byte_order(head: bytes, width: int = 2) -> str:
    """`le` or `be`, by the spaces, line ends, Chinese stops and commas among units of `width`
    bytes, which mean nothing usual in the other order; empty: undecided.
    """
    found = {}
    for order in ("little", "big"):
        wanted = {code.to_bytes(width, order) for code in (0x20, 0x0A, 0x3002, 0xFF0C)}
        units = (head[at : at + width] for at in range(0, len(head) - width + 1, width))
        found[order] = sum(unit in wanted for unit in units)
    if max(found.values()) <= 4 * min(found.values()):
        return ""
    return "le" if found["little"] > found["big"] else "be"


def _ordered(head: bytes, encoding: str, name: str) -> str:
    """The encoding of a text that begins with `head`, its order of bytes decided by the text where
    neither the encoding nor a mark does. Raises DataError where what is named contradicts both.
    """
    family, _, order = encoding.removeprefix("utf-").partition("-")
    if family not in ("16", "32"):
        return encoding
    width = int(family) // 8
    marks = {end: "\ufeff".encode(f"utf-{family}-{end}") for end in ("le", "be")}
    marked = next((end for end, mark in marks.items() if head.startswith(mark)), "")
    said = marked or byte_order(head[:_HEAD], width)
    if order and said and order != said:
        raise DataError(
            f"{name}: not {encoding}: its bytes are in the other order",
            f"Give --encoding utf-{family}" + ("." if marked else f"-{said}."),
        )
    if not order and not said:
        raise DataError(
            f"{name}: nothing says the order of the bytes of this {encoding}: there is no mark",
            f"Give --encoding {encoding}-le or {encoding}-be.",
        )
    return encoding if order or marked else f"{encoding}-{said}"


def _refuse_utf8(head: bytes, encoding: str, name: str) -> None:
    """Raises DataError where a text that another encoding is named for is UTF-8 all the same.

    Nearly every encoding of single bytes would read it, as text that nobody wrote.
    """
    if encoding.startswith("utf"):
        return
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return
    if sum(map(str.isascii, text)) + _CHANCE <= len(text):
        raise DataError(f"{name}: this is UTF-8, not {encoding}", "Leave out --encoding.")


def recoded(blocks: Iterable[bytes], encoding: str, name: str) -> Iterator[bytes]:
    """UTF-8 out of blocks in `encoding`, as `check_encoding` gave it. Raises DataError."""
    if encoding == MIXED:
        yield from _mixed(blocks)
        return
    blocks = iter(blocks)
    head = next(blocks, b"")
    encoding = _ordered(head, encoding, name) if head else encoding
    _refuse_utf8(head, encoding, name)
    decoder = codecs.getincrementaldecoder(encoding)()
    read = 0
    try:
        for block in chain((head,), blocks):
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
    good = bad = plain = high = 0
    rest = b""

    def count(row: bytes) -> None:
        nonlocal good, bad, plain, high
        beyond = len(row.translate(None, _ASCII))
        plain, high = plain + len(row.translate(None, _NO_LETTERS)) - beyond, high + beyond
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
            f"{bad:,} lines are not UTF-8 and {good:,} others are: --encoding mixed "
            "reads those few as Windows-1252; or correct them."
        )
    if high > _FOREIGN * (plain + high):
        return (
            "It is in no Latin script: give --encoding and what it was saved in, such as "
            "windows-1251 or koi8-r (Cyrillic), shift_jis or euc_jp (Japanese), gb18030 or big5 "
            "(Chinese), euc_kr (Korean), windows-1256 (Arabic), cp874 (Thai)."
        )
    return (
        "Where it is Windows-1252, give --encoding windows-1252, or convert it: "
        "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
    )
