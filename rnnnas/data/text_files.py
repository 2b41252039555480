"""Reading source text safely: line by line, in bounded memory, refusing what is not plain text.

Text is UTF-8, or of the encoding that the user names. Lines end with `\\n` or `\\r\\n`, or with
`\\r` in a file that hardly has `\\n`; other separators (form feed, U+2028, a lone `\\r`) are white
space inside a line, as for Python's text files and `str.split`. Byte-order marks are left out,
wherever files were joined: they are an editor's marks and would become part of a word. A line too
long to be one is broken at sentence ends. Everything else that is not plain text is refused with
the file, the line and a remedy.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rnnnas.data import compressed, encodings, table_kinds
from rnnnas.errors import DataError

# Bytes. The longest line of WikiText-103 has about 20,000; a million without a line break is a
# file that lost its line structure, and is broken at sentence ends or spaces.
LINE_LIMIT = 1_000_000
TABLE_LIMIT = 64_000_000  # of a row of JSON lines or CSV, which may hold a document
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
    (b"\x1f\x8b", "a gzip file inside another", "unpack it first: gunzip FILE"),
    (b"BZh", "a bzip2 file inside another", "unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ", "an xz file inside another", "unpack it first: unxz FILE"),
    (b"{\\rtf", "an RTF document", "save it as plain text (UTF-8) first"),
    (b"\xd0\xcf\x11\xe0", "a Word document (.doc)", "save it as plain text (UTF-8) first"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file it stands for",
        "fetch the file itself: git lfs pull",
    ),
    (b"PAR1", "a parquet file", "give it a name that ends in .parquet"),
    (b"%PDF", "a PDF document", "save its text as plain UTF-8 text first"),
    (b"%!PS", "a PostScript document", "save its text as plain UTF-8 text first"),
    (b"\x89PNG", "a PNG image", "give plain UTF-8 text"),
    (b"\xff\xd8\xff", "a JPEG image", "give plain UTF-8 text"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive", "unpack it and give the folder"),
    (b"SQLite format 3", "an SQLite database", "export the text as plain UTF-8 text first"),
)
_HTML = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I
)
_XML = re.compile(rb"\s*<\?xml\b", re.I)
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
    visible = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
    return str(name).encode("utf-8", "backslashreplace").decode().translate(visible)


def file_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked, about `BLOCK` at a time. Raises DataError."""
    return compressed.file_blocks(path, shown(path), BLOCK)


_OFFICE = (
    (b"word/", "a Word document (.docx)"),
    (b"opendocument.text", "an OpenDocument text (.odt)"),
    (b"epub+zip", "an e-book (.epub)"),
    (b"xl/", "a spreadsheet (.xlsx)"),
)


_OFFICE_SUFFIXES = {
    ".docx": "a Word document (.docx)", ".odt": "an OpenDocument text (.odt)",
    ".epub": "an e-book (.epub)", ".xlsx": "a spreadsheet (.xlsx)", ".pptx": "slides (.pptx)",
    ".ods": "a spreadsheet (.ods)", ".pages": "a Pages document (.pages)",
}  # fmt: skip


def office_document(head: bytes, name: str = "") -> str:
    """What kind of document a zip archive is by its name or its first bytes, or empty where it is
    none.
    """
    if head.startswith(b"PK\x03\x04"):
        for suffix, what in _OFFICE_SUFFIXES.items():
            if name.lower().endswith(suffix):
                return what
    if head.startswith(b"PK\x03\x04") and (b"[Content_Types]" in head or b"mimetype" in head[:60]):
        return next((what for mark, what in _OFFICE if mark in head), "an office document")
    return ""


def check_head(head: bytes, name: str, *, table: bool = False) -> None:
    """Refuse what the first bytes of a file show not to be UTF-8 text, a DataError.

    Args:
        table: whether JSON lines and CSV are what is wanted.
    """
    if what := office_document(head, name):
        raise DataError(
            f"{name}: line 1: this is {what}, not plain text",
            "Save it as plain text (UTF-8) first, and give that file.",
        )
    if head[257:262] == b"ustar":
        raise DataError(
            f"{name}: line 1: this is a tar archive, not plain text",
            "Unpack it and give the folder: tar -xf FILE",
        )
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
    if _XML.match(head[:4096].removeprefix(_BOM)):
        raise DataError(
            f"{name}: line 1: this is an XML document, not plain text",
            "Save its text alone, without the marks between < and >, as plain UTF-8 text.",
        )
    if not table:
        _check_table(head, name)
    # Half of the bytes of Latin text in UTF-16 are zero, all at odd or all at even places.
    odd, even = head[1:4096:2].count(0), head[:4096:2].count(0)
    if len(head) >= 4 and max(odd, even) > 0.3 * min(len(head), 4096) / 2 and min(odd, even) == 0:
        raise _wide(name, "UTF-16LE" if odd > even else "UTF-16BE")
    sample = head[:65536]
    if len(sample) - len(sample.translate(None, _CONTROL)) > 0.02 * len(sample) + 1:
        order = encodings.byte_order(sample)  # of a script whose letters have no zero bytes
        if order and _decodes(sample[: len(sample) & ~1], f"utf-16-{order}"):
            raise _wide(name, f"UTF-16{order.upper()}")
        rows = enumerate(sample.split(b"\n"), 1)
        line = next(n for n, row in rows if row.translate(None, _CONTROL) != row)
        raise DataError(
            f"{name}: line {line}: this is binary data, not plain text", "Give plain UTF-8 text."
        )


