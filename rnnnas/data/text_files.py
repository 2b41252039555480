"""Reading source text safely: line by line, in bounded memory, refusing what is not plain text.

Text is UTF-8. Lines end with `\\n` or `\\r\\n`; other separators (form feed, U+2028, a lone `\\r`)
are white space inside a line, as for Python's text files and `str.split`. A UTF-8 byte-order mark
at the head of a file is stripped: it is an editor's mark and would become part of the first word.
Everything else that is not plain text is refused with the file, the line and a remedy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rnnnas.errors import DataError

# Bytes. The longest line of WikiText-103 has about 20,000; a million without a line break is a
# file that lost its line structure, and `<eos>` would hardly ever be seen in it.
LINE_LIMIT = 1_000_000
BLOCK = 1 << 20  # bytes read at a time

_BOM = b"\xef\xbb\xbf"
_WIDE = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_BINARY = (
    (b"PK\x03\x04", "a zip archive", "give it a name that ends in .zip, or unpack it first"),
    (b"\x1f\x8b", "a gzip file", "unpack it first: gunzip FILE"),
    (b"BZh", "a bzip2 file", "unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ", "an xz file", "unpack it first: unxz FILE"),
    (b"PAR1", "a parquet file", "give the folder that holds train, validation and test parquet"),
    (b"%PDF", "a PDF document", "save its text as plain UTF-8 text first"),
    (b"\x89PNG", "a PNG image", "give plain UTF-8 text"),
    (b"\xff\xd8\xff", "a JPEG image", "give plain UTF-8 text"),
    (b"SQLite format 3", "an SQLite database", "export the text as plain UTF-8 text first"),
)
_HTML = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I
)
# Control characters that plain text does not hold: all but tab, newline, vertical tab, form feed,
# carriage return and escape (terminal colours are ugly, but text).
_CONTROL = bytes(set(range(32)) - {9, 10, 11, 12, 13, 27})


@dataclass(frozen=True, slots=True)
class Text:
    """A text that can be read again and again.

    name: what messages call it. lines: a fresh iterator over its lines, without line ends; it
    raises DataError where the text is bad. digest: the SHA-256 of its bytes, where it has bytes.
    """

    name: str
    lines: Callable[[], Iterator[str]]
    digest: Callable[[], str] | None = None


def shown(name: object) -> str:
    """A file name for a message: control and undecodable characters made visible."""
    visible = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
    return str(name).encode("utf-8", "backslashreplace").decode().translate(visible)


def file_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, at most `BLOCK` at a time. Raises DataError where it cannot be read."""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        raise DataError(
            f"{shown(path)}: cannot be read ({error.strerror or error})",
            "Check the path and its permissions.",
        ) from error


def check_head(head: bytes, name: str) -> None:
    """Refuse what the first bytes of a file show not to be UTF-8 text, a DataError."""
    for magic, encoding in _WIDE:
        if head.startswith(magic):
            raise _wide(name, encoding)
    for magic, what, remedy in _BINARY:
        if head.startswith(magic):
            raise DataError(
                f"{name}: line 1: this is {what}, not plain text",
                remedy[0].upper() + remedy[1:] + ".",
            )
    if _HTML.match(head[:4096].removeprefix(_BOM)):
        raise DataError(
            f"{name}: line 1: this is an HTML page, not plain text",
            "Check the download (an error page is often saved instead), or save it as plain text.",
        )
    # Half of the bytes of Latin text in UTF-16 are zero, all at odd or all at even places.
    odd, even = head[1:4096:2].count(0), head[:4096:2].count(0)
    if len(head) >= 4 and max(odd, even) > 0.3 * min(len(head), 4096) / 2 and min(odd, even) == 0:
        raise _wide(name, "UTF-16")
    sample = head[:65536]
    if len(sample) - len(sample.translate(None, _CONTROL)) > 0.02 * len(sample) + 1:
        rows = enumerate(sample.split(b"\n"), 1)
        line = next(n for n, row in rows if row.translate(None, _CONTROL) != row)
        raise DataError(
            f"{name}: line {line}: this is binary data, not plain text", "Give plain UTF-8 text."
        )


