"""From a file, a folder or a zip archive to the texts of the three splits.

A file is cut into contiguous blocks (`borders`): the first 90 % train, 5 % valid, 5 % test. In a
folder or an archive, files named for a split (`ptb.train.txt`, `wiki.valid.tokens`,
`data/test-0.txt`, or all files in a folder `train/`) are that split, and what is missing of valid
and test is held out of the end of train; where no file is, all text files are joined in natural
order (ch2 before ch10) and cut like one file. Archives are read member by member and never
extracted; what is left out is listed. Nothing but the content of the files decides.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rnnnas.data import borders, columns, compressed, table_kinds
from rnnnas.data.borders import SHARES
from rnnnas.data.borders import SPLITS as SPLITS
from rnnnas.data.text_files import (
    BLOCK,
    NoText,
    Text,
    bytes_text,
    check_file,
    file_blocks,
    joined,
    office_document,
    shown,
)
from rnnnas.errors import DataError

SUFFIXES = (".txt", ".text", ".tokens", ".md", ".markdown", ".rst", ".raw", ".train", ".valid",
            ".test", ".dev")  # fmt: skip

# As for single compressed files, but of all members that are read.
ZIP_LIMIT = compressed.LIMIT
ZIP_RATIO, ZIP_LARGE = compressed.RATIO, compressed.LARGE

# What zipfile raises for truncated, altered or exotically packed members.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, KeyError,
    ValueError, OSError,
)  # fmt: skip

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a corpus comes from: a name for the description, and the texts of its splits."""

    name: str
    splits: Mapping[str, Text]
    ignored: tuple[str, ...] = ()  # files of a folder or archive that are left out
    notes: tuple[str, ...] = ()  # what to tell the user


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How files become text: encoding: as `encodings.check_encoding` gives it; column: of JSON
    lines, CSV, TSV or parquet."""

    encoding: str | None = None
    column: str | None = None

    def text(self, blocks: Callable[[], Iterator[bytes]], called: str, file: str) -> Text:
        """The text of a file, whose bytes `blocks` gives anew at every call."""
        table = self.column is not None
        text = bytes_text(blocks, called, encoding=self.encoding, table=table)
        return text if self.column is None else columns.column_text(text, file, self.column)

    def reads(self, name: str) -> bool:
        """Whether a file of a folder or archive is text, by its name."""
        if self.column is not None:
            return table_kinds.is_table(name)
        return PurePosixPath(compressed.plain_name(name)).suffix.lower() in SUFFIXES


def natural(name: str) -> tuple[Any, ...]:
    """A key that sorts numbers inside names by value: ch2 before ch10."""
    parts = []
    for part in filter(None, re.split(r"(\d+)", name)):
        digits = part.lstrip("0")
        parts.append((0, len(digits), digits) if part.isdecimal() else (1, 0, part))
    return (parts, name)


def split_of(name: str) -> str | None:
    """The split that a file's path stands for, or None.

    The file's own name decides (`wiki.train.tokens`); else a folder named exactly like a split.
    Words count, not substrings: `latest.txt` is no test split.
    """
    path = PurePosixPath(name)
    words = _split_words(path)
    words += [part for part in reversed(path.parts[:-1]) if part.lower() in SPLIT_WORDS]
    return SPLIT_WORDS[words[0].lower()] if words else None


def _split_words(path: PurePosixPath) -> list[str]:
    """The words of splits in a file's own name, which marks part from the rest, not spaces.

    `strangers on a train.txt` is a title.
    """
    name = path.name.lower()
    found = []
    for match in re.finditer(r"[a-z]+", name):
        before, after = name[: match.start()], name[match.end() :]
        if match[0] in SPLIT_WORDS and not before.endswith(" ") and not re.match(r" +\D", after):
            found.append(match[0])
    return found


def missing_train(name: str, present: Sequence[str]) -> DataError:
    """The error for a source that has valid or test, but nothing to train on."""
    return DataError(
        f"{name}: no train split (present: {', '.join(present)})",
        "Add a file (such as NAME.train.txt) for train, or give one text, which is cut "
        f"{'/'.join(map(str, SHARES))} into train, valid and test.",
    )


def open_source(path: Path, reading: Reading | None = None) -> Source:
    """The source at `path`. Raises DataError where it holds no usable text."""
    reading = reading or Reading()
    if path.is_dir():
        return _folder(path, reading)
    check_file(path)
    if path.suffix.lower() == ".zip" and not _office(path):
        return _archive(path, reading)
    if path.suffix.lower() == ".parquet":
        text = columns.parquet_text(path.parent, path.name, reading.column)
    else:
        text = _file(path, path.name, reading)
    splits, note = borders.cut([text], shown(path))
    return Source(name=path.name, splits=splits, notes=(note,) if note else ())


def _office(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return bool(office_document(file.read(BLOCK)))
    return False


def parquet_files(path: Path) -> list[Path]:
    """The parquet files anywhere in the folder `path`, sorted; none where it is no folder.

    Raises DataError as `files_under` does.
    """
    if not path.is_dir():
        return []
    return [path / name for name in files_under(path) if name.endswith(".parquet")]


def files_under(path: Path) -> list[str]:
    """The files anywhere in a folder, relative and sorted; hidden ones left out.

    Raises:
        DataError: a folder that cannot be listed, or one that is a link: what it leads to would
            be left out of a corpus without a word.
    """
    found = []

    def fail(error: OSError) -> None:
        raise DataError(
            f"{shown(error.filename or path)}: cannot be listed ({error.strerror})",
            "Check its permissions.",
        ) from error

    for folder, inner, files in os.walk(path, onerror=fail):
        inner[:] = [name for name in inner if not hidden(name)]
        for name in inner:
            if os.path.islink(os.path.join(folder, name)):
                raise DataError(
                    f"{shown(os.path.join(folder, name))}: is a link to a folder, which is not "
                    "followed",
                    "Put the folder itself there.",
                )
        for name in files:
            if not hidden(name) and not os.path.exists(os.path.join(folder, name)):
                raise DataError(
                    f"{shown(os.path.join(folder, name))}: is a link to a file that is not there",
                    "Put the file itself there, or remove the link.",
                )
        here = Path(folder).relative_to(path)
        found += [(here / name).as_posix() for name in files if not hidden(name)]
    return sorted(found)


def _folder(folder: Path, reading: Reading) -> Source:
    found = files_under(folder)
    if reading.encoding is None and any(name.endswith(".parquet") for name in found):
        wanted = [name for name in found if name.endswith(".parquet")]
        texts = {name: columns.parquet_text(folder, name, reading.column) for name in wanted}
    else:
        plain = set(found)  # a.txt.gz beside a.txt is the same text again
        wanted = [
            name
            for name in found
            if reading.reads(name)
            and (folder / name).is_file()
            and (compressed.plain_name(name) == name or compressed.plain_name(name) not in plain)
        ]
        texts = {name: _file(folder / name, name, reading) for name in wanted}
    left = [name for name in found if name not in texts]
    return _assemble(folder.resolve().name, shown(folder), texts, left, reading)


def _file(path: Path, name: str, reading: Reading) -> Text:
    return reading.text(lambda: file_blocks(path), shown(path), name)


class _Opened:
    """An archive that stays open as long as its texts are: opening it lists all members anew."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        weakref.finalize(self, archive.close)