def _decodes(data: bytes, encoding: str) -> bool:
    """Whether bytes, perhaps cut inside a character, are printable text of an encoding."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)


def _check_table(head: bytes, name: str) -> None:
    """Refuse JSON and CSV, whose marks and names would be learned as if they were text."""
    begin = head[:200_000].removeprefix(_BOM)
    if re.match(rb"\s*\[\s*\{\s*\"", begin[:4096]):
        raise _array(name)
    lines = begin.decode("utf-8", "replace").splitlines()[:6]
    if len(begin) < len(head) or len(lines) == 6:
        lines = lines[:-1]  # perhaps cut
    lines = [line for line in lines if line.strip()]
    found, kind = [], ""
    if lines and lines[0].lstrip().startswith("{"):
        found, kind = table_kinds.json_columns(lines), "JSON lines"
    elif lines and (len(lines) > 2 or table_kinds.is_table(name)):
        found, kind = table_kinds.csv_columns(lines), "CSV with a header"
        if not found and table_kinds.is_table(name):
            found = lines[0].split(table_kinds.delimiter_of(lines[0]))
    if found:
        listed = ", ".join(map(shown, found[:20]))
        usual = next((c for c in table_kinds.USUAL if c in found), found[0])
        raise DataError(
            f"{name}: this is {kind}, not plain text; columns: {listed}",
            f"`corpus add` reads one column of it: --column {shown(usual)}",
        )
    if table_kinds.are_arrays(lines):
        raise _array(name)


def _array(name: str) -> DataError:
    return DataError(
        f"{name}: this is a JSON array, not plain text",
        "Make it one object a line (jq -c '.[]' FILE > NEW.jsonl) and add that with --column.",
    )


def _wide(name: str, encoding: str) -> DataError:
    return DataError(
        f"{name}: line 1: the text is encoded in {encoding}, not UTF-8",
        f"Give --encoding {encoding.lower()}, or convert it: "
        f"iconv -f {encoding} -t UTF-8 FILE > NEW",
    )


class NotUtf8(DataError):
    """A line that is not UTF-8."""


class NoText(DataError):
    """A file without any text: one of many may be so."""


def decode_line(row: bytes, name: str, number: int) -> str:
    """One line of bytes, without its `\\n`, as text. Raises DataError."""
    if row.endswith(b"\r"):
        row = row[:-1]
    try:
        line = row.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8(
            f"{name}: line {number}, byte {error.start + 1}: not UTF-8 "
            f"(byte 0x{row[error.start]:02x})",
            "Convert it first, for example: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW",
        ) from error
    return check_line(without_marks(line) if "\ufeff" in line else line, name, number)


_MARK = re.compile(r"\ufeff(?!\s|$)|(?<!\s)\ufeff")


def without_marks(line: str) -> str:
    """A line without the byte-order marks that joined files leave inside it.

    One that stands alone between spaces stays: WikiText-2 has it as a word.
    """
    return _MARK.sub("", line)


def check_line(line: str, name: str, number: int) -> str:
    """`line` itself, or a DataError where it holds a NUL."""
    if "\0" in line:
        raise DataError(
            f"{name}: line {number}, column {line.index(chr(0)) + 1}: a NUL character",
            "Give plain text; `tr -d '\\000' < FILE > NEW` removes a few NULs from text.",
        )
    return line


def _gigantic(name: str, number: int, limit: int) -> DataError:
    return DataError(
        f"{name}: line {number} is longer than {limit:,} bytes, and has no space to break it at",
        "Break the text into lines, one sentence or paragraph each.",
    )


_ENDS = (b". ", b"! ", b"? ", b".\t", "\u3002".encode(), "\uff01".encode(), "\uff1f".encode())


def broken_long(row: bytes, name: str, number: int) -> Iterator[bytes]:
    """A row in pieces of at most `LINE_LIMIT` bytes, cut after sentences, else at spaces.

    Raises DataError where there is nothing to cut at.
    """
    while len(row) > LINE_LIMIT:
        head = row[:LINE_LIMIT]
        cut = max(head.rfind(end) + len(end) if end in head else 0 for end in _ENDS)
        cut = cut or head.rfind(b" ") + 1
        if not cut:
            raise _gigantic(name, number, LINE_LIMIT)
        yield row[:cut].rstrip(b" ")
        row = row[cut:]
    yield row


def lines_of(blocks: Iterable[bytes], name: str, *, table: bool = False) -> Iterator[str]:
    """The lines of a file read block by block; memory is bounded by `BLOCK` and `LINE_LIMIT`.

    Args:
        table: whether it is JSON lines or CSV, whose rows stay whole.

    Raises:
        DataError: empty, blank, binary, NUL, another encoding, HTML, or a gigantic line.
    """
    rest, number, blank, first, returns = b"", 0, True, True, False

    def decoded(pieces: Iterable[bytes]) -> Iterator[str]:
        nonlocal blank
        for piece in pieces:
            line = decode_line(piece, name, number)
            blank = blank and not line.strip()
            yield line

    for block in blocks:
        if first and block:
            check_head(block, name, table=table)
            block = block.removeprefix(_BOM)
            lone = block[:-1].count(b"\r") - block.count(b"\r\n")
            returns = lone > 10 * block.count(b"\n")
            first = False
        if returns:  # as old Macs ended lines
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *rows, rest = (rest + block).split(b"\n")
        for row in rows:
            number += 1
            if len(row) <= LINE_LIMIT or table:
                line = decode_line(row, name, number)
                blank = blank and not line.strip()
                yield line
            else:
                yield from decoded(broken_long(row, name, number))
        if table and len(rest) > TABLE_LIMIT:
            raise _gigantic(name, number + 1, TABLE_LIMIT)
        if not table and len(rest) > LINE_LIMIT:
            number += 1
            *pieces, rest = broken_long(rest, name, number)
            yield from decoded(pieces)
            number -= 1
    number += 1
    if rest:
        yield from decoded((rest,))
    if first:
        raise NoText(f"{name}: the file is empty", "Give a file that holds text.")
    if blank:
        raise NoText(f"{name}: holds white space only", "Give a file that holds text.")


def bytes_text(
    blocks: Callable[[], Iterator[bytes]],
    name: str,
    *,
    encoding: str | None = None,
    table: bool = False,
) -> Text:
    """The text whose bytes `blocks` gives anew at every call.

    Args:
        encoding: as `encodings.check_encoding` gave it; None: UTF-8.
        table: whether it is JSON lines or CSV.
    """

    def digest() -> str:
        whole = hashlib.sha256()
        for block in blocks():
            whole.update(block)
        return whole.hexdigest()

    def lines() -> Iterator[str]:
        read = blocks() if encoding is None else encodings.recoded(blocks(), encoding, name)
        try:
            yield from lines_of(read, name, table=table)
        except NotUtf8 as error:
            raise DataError(error.cause, encodings.advice(blocks())) from error

    return Text(name, lines, digest)


def check_file(path: Path) -> None:
    """Raises DataError, with what may have been meant, where `path` is no regular file."""
    name = shown(path)
    if not path.exists():
        raise DataError(f"{name}: there is no such file", _meant(path))
    if path.is_dir():
        raise DataError(
            f"{name}: is a directory, a file is needed here", "Give the file inside it."
        )
    if not path.is_file():
        raise DataError(f"{name}: is not a regular file", "Give a plain text file.")


def _meant(path: Path) -> str:
    """What may have been meant by a path that does not exist."""
    import difflib
    import os

    if str(path).startswith("~") and os.path.exists(os.path.expanduser(path)):
        return f"Write the folder out: {shown(os.path.expanduser(path))}"
    if path.is_symlink():
        return f"It is a link to {shown(os.readlink(path))}, which is not there."
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {shown(folder)} either: check the path."
    with contextlib.suppress(OSError):
        there = sorted(entry.name for entry in os.scandir(folder))[:10_000]
        close = difflib.get_close_matches(path.name, there, n=3, cutoff=0.6)
        if close:
            return f"Nearest in that folder: {', '.join(map(shown, close))}."
    return "Check the path."


def file_text(path: Path, *, encoding: str | None = None, table: bool = False) -> Text:
    """The text of a file. Raises DataError at once where it is missing or no regular file."""
    check_file(path)
    return bytes_text(lambda: file_blocks(path), shown(path), encoding=encoding, table=table)


def read_lines(path: Path, encoding: str | None = None) -> list[str]:
    """All lines of a text file. Raises DataError (file, line, remedy) as `lines_of` does, and
    UsageError where the encoding is not known.
    """
    known = None if encoding is None else encodings.check_encoding(encoding)
    return list(file_text(path, encoding=known).lines())


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