def _wide(name: str, encoding: str) -> DataError:
    return DataError(
        f"{name}: line 1: the text is encoded in {encoding}, not UTF-8",
        f"Convert it first: iconv -f {encoding} -t UTF-8 FILE > NEW",
    )


def decode_line(row: bytes, name: str, number: int) -> str:
    """One line of bytes, without its `\\n`, as text. Raises DataError."""
    if row.endswith(b"\r"):
        row = row[:-1]
    try:
        line = row.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: line {number}, byte {error.start + 1}: not UTF-8 "
            f"(byte 0x{row[error.start]:02x}; perhaps Latin-1 or Windows-1252)",
            "Convert it first, for example: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW",
        ) from error
    return check_line(line, name, number)


def check_line(line: str, name: str, number: int) -> str:
    """`line` itself, or a DataError where it holds a NUL or is gigantic."""
    if "\0" in line:
        raise DataError(
            f"{name}: line {number}, column {line.index(chr(0)) + 1}: a NUL character",
            "Give plain text; `tr -d '\\000' < FILE > NEW` removes a few NULs from text.",
        )
    if len(line) > LINE_LIMIT:
        raise _gigantic(name, number)
    return line


def _gigantic(name: str, number: int) -> DataError:
    return DataError(
        f"{name}: line {number} is longer than {LINE_LIMIT:,} bytes",
        "Break the text into lines, one sentence or paragraph each, for example with `fold -s`.",
    )


def lines_of(blocks: Iterable[bytes], name: str) -> Iterator[str]:
    """The lines of a file read block by block; memory is bounded by `BLOCK` and `LINE_LIMIT`.

    Raises:
        DataError: empty, blank, binary, NUL, another encoding, HTML, or a gigantic line.
    """
    rest, number, blank, first = b"", 0, True, True
    for block in blocks:
        if first:
            check_head(block, name)
            block = block.removeprefix(_BOM)
            first = False
        *rows, rest = (rest + block).split(b"\n")
        for row in rows:
            number += 1
            line = decode_line(row, name, number)
            blank = blank and not line.strip()
            yield line
        if len(rest) > LINE_LIMIT:
            raise _gigantic(name, number + 1)
    if rest:
        line = decode_line(rest, name, number + 1)
        blank = blank and not line.strip()
        yield line
    if first:
        raise DataError(f"{name}: the file is empty", "Give a file that holds text.")
    if blank:
        raise DataError(f"{name}: holds white space only", "Give a file that holds text.")


def bytes_text(blocks: Callable[[], Iterator[bytes]], name: str) -> Text:
    """The text whose bytes `blocks` gives anew at every call."""

    def digest() -> str:
        whole = hashlib.sha256()
        for block in blocks():
            whole.update(block)
        return whole.hexdigest()

    return Text(name, lambda: lines_of(blocks(), name), digest)


def file_text(path: Path) -> Text:
    """The text of a file. Raises DataError at once where it is missing or no regular file."""
    name = shown(path)
    if not path.exists():
        raise DataError(f"{name}: there is no such file", "Check the path.")
    if path.is_dir():
        raise DataError(
            f"{name}: is a directory, a file is needed here", "Give the file inside it."
        )
    if not path.is_file():
        raise DataError(f"{name}: is not a regular file", "Give a plain text file.")
    return bytes_text(lambda: file_blocks(path), name)


def read_lines(path: Path) -> list[str]:
    """All lines of a text file. Raises DataError (file, line, remedy) as `lines_of` does."""
    return list(file_text(path).lines())


def list_text(name: str, lines: Iterable[str]) -> Text:
    """A text already in memory."""
    kept = tuple(lines)
    return Text(name, lambda: iter(kept))


def joined(texts: list[Text], name: str) -> Text:
    """Several texts, one after the other; the digest is kept where there is but one."""
    if len(texts) == 1:
        return texts[0]

    def lines() -> Iterator[str]:
        for text in texts:
            yield from text.lines()

    return Text(name, lines)


def sliced(text: Text, start: int, stop: int) -> Text:
    """Lines `start` to `stop` (excluded) of a text."""
    return Text(text.name, lambda: islice(text.lines(), start, stop))