def _archive(path: Path, reading: Reading) -> Source:
    name = shown(path)
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise DataError(
            f"{name}: not a zip archive that can be read ({error})", "Check or repeat the download."
        ) from error
    opened = _Opened(archive)
    # The last of several members of one name wins, as when an archive is unpacked.
    members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    seen = [name for name in sorted(members) if not any(map(hidden, PurePosixPath(name).parts))]
    wanted = [name for name in seen if reading.reads(name) and compressed.plain_name(name) == name]
    total = sum(members[member].file_size for member in wanted)
    if total > ZIP_LIMIT:
        raise DataError(
            f"{name}: unpacks to {total:,} bytes, more than {ZIP_LIMIT:,}",
            "Unpack what you need of it and give the folder.",
        )
    texts = {}
    for member in wanted:
        info, called = members[member], f"{name}!{shown(member)}"
        if info.file_size > max(ZIP_LARGE, ZIP_RATIO * info.compress_size):
            raise DataError(
                f"{called}: {info.file_size:,} bytes in {info.compress_size:,} are no text",
                "Give an archive of plain text.",
            )
        if info.flag_bits & 1:
            raise DataError(f"{called}: is encrypted", "Unpack it and give the folder.")
        texts[member] = _member_text(opened, member, called, reading)
    left = [member for member in seen if member not in texts]
    return _assemble(path.name, name, texts, left, reading)


def _member_text(opened: _Opened, member: str, called: str, reading: Reading) -> Text:
    """A member's text. zipfile reads no more than the size that the archive declares for it."""

    def blocks() -> Iterator[bytes]:
        try:
            with opened.archive.open(member) as file:
                while block := file.read(BLOCK):
                    yield block
        except _DAMAGED as error:
            raise DataError(
                f"{called}: is damaged ({error})", "Check or repeat the download."
            ) from error

    return reading.text(blocks, called, member)


def hidden(part: str) -> bool:
    return part.startswith((".", "__MACOSX")) and part != ".."


