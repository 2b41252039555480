"""The folder of a prepared corpus: written once and whole, opened by memory map.

`train.bin`, `valid.bin`, `test.bin` (token ids, little-endian uint16 or int32), `vocab.json`,
`corpus.json` (the description). It is written as a hidden sibling folder, synced, then renamed: a
corpus is there and complete, or not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnnas.data.text_files import Text, shown
from rnnnas.data.text_sources import SPLITS
from rnnnas.data.vocab import Vocab
from rnnnas.errors import DataError, DiskError

FORMAT = 1
IMAGES = "images"  # the kind of a corpus that holds images; of a text, how it became tokens
DESCRIPTION, VOCABULARY = "corpus.json", "vocab.json"
MIN_LINES, MIN_TOKENS = 2, 100  # of a split: below, no window fits and a perplexity is noise
_STALE = 24 * 3600  # seconds after which a hidden folder is left over from a killed preparation
_DTYPES = ("<u2", "<i4")

Ids = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What the tokens of a split stand for: the denominators of perplexities and bits per byte.

    tokens: all of the split. words: stretches between white space in the raw text. lines: line
    ends. bytes: of the text in UTF-8, one for each line end; None in a corpus of an earlier
    version. spaced: False where the script has no spaces between words, so that `words` means
    little. unknown: tokens that stand for what the vocabulary lacks: what they were is not
    predicted, so that bits per byte are those of a text with less in it.
    """

    tokens: int
    words: int
    lines: int
    bytes: int | None
    spaced: bool
    unknown: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A prepared corpus.

    splits: one read-only memory map of token ids a split, (n,), uint16 or int32.
    sha256: the content hash over the tokens of all splits and the vocabulary.
    """

    name: str
    folder: Path
    description: dict[str, Any]
    vocab: Vocab
    splits: Mapping[str, Ids]
    sha256: str

    def words(self, split: str) -> int:
        """Words and line ends of a split: what a perplexity per word divides by."""
        return int(self.description["splits"][split]["words"])

    def units(self, split: str) -> Units:
        """What the tokens of a split stand for."""
        part = self.description["splits"][split]
        return Units(
            tokens=len(self.splits[split]),
            words=part["words"] - part["lines"],
            lines=part["lines"],
            bytes=part.get("bytes"),
            spaced=not self.description.get("script"),
            unknown=part["unknown"],
        )

    def best_perplexity(self, split: str) -> float | None:
        """The perplexity of the true source, where it is known (`hmm`)."""
        best = self.description.get("best_perplexity")
        return None if best is None else float(best[split])


def content_hash(digests: Mapping[str, str]) -> str:
    """The hash of a corpus out of those of its files: `vocabulary` and each split."""
    listed = {key: digests[key] for key in ("vocabulary", *SPLITS)}
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def write_corpus(
    folder: Path,
    name: str,
    texts: Mapping[str, Text],
    vocab: Vocab,
    about: Mapping[str, Any],
    *,
    replace: bool = False,
) -> None:
    """Encode `texts` and put the corpus at `folder`, all or nothing.

    The same content there already is left as it is.

    Raises:
        DataError: a bad text, a split too small, or other content at `folder` and not `replace`.
        DiskError: the files cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hidden_sibling(folder) as hidden:
            description = _write(hidden, name, texts, vocab, about)
            sha256 = description["sha256"]
            install(hidden, folder, name, lambda: _same_content(folder, name, sha256), replace)
    except OSError as error:
        raise DiskError(
            f"{shown(folder)}: the corpus cannot be written ({error.strerror or error})",
            "Free some space or check the permissions of the folder; nothing was left behind.",
        ) from error


