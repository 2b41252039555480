"""Corpora by name: prepare once, open instantly, describe.

Token streams: ids of a whole split, `<eos>` after every line, blank ones too. PTB and WikiText take
every word of all three splits, the benchmark's convention; other text takes its vocabulary from
train alone. Pre-tokenised text (`text_kind`) becomes words, raw text sentencepieces, unless the
user says otherwise.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from dataclasses import replace as with_changes
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from rnnnas.data import hub, pydocs, synthetic
from rnnnas.data.benchmarks import recognise
from rnnnas.data.encodings import check_encoding
from rnnnas.data.folders import DESCRIPTION, check_apart, hidden_sibling, recover, remove
from rnnnas.data.image_corpus import ImageCorpus, check_images, images_info, read_images
from rnnnas.data.image_sources import ImageSource, image_folder
from rnnnas.data.image_tables import image_dataset, image_parquet
from rnnnas.data.image_writer import write_images
from rnnnas.data.ngrams import bigram_perplexity, unigram_perplexity
from rnnnas.data.text_corpus import (
    IMAGES,
    Corpus,
    any_description,
    check_text,
    read_corpus,
    read_description,
    write_corpus,
)
from rnnnas.data.text_files import Text, shown
from rnnnas.data.text_kind import TextKind, kind_of
from rnnnas.data.text_sources import SPLITS, Reading, Source, open_source, parquet_files
from rnnnas.data.vocab import (
    EOS,
    RULES,
    UNK,
    Vocab,
    benchmark_words,
    frequent_words,
    pieces_for,
    sentence_pieces,
)
from rnnnas.data.yardsticks import unknown_share
from rnnnas.errors import DataError, DiskError, UsageError, nearest
from rnnnas.home import corpora_folder

__all__ = [
    "SPLITS",
    "Corpus",
    "ImageCorpus",
    "VocabOptions",
    "add_corpus",
    "check_unchanged",
    "corpora_folder",
    "corpus_info",
    "fetch_corpus",
    "list_corpora",
    "open_any",
    "open_corpus",
    "open_images",
    "remove_corpus",
]

_BUILT_IN: Mapping[str, Callable[[], tuple[dict[str, Text], Vocab, dict[str, Any]]]] = {
    pydocs.NAME: pydocs.pydocs,
    synthetic.NAME: synthetic.hmm_corpus,
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


KINDS = ("auto", "words", "sentencepiece", "characters", "bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabOptions:
    """How a text becomes tokens.

    kind: one of `KINDS`; `auto`: words for pre-tokenised text, sentencepieces for raw text.
    size: entries of the vocabulary, `<eos>` and `<unk>` included; 0: for benchmarks all words of
    all splits, else the words (or characters) that train holds twice, 30,000 at most;
    sentencepieces by the length of the text, or as many as it supports. lower: lower-case the text
    first. like: the name of a prepared corpus whose vocabulary is taken instead of one of its own,
    so that a model of that corpus can be tuned on this one.
    """

    kind: str = "auto"
    size: int = 0
    lower: bool = False
    like: str = ""

    def __post_init__(self) -> None:
        if self.like and (self.kind != "auto" or self.size or self.lower):
            raise UsageError(
                f"the vocabulary of {self.like} is what it is",
                "Leave out --vocab, --vocab-size and --lower beside --vocab-of.",
            )
        if self.kind not in KINDS:
            raise UsageError(
                f"vocabulary {self.kind!r} is not known{nearest(self.kind, list(KINDS))}",
                f"Choose one of: {', '.join(KINDS)}.",
            )
        if self.size < 0 or self.size in (1, 2):
            raise UsageError(
                f"a vocabulary of {self.size} entries holds no words", "Give 3 or more."
            )
        if self.kind == "bytes" and self.size not in (0, 256):
            raise UsageError(
                f"a vocabulary of {self.size} bytes: there are 256", "Leave out --vocab-size."
            )


def folder_name(name: str, config: str | None = None) -> str:
    """The folder of a corpus: its name; for the hub's `owner/name`, `owner--name[--config]`.

    Raises UsageError for a name that is not a safe folder name.
    """
    safe = "--".join((*name.split("/"), *([config] if config else [])))
    if not _NAME.fullmatch(safe) or name.count("/") > 1:
        raise UsageError(
            f"{name!r} cannot be the name of a corpus",
            "Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    return safe


def open_corpus(name: str) -> Corpus:
    """Open a prepared corpus; `pydocs` and `hmm` are prepared at first use.

    Raises:
        DataError: unknown, not prepared, or damaged.
        DiskError: a built-in corpus cannot be written.
    """
    try:
        folder = corpora_folder() / folder_name(name)
    except UsageError as error:
        raise DataError(error.cause, error.remedy) from error
    recover(folder)
    if folder.is_dir():
        return read_corpus(folder, folder.name)
    if name in _BUILT_IN:
        texts, vocab, about = _BUILT_IN[name]()
        kept: dict[str, Any] = {
            "canonical": None,
            "note": "",
            "options": asdict(VocabOptions(kind="words")),
            "pretokenised": True,
            "script": "",
            "ignored": [],
        }
        write_corpus(folder, name, texts, vocab, kept | about)
        return read_corpus(folder, name)
    if name in hub.known():
        what, copy = ("images", "FOLDER") if name in hub.IMAGES else ("text", "FILE")
        raise DataError(
            f"corpus {name} is not prepared yet",
            f"Run `rnnnas corpus fetch {name}`, or with a copy of the {what} "
            f"`rnnnas corpus add {name} --from {copy}`.",
        )
    known = [entry["name"] for entry in list_corpora()]
    raise DataError(
        f"there is no corpus {name!r}{nearest(name, known)}; known: {', '.join(known)}",
        f"Prepare it with `rnnnas corpus add {folder.name} --from FILE_OR_DIR_OR_ZIP`.",
    )


def holds_images(name: str) -> bool:
    """Whether the corpus `name`, prepared or known, holds images. Raises DataError if damaged."""
    try:
        folder = corpora_folder() / folder_name(name)
    except UsageError:
        return False
    recover(folder)
    if not folder.is_dir():
        return name in hub.IMAGES
    return bool(any_description(folder, folder.name)["kind"] == IMAGES)


def open_any(name: str) -> Corpus | ImageCorpus:
    """Open a prepared corpus of either kind. Raises as `open_corpus` does."""
    folder = corpora_folder() / folder_name(name) if holds_images(name) else None
    if folder is not None and folder.is_dir():
        return read_images(folder, folder.name)
    return open_corpus(name)


def as_corpus(corpus: Corpus | ImageCorpus | str) -> Corpus | ImageCorpus:
    """A corpus that is open, or the one of a name. Raises UsageError for what is neither."""
    if isinstance(corpus, str):
        return open_any(corpus)
    if not isinstance(corpus, Corpus | ImageCorpus):
        raise UsageError(
            f"{type(corpus).__name__} is no corpus",
            "give a name, or what rnnnas.open_corpus or rnnnas.add_corpus returned",
        )
    return corpus


def open_images(name: str) -> ImageCorpus:
    """Open a prepared corpus of images.

    Raises DataError: unknown, not prepared, damaged, or a text.
    """
    opened = open_any(name)
    return opened if isinstance(opened, ImageCorpus) else read_images(opened.folder, name)


def check_unchanged(corpus: Corpus | ImageCorpus) -> None:
    """Read every file again and compare its hash. Raises DataError where one byte differs."""
    if isinstance(corpus, ImageCorpus):
        check_images(corpus)
    else:
        check_text(corpus)


def add_corpus(
    name: str,
    source: Path,
    options: VocabOptions,
    *,
    replace: bool = False,
    column: str | None = None,
    encoding: str | None = None,
    label: str | None = None,
) -> Corpus | ImageCorpus:
    """Prepare a corpus from a file, a folder or an archive (`text_sources`). Asks no network.

    A folder whose content is images (`image_sources`, `image_tables`) becomes a corpus of images.

    Args:
        replace: put it in place of a corpus of that name with other content. The same content is
            left as it is either way.
        column: the text column of JSON lines, CSV, TSV or parquet files.
        encoding: of text that is not UTF-8; `mixed`: UTF-8, lines that are not as Windows-1252.
        label: the column of the classes of images in parquet.

    Raises:
        DataError: bad text or images (file, line or row, remedy), a missing split, other content
            under the name.
        UsageError: a name that cannot be a folder's or is built in, a vocabulary for images.
        DiskError: the corpus cannot be written.
    """
    folder = _target(name)
    check_apart(source, folder)
    reading = Reading(
        encoding=None if encoding is None else check_encoding(encoding), column=column
    )
    if column is None and encoding is None:
        files = parquet_files(source)
        images = image_parquet(source, files, label) if files else image_folder(source)
        if images is not None:
            if label is not None and not files:
                raise UsageError(
                    f"{shown(source)}: the folders are the classes, there is no column",
                    "Leave out --label.",
                )
            return _prepare_images(folder, images, options, replace)
    if label is not None:
        raise UsageError("--label is for images in parquet", "Leave it out for text.")
    return _prepare(folder, open_source(source, reading), options, replace)


def fetch_corpus(
    name: str,
    options: VocabOptions,
    *,
    config: str | None = None,
    revision: str | None = None,
    column: str | None = None,
    label: str | None = None,
    replace: bool = False,
) -> Corpus | ImageCorpus:
    """Fetch a benchmark by name (`hub.known`) or a dataset of text or images by its hub id.

    Raises as `add_corpus` does; a network failure is a DataError.
    """
    where = hub.known().get(name)
    if where is None:
        if not _HUB_ID.fullmatch(name):
            raise UsageError(
                f"{name!r} is no id of the hub",
                f"Give owner/name, or one of: {', '.join(hub.known())}.",
            )
        folder = _target(name, config)
        where = hub.HubId(path=name)
    else:
        folder = _target(name)
    where = with_changes(
        where,
        config=config or where.config,
        revision=revision or where.revision,
        column=column or where.column,
    )
    called = where.path + (f" ({where.config})" if where.config else "")
    return _prepare_dataset(folder, where, called, options, replace, label)


def remove_corpus(name: str) -> Path:
    """Remove a prepared corpus; returns the folder it lay in.

    Raises:
        UsageError: a name that cannot be a folder's.
        DataError: there is none, or the folder under that name is not a corpus of ours.
        DiskError: it cannot be removed.
    """
    folder = corpora_folder() / folder_name(name)
    recover(folder)
    try:
        remove(folder, name)
    except OSError as error:
        raise DiskError(
            f"{shown(folder)} cannot be removed ({error.strerror or error})",
            "Check the permissions of the folder.",
        ) from error
    return folder


def _target(name: str, config: str | None = None) -> Path:
    if name in _BUILT_IN:
        raise UsageError(
            f"{name} is built in and needs no preparing",
            f"Use `--corpus {name}` as it is, or choose another name.",
        )
    return corpora_folder() / folder_name(name, config)


def _prepare_dataset(
    folder: Path,
    where: hub.HubId,
    called: str,
    options: VocabOptions,
    replace: bool,
    label: str | None,
) -> Corpus | ImageCorpus:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the corpus: a temporary folder elsewhere may be a small memory disk.
        with hidden_sibling(folder) as cache:
            loaded = hub.load(where, cache, add_name=folder.name)
            if where.column is None:
                images = image_dataset(loaded, shown(called), label)
                if images is not None:
                    return _prepare_images(folder, images, options, replace)
            source = hub.source_of(loaded, shown(called), where.column)
            return _prepare(folder, source, options, replace)
    except OSError as error:
        raise DiskError(
            f"{shown(folder)}: the corpus cannot be written ({error.strerror or error})",
            "Free some space or check the permissions of the folder.",
        ) from error


def _prepare_images(
    folder: Path, source: ImageSource, options: VocabOptions, replace: bool
) -> ImageCorpus:
    if options != VocabOptions():
        raise UsageError(
            f"{shown(source.name)} holds images, which have no vocabulary",
            "Leave out --vocab, --vocab-size, --vocab-of and --lower.",
        )
    write_images(folder, folder.name, source, replace=replace)
    return read_images(folder, folder.name)


def _prepare(folder: Path, source: Source, options: VocabOptions, replace: bool) -> Corpus:
    recognised = recognise(folder.name, source.splits)
    benchmark = recognised.benchmark is not None or folder.name in hub.BENCHMARKS
    notes = [recognised.note] if recognised.note else []
    notes += source.notes
    if source.ignored:
        few, more = source.ignored[:10], len(source.ignored) - 10
        listed = ", ".join(map(shown, few)) + (f" and {more:,} more" if more > 0 else "")
        notes.append(f"ignored files: {listed}")
    kind = TextKind(words=0, glued=0, script="")
    if not benchmark:
        kind = kind_of(source.splits["train"].lines())
    chosen = options.kind
    if chosen == "auto":
        chosen = "words" if kind.pretokenised else "sentencepiece"
    if options.like:
        vocab = open_corpus(options.like).vocab
        chosen = vocab.kind
        notes.append(f"the vocabulary is that of {options.like}")
    else:
        vocab = _vocabulary(source.splits, chosen, options, kind, benchmark)
    if not options.like and kind.words and vocab.words and set(vocab.words) <= {EOS, UNK}:
        raise DataError(
            f"{shown(source.name)}: none of the {chosen} occurs twice in train",
            "Take --vocab sentencepiece or bytes, more text, or a --vocab-size.",
        )
    given = options.size or options.like
    if chosen == "sentencepiece" and not given and vocab.size < pieces_for(0):
        notes.append(f"{vocab.size:,} sentencepieces, all that the training text supports")
    if chosen == "words" and kind.pretokenised and not vocab.tokenizer:
        said = {EOS: "is a word like others, apart from the end of a line",
                UNK: "counts as the unknown word"}  # fmt: skip
        notes += [f"{mark} in the text itself {said[mark]}" for mark in kind.marks]
    if kind.script:
        notes.append(
            f"{kind.script} without spaces between words: perplexity per word counts what stands "
            "between spaces; compare models by bits per byte"
        )
        if chosen == "words":
            notes.append("--vocab sentencepiece or characters suits it better than words")
    about: dict[str, Any] = {
        "source": shown(source.name),
        "canonical": recognised.canonical,
        "note": "; ".join(notes),
        "options": {key: value for key, value in asdict(options).items() if key != "like" or value},
        "pretokenised": kind.pretokenised,
        "script": kind.script,
        "ignored": [shown(name) for name in source.ignored[:1000]],
        "python": platform.python_version(),
    }
    if chosen == "sentencepiece":
        about |= {"sentencepiece": version("sentencepiece"), "num_threads": 1}
    write_corpus(folder, folder.name, source.splits, vocab, about, replace=replace)
    return read_corpus(folder, folder.name)


def _vocabulary(
    splits: Mapping[str, Text], chosen: str, options: VocabOptions, kind: TextKind, benchmark: bool
) -> Vocab:
    train = splits["train"].lines()
    if chosen == "sentencepiece":
        return sentence_pieces(train, size=options.size, lower=options.lower)
    if chosen == "bytes":
        return Vocab(kind="bytes", lower=options.lower)
    if chosen == "characters":
        return frequent_words(train, size=options.size, lower=options.lower, kind="characters")
    if benchmark and not options.size:
        return benchmark_words((splits[s].lines() for s in SPLITS), lower=options.lower)
    tokenizer = "" if kind.pretokenised else RULES
    return frequent_words(train, size=options.size, lower=options.lower, tokenizer=tokenizer)


def corpus_info(corpus: Corpus | ImageCorpus) -> dict[str, Any]:
    """What `corpus info` prints, plain values only; of images, see `images_info`.

    Counts are tokens. `best_perplexity` (hmm only) and the unigram and bigram perplexities are
    those of the test split, per token, its first token not counted.

    Raises:
        DataError: a file was changed since it was prepared.
    """
    check_unchanged(corpus)
    if isinstance(corpus, ImageCorpus):
        return images_info(corpus)
    described, size = corpus.description, len(corpus.vocab)
    train, test = corpus.splits["train"], corpus.splits["test"]
    return {
        "name": corpus.name,
        **{split: len(corpus.splits[split]) for split in SPLITS},
        "vocabulary": size,
        "sha256": corpus.sha256,
        "kind": corpus.vocab.kind,
        "source": described.get("source"),
        "canonical": described.get("canonical"),
        "note": described.get("note", ""),
        "tokenizer": corpus.vocab.tokenizer,
        "script": described.get("script", ""),
        "words": {split: corpus.words(split) for split in SPLITS},
        "lines": {split: corpus.units(split).lines for split in SPLITS},
        "bytes": {split: corpus.units(split).bytes for split in SPLITS},
        "unknown": {split: described["splits"][split]["unknown"] for split in SPLITS},
        "unknown_share": {s: unknown_share(corpus.splits[s], corpus.vocab) for s in SPLITS},
        "unigram_perplexity": unigram_perplexity(train, test, size),
        "bigram_perplexity": bigram_perplexity(train, test, size),
        "best_perplexity": corpus.best_perplexity("test"),
        "best_perplexities": described.get("best_perplexity"),
        "options": described.get("options"),
        "folder": str(corpus.folder),
    }


def prepared_names() -> list[str]:
    """The names of the corpora that lie here, sorted."""
    names = {path.parent.name for path in corpora_folder().glob(f"*/{DESCRIPTION}")}
    return sorted(name for name in names if not name.startswith("."))


def corpus_names() -> list[str]:
    """The names of all corpora, sorted: prepared here, built in, or known to be had."""
    return sorted({*_BUILT_IN, *hub.known(), *prepared_names()})


def list_corpora() -> list[dict[str, Any]]:
    """Every corpus, prepared, built in or known: name, tokens, vocabulary, prepared, note.

    Prepared ones of images have `images` (of all splits) and `classes` (how many) as well.
    """
    folder, prepared = corpora_folder(), prepared_names()
    listed = []
    for name in dict.fromkeys(chain(_BUILT_IN, hub.known(), prepared)):
        entry: dict[str, Any] = {
            "name": name,
            "tokens": None,
            "vocabulary": None,
            "prepared": name in prepared,
        }
        if name in prepared:
            try:
                described = any_description(folder / name, name)
                if described["kind"] == IMAGES:
                    images = read_images(folder / name, name)
                    entry["images"] = sum(map(len, images.splits.values()))
                    entry["classes"] = len(images.classes)
                else:
                    described = read_description(folder / name, name)
                    entry["tokens"] = sum(described["splits"][split]["tokens"] for split in SPLITS)
                    entry["vocabulary"] = described.get("vocabulary")
                entry["note"] = str(described.get("note", ""))
            except DataError as error:
                entry["note"] = error.cause
        elif name in _BUILT_IN:
            entry["note"] = "built in, prepared at first use"
        else:
            entry["note"] = f"rnnnas corpus fetch {name}"
        listed.append(entry)
    return listed


AnyCorpus = Corpus | ImageCorpus
