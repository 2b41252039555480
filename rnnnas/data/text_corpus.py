"""The folder of a prepared corpus: written once and whole, opened by memory map.

`train.bin`, `valid.bin`, `test.bin` (token ids, little-endian uint16 or int32), `vocab.json`,
`corpus.json` (the description). It is written as a hidden sibling folder, synced, then renamed: a
corpus is there and complete, or not there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnnas.data.earlier import UNSEALED, contradiction
from rnnnas.data.folders import (
    DESCRIPTION,
    VOCABULARY,
    foreign,
    foreign_part,
    hidden_sibling,
    install,
    sync_folder,
    write_synced,
)
from rnnnas.data.text_files import Text, shown
from rnnnas.data.text_sources import SPLITS
from rnnnas.data.vocab import Vocab
from rnnnas.errors import DataError, DiskError, check_no_pipe

FORMAT = 2
EARLIER = 1  # without a digest of the description
SEAL = "description_sha256"
IMAGES = "images"  # the kind of a corpus that holds images; of a text, how it became tokens
MIN_LINES, MIN_TOKENS = 2, 100  # of a split: below, no window fits and a perplexity is noise
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

    def word_perplexity(self, nats: float) -> float:
        """exp(nats · tokens / (words + lines)), of a mean loss in nats a token: all nats of the
        text shared out over its words and line ends, as PTB's and WikiText's perplexity is."""
        exponent = nats * self.tokens / max(self.words + self.lines, 1)
        return math.exp(exponent) if exponent < 700 else math.inf

    def bits_per_byte(self, nats: float) -> float | None:
        """nats · tokens / (ln 2 · bytes), of a mean loss in nats a token; None without bytes."""
        return None if not self.bytes else nats * self.tokens / (math.log(2) * self.bytes)


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
            same = partial(_same_content, folder, name, description, counted=replace)
            install(hidden, folder, name, same, replace)
    except OSError as error:
        raise DiskError(
            f"{shown(folder)}: the corpus cannot be written ({error.strerror or error})",
            "Free some space or check the permissions of the folder; nothing was left behind.",
        ) from error


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
    description = sealed(description)
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
            "Give more text (2,000 words at least where it is to be cut), with line breaks between "
            "sentences or paragraphs.",
        )
    return {
        "tokens": tokens,
        "lines": lines,
        "words": words,
        "bytes": size,
        "unknown": unknown,
        "sha256": whole.hexdigest(),
    }


def _same_content(
    folder: Path, name: str, description: Mapping[str, Any], *, counted: bool
) -> bool:
    """Whether the corpus in a folder has the same tokens and vocabulary; `counted`: and the same
    words, bytes and unknown words, which differ where the texts do in what tokens do not show.
    """
    try:
        there = read_corpus(folder, name)
        check_text(there)
    except DataError:
        return False
    same = there.sha256 == description["sha256"]
    return same and (not counted or there.description["splits"] == description["splits"])


def seal_of(description: Mapping[str, Any]) -> str:
    """SHA-256 over everything that a description says but this."""
    said = {key: value for key, value in description.items() if key != SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def sealed(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description with its own digest. It must be what JSON gives back."""
    plain = json.loads(json.dumps(description))
    return {**plain, SEAL: seal_of(plain)}


def damaged(folder: Path, name: str, reason: str) -> DataError:
    """The error for a prepared corpus that is not as it was written, or is perhaps none of ours."""
    if foreign_part(folder):
        return foreign(folder, name, reason)
    return DataError(
        f"corpus {name} is damaged: {shown(folder)}: {reason}",
        f"Prepare it again from its source: rnnnas corpus add {name} --from SOURCE --replace, or "
        f"(built-in ones) rnnnas corpus rm {name}.",
    )


def read_file(path: Path, folder: Path, name: str) -> bytes:
    """A small file of the corpus. Raises DataError where it cannot be read."""
    try:
        check_no_pipe(path)
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, folder, name, error) from error


def unreadable(path: Path, folder: Path, name: str, error: OSError) -> DataError:
    """The error for a file that is missing, or that cannot be read for now."""
    if isinstance(error, FileNotFoundError):
        return damaged(folder, name, f"{path.name} is missing")
    return DataError(
        f"corpus {name}: {shown(path)} cannot be read ({error.strerror or error})",
        "The corpus itself may be whole: check permissions, open files and the disk, then try "
        "again.",
    )


def any_description(folder: Path, name: str) -> dict[str, Any]:
    """The description of a corpus of any kind: its format and its digest checked, no more.

    Raises DataError where it is damaged, of another format, or where `folder` is none of ours.
    """
    if not os.path.lexists(folder / DESCRIPTION):
        raise foreign(folder, name, foreign_part(folder) or f"it has no {DESCRIPTION}")
    try:
        description = dict(json.loads(read_file(folder / DESCRIPTION, folder, name)))
        written, _ = description["format"], description["kind"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(folder, name, f"{DESCRIPTION} is not a description") from error
    if written not in (FORMAT, EARLIER) or type(written) is not int:
        raise DataError(
            f"corpus {name} ({shown(folder)}) was prepared in format {shown(written)}, this "
            f"version reads {EARLIER} and {FORMAT}",
            "Use the version of rnnnas that prepared it, or prepare it again from its source with "
            "--replace.",
        )
    seal = description.get(SEAL)
    if (seal is None) != (written == EARLIER) or seal not in (None, seal_of(description)):
        raise damaged(folder, name, f"{DESCRIPTION} was changed since it was prepared")
    if seal is None:
        notes = [description.get("note"), UNSEALED]
        description["note"] = "; ".join(str(note) for note in notes if note)
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
    except (ValueError, RecursionError) as error:
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
            raise unreadable(path, folder, name, error) from error
    if (vocab.kind, len(vocab)) != (description["kind"], description.get("vocabulary")):
        raise damaged(folder, name, f"{VOCABULARY} is not the one that {DESCRIPTION} describes")
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
    if corpus.description["format"] == EARLIER and (
        wrong := contradiction(corpus.name, corpus.description, corpus.vocab, corpus.splits)
    ):
        raise damaged(corpus.folder, corpus.name, f"{DESCRIPTION} does not fit the tokens: {wrong}")