def _nothing(called: str, left: Sequence[str], reading: Reading) -> DataError:
    """The error for a folder or archive without a file that is read."""
    if reading.column is not None:
        return DataError(
            f"{called}: holds no {', '.join(table_kinds.SUFFIXES)} and no parquet",
            "Leave out --column for plain text.",
        )
    if tables := [name for name in left if table_kinds.is_table(name)]:
        return DataError(
            f"{called}: holds no text file, but tables ({shown(tables[0])})",
            "Name the column of the text: --column text",
        )
    seen = f"; there are {_listed(left)}" if left else ""
    return DataError(
        f"{called}: holds no text file ({', '.join(SUFFIXES)}) and no parquet{seen}",
        (
            "Make plain text of the pages first, for example: pandoc -t plain -o NEW.txt FILE"
            if any(name.lower().endswith((".html", ".htm", ".xhtml")) for name in left)
            else "Give a text file, a folder or zip archive of text files, or a folder of class "
            "folders that hold images."
        ),
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def _assemble(
    name: str, called: str, texts: Mapping[str, Text], left: Sequence[str], reading: Reading
) -> Source:
    """The splits out of the text files of a folder or archive, by relative path.

    Args:
        left: the other files, which are left out.
    """
    if not texts:
        raise _nothing(called, left, reading)
    texts = {path: texts[path] for path in sorted(texts, key=natural)}
    parts: dict[str, list[Text]] = {split: [] for split in SPLITS}
    named: dict[str, list[str]] = {split: [] for split in SPLITS}  # by the file's own name
    ignored = []
    for path, text in texts.items():
        split = split_of(path)
        if split is None:
            ignored.append(path)
            continue
        parts[split].append(text)
        if _split_words(PurePosixPath(path)):
            named[split].append(path)
    present = [split for split in SPLITS if parts[split]]
    if not present or (len(present) == 1 and ignored) or _titles(texts, ignored):
        # Titles with such a word in them (`a-train-journey.txt`) make no splits.
        return _cut(name, called, texts, left)
    for split, paths in named.items():
        if len({re.sub(r"\d+", "0", path) for path in paths}) > 1:
            raise DataError(
                f"{called}: several texts are named {split}: {', '.join(map(shown, paths))}",
                "Put the files of one text into a folder of their own. Parts of one differ in "
                "numbers alone (train-0.txt, train-1.txt), or lie in a folder (train/).",
            )
    for split in present:
        blank = [text for text in parts[split] if _is_blank(text)]
        if len(blank) < len(parts[split]):
            parts[split] = [text for text in parts[split] if text not in blank]
            ignored += [path for path, text in texts.items() if text in blank]
    given = {split: joined(parts[split], f"{called} ({split})") for split in present}
    splits, notes = assembled(called, given)
    return Source(name=name, splits=splits, ignored=(*ignored, *left), notes=tuple(notes))


def _titles(texts: Mapping[str, Text], unnamed: Sequence[str]) -> bool:
    """Whether the names of splits among many texts are titles (`docs/training.md`): where the texts
    that name none are more, and hold more.
    """
    if 2 * len(unnamed) <= len(texts):
        return False
    sizes = {path: sum(map(len, text.lines())) for path, text in texts.items()}
    return 2 * sum(sizes[path] for path in unnamed) > sum(sizes.values())


def _is_blank(text: Text) -> bool:
    try:
        return not any(line.strip() for line in text.lines())
    except NoText:
        return True


def _cut(name: str, called: str, texts: Mapping[str, Text], left: Sequence[str]) -> Source:
    blank = [path for path, text in texts.items() if _is_blank(text)]
    if len(blank) < len(texts):
        texts = {path: text for path, text in texts.items() if path not in blank}
        left = (*blank, *left)
    splits, note = borders.cut(list(texts.values()), called)
    notes = [f"{len(texts):,} files were joined: {_listed(list(texts))}"] if len(texts) > 1 else []
    return Source(
        name=name, splits=splits, ignored=tuple(left), notes=(*notes, *([note] if note else []))
    )


def assembled(called: str, given: Mapping[str, Text]) -> tuple[dict[str, Text], list[str]]:
    """All splits out of those that a source has; and what to tell the user.

    From train alone a text is cut as any other; a missing valid or test is the end of train.

    Raises DataError where there is no train split.
    """
    if "train" not in given:
        raise missing_train(called, list(given))
    if len(given) == 1:
        splits, note = borders.cut([given["train"]], called)
        return splits, [note] if note else []
    found, notes = borders.all_broken(given)
    missing = [split for split in SPLITS if split not in found]
    if missing:
        found |= borders.hold_out(found["train"], missing)
        notes.append(f"{missing[0]} is the last {SHARES[1]} % of train, as there was none")
    return {split: found[split] for split in SPLITS}, notes