@contextlib.contextmanager
def hidden_sibling(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, gone afterwards unless it was renamed."""
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left)
    hidden = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        hidden.chmod(0o755)
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _write(
    folder: Path, name: str, texts: Mapping[str, Text], vocab: Vocab, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write every file of the corpus into the empty `folder`; returns the description."""
    dtype = _DTYPES[0] if len(vocab) <= 1 << 16 else _DTYPES[1]
    listed = json.dumps(vocab.to_plain(), ensure_ascii=True, separators=(",", ":")).encode()
    write_synced(folder / VOCABULARY, listed)
    splits = {split: _write_split(folder, split, texts[split], vocab, dtype) for split in SPLITS}
    digests = {split: splits[split]["sha256"] for split in SPLITS}
    digests["vocabulary"] = hashlib.sha256(listed).hexdigest()
    description = {
        "format": FORMAT,
        "name": name,
        "kind": vocab.kind,
        "vocabulary": len(vocab),
        "sha256": content_hash(digests),
        "dtype": dtype,
        "splits": splits,
        "vocabulary_sha256": digests["vocabulary"],
        **about,
    }
    write_synced(folder / DESCRIPTION, (json.dumps(description, indent=1) + "\n").encode())
    sync_folder(folder)
    return description


def _write_split(folder: Path, split: str, text: Text, vocab: Vocab, dtype: str) -> dict[str, Any]:
    """Encode one split into its file; returns its part of the description."""
    tokens = lines = words = unknown = size = 0
    whole = hashlib.sha256()
    with (folder / f"{split}.bin").open("wb") as file:
        for chunk in vocab.encode_chunks(text.lines()):
            data = chunk.tokens.astype(dtype).tobytes()
            whole.update(data)
            file.write(data)
            tokens += len(chunk.tokens)
            lines += int(np.count_nonzero(chunk.tokens == vocab.eos))
            words += chunk.words
            unknown += chunk.unknown
            size += chunk.bytes
        file.flush()
        os.fsync(file.fileno())
    if lines < MIN_LINES or tokens < MIN_TOKENS:
        raise DataError(
            f"{text.name}: the {split} split has {lines:,} lines and {tokens:,} tokens; "
            f"at least {MIN_LINES} and {MIN_TOKENS} are needed",
            "Give more text, with line breaks between sentences or paragraphs.",
        )
    return {
        "tokens": tokens,
        "lines": lines,
        "words": words,
        "bytes": size,
        "unknown": unknown,
        "sha256": whole.hexdigest(),
    }


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


def install(hidden: Path, folder: Path, name: str, same: Callable[[], bool], replace: bool) -> None:
    """Rename the finished folder into place, unless the `same` content is there already.

    Raises DataError where other content is there, and not `replace`.
    """
    if not folder.exists():
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
    if same():
        return
    if not replace:
        raise DataError(
            f"corpus {name} exists with other content or damage ({shown(folder)})",
            "Use --replace to prepare it anew, or choose another name.",
        )
    # Two renames: at no time is a half-written corpus visible under the name.
    with hidden_sibling(folder) as old:
        folder.rename(old / "replaced")
        hidden.rename(folder)
        sync_folder(folder.parent)


def _same_content(folder: Path, name: str, sha256: str) -> bool:
    try:
        there = read_corpus(folder, name)
        check_text(there)
    except DataError:
        return False
    return there.sha256 == sha256


def damaged(folder: Path, name: str, reason: str) -> DataError:
    """The error for a prepared corpus that is not as it was written."""
    return DataError(
        f"corpus {name} is damaged: {shown(folder)}: {reason}",
        "Delete that folder and prepare the corpus again.",
    )


def read_file(path: Path, folder: Path, name: str) -> bytes:
    """A small file of the corpus. Raises DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise damaged(folder, name, f"{path.name}: {error.strerror}") from error


def any_description(folder: Path, name: str) -> dict[str, Any]:
    """The description of a corpus of any kind, its format and no more of it checked.

    Raises DataError where it is damaged or of another format.
    """
    try:
        description = dict(json.loads(read_file(folder / DESCRIPTION, folder, name)))
        written, _ = description["format"], description["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, name, f"{DESCRIPTION} is not a description") from error
    if written != FORMAT:
        raise DataError(
            f"corpus {name} was prepared in format {written}, not {FORMAT}",
            f"Delete {shown(folder)} and prepare the corpus again.",
        )
    return description


def read_description(folder: Path, name: str) -> dict[str, Any]:
    """The description of the text in `folder`.

    Raises DataError where it is damaged, or where the corpus holds images.
    """
    description = any_description(folder, name)
    if description["kind"] == IMAGES:
        raise DataError(
            f"corpus {name} holds images, not text",
            "Choose a corpus of text: `rnnnas corpus list` shows what each one holds.",
        )
    try:
        splits = [description["splits"][split] for split in SPLITS]
        complete = (
            description["dtype"] in _DTYPES
            and all(isinstance(part["sha256"], str) for part in (description, *splits))
            and all(
                type(part[k]) is int
                for part in splits
                for k in ("tokens", "lines", "words", "unknown")
            )
        )
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, name, f"{DESCRIPTION} is not a description") from error
    if not complete:
        raise damaged(folder, name, f"{DESCRIPTION} is not a description")
    return description


def read_corpus(folder: Path, name: str) -> Corpus:
    """Open the corpus in `folder`: files are mapped, not read. Raises DataError where damaged."""
    description = read_description(folder, name)
    try:
        vocab = Vocab.from_plain(json.loads(read_file(folder / VOCABULARY, folder, name)))
    except ValueError as error:
        raise damaged(folder, name, f"{VOCABULARY} is not JSON") from error
    except DataError as error:
        raise damaged(folder, name, f"{VOCABULARY}: {error.cause}") from error
    dtype = np.dtype(description["dtype"])
    splits = {}
    for split in SPLITS:
        path, tokens = folder / f"{split}.bin", description["splits"][split]["tokens"]
        try:
            size = path.stat().st_size
            if size != tokens * dtype.itemsize or not tokens:
                raise damaged(
                    folder, name, f"{path.name} has {size:,} bytes, not {tokens:,} tokens"
                )
            splits[split] = np.memmap(path, dtype=dtype, mode="r")
        except OSError as error:
            raise damaged(folder, name, f"{path.name}: {error.strerror}") from error
    return Corpus(
        name=name,
        folder=folder,
        description=description,
        vocab=vocab,
        splits=splits,
        sha256=description["sha256"],
    )


def check_text(corpus: Corpus) -> None:
    """Read every file again and compare its hash. Raises DataError where one byte differs."""
    described = {split: corpus.description["splits"][split]["sha256"] for split in SPLITS}
    described["vocabulary"] = corpus.description.get("vocabulary_sha256")
    files = {split: f"{split}.bin" for split in SPLITS} | {"vocabulary": VOCABULARY}
    for key, file in files.items():
        found = hashlib.sha256(
            read_file(corpus.folder / file, corpus.folder, corpus.name)
        ).hexdigest()
        if found != described[key]:
            raise damaged(corpus.folder, corpus.name, f"{file} was changed since it was prepared")
    if content_hash(described) != corpus.sha256:
        raise damaged(corpus.folder, corpus.name, f"{DESCRIPTION} was changed")
