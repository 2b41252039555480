"""Corpora by name: prepare once, open instantly, describe.

Token streams: ids of a whole split, `<eos>` after every line, blank ones too. PTB and WikiText take
every word of all three splits, the benchmark's convention; other text takes its vocabulary from
train alone and maps the rest to `<unk>`.
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
from rnnnas.data.image_corpus import ImageCorpus, check_images, images_info, read_images
from rnnnas.data.image_sources import ImageSource, image_folder
from rnnnas.data.image_tables import image_dataset, image_parquet
from rnnnas.data.image_writer import write_images
from rnnnas.data.ngrams import bigram_perplexity, unigram_perplexity
from rnnnas.data.text_corpus import (
    DESCRIPTION,
    IMAGES,
    Corpus,
    any_description,
    check_text,
    hidden_sibling,
    read_corpus,
    read_description,
    write_corpus,
)
from rnnnas.data.text_files import Text, shown
from rnnnas.data.text_sources import SPLITS, Source, open_source, parquet_files
from rnnnas.data.vocab import PIECES, Vocab, benchmark_words, frequent_words, sentence_pieces
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
]

_BUILT_IN: Mapping[str, Callable[[], tuple[dict[str, Text], Vocab, dict[str, Any]]]] = {
    pydocs.NAME: pydocs.pydocs,
    synthetic.NAME: synthetic.hmm_corpus,
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabOptions:
    """How a text becomes tokens.

    kind: `words` or `sentencepiece`. size: entries of the vocabulary, `<eos>` and `<unk>` included;
    0: for benchmarks all words of all splits, else the words that train holds twice, 30,000 at
    most; 8,000 sentencepieces, or as many as the text supports. lower: lower-case the text first.
    """

    kind: str = "words"
    size: int = 0
    lower: bool = False

    def __post_init__(self) -> None:
        kinds = ("words", "sentencepiece")
        if self.kind not in kinds:
            raise UsageError(
                f"vocabulary {self.kind!r} is not known{nearest(self.kind, list(kinds))}",
                f"Choose one of: {', '.join(kinds)}.",
            )
        if self.size < 0 or self.size in (1, 2):
            raise UsageError(
                f"a vocabulary of {self.size} entries holds no words", "Give 3 or more."
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
    if folder.is_dir():
        return read_corpus(folder, folder.name)
    if name in _BUILT_IN:
        texts, vocab, about = _BUILT_IN[name]()
        kept: dict[str, Any] = {
            "canonical": None,
            "note": "",
            "options": asdict(VocabOptions()),
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
    if not folder.is_dir():
        return name in hub.IMAGES
    return bool(any_description(folder, folder.name)["kind"] == IMAGES)


def open_any(name: str) -> Corpus | ImageCorpus:
    """Open a prepared corpus of either kind. Raises as `open_corpus` does."""
    folder = corpora_folder() / folder_name(name) if holds_images(name) else None
    if folder is not None and folder.is_dir():
        return read_images(folder, folder.name)
    return open_corpus(name)


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
) -> Corpus | ImageCorpus:
    """Prepare a corpus from a file, a folder or a zip archive (`sources`), or a folder of parquet.

    A folder whose content is images (`image_sources`, `tables`) becomes a corpus of images.

    Args:
        replace: put it in place of a corpus of that name with other content. The same content is
            left as it is either way.
        column: the text column of parquet files.

    Raises:
        DataError: bad text or images (file, line or row, remedy), a missing split, other content
            under the name.
        UsageError: a name that cannot be a folder's or is built in, a vocabulary for images.
        DiskError: the corpus cannot be written.
    """
    folder = _target(name)
    files = parquet_files(source)
    if column is None:
        images = image_parquet(source, files) if files else image_folder(source)
        if images is not None:
            return _prepare_images(folder, images, options, replace)
    if files:
        where = hub.HubId(path=str(source), column=column)
        return _prepare_dataset(folder, where, source.resolve().name, options, replace)
    if column is not None:
        raise UsageError("--column is for parquet folders", "Leave it out for plain text.")
    return _prepare(folder, open_source(source), options, replace)


def fetch_corpus(
    name: str,
    options: VocabOptions,
    *,
    config: str | None = None,
    revision: str | None = None,
    column: str | None = None,
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
    return _prepare_dataset(folder, where, called, options, replace)


def _target(name: str, config: str | None = None) -> Path:
    if name in _BUILT_IN:
        raise UsageError(
            f"{name} is built in and needs no preparing",
            f"Use `--corpus {name}` as it is, or choose another name.",
        )
    return corpora_folder() / folder_name(name, config)


def _prepare_dataset(
    folder: Path, where: hub.HubId, called: str, options: VocabOptions, replace: bool
) -> Corpus | ImageCorpus:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the corpus: a temporary folder elsewhere may be a small memory disk.
        with hidden_sibling(folder) as cache:
            loaded = hub.load(where, cache, add_name=folder.name)
            if where.column is None:
                images = image_dataset(loaded, shown(called))
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
            "Leave out --vocab, --vocab-size and --lower.",
        )
    write_images(folder, folder.name, source, replace=replace)
    return read_images(folder, folder.name)


def _prepare(folder: Path, source: Source, options: VocabOptions, replace: bool) -> Corpus:
    recognised = recognise(folder.name, source.splits)
    benchmark = recognised.benchmark is not None or folder.name in hub.BENCHMARKS
    notes = [recognised.note] if recognised.note else []
    if source.ignored:
        notes.append(f"ignored files: {', '.join(map(shown, source.ignored))}")
    vocab = _vocabulary(source.splits, options, benchmark)
    if options.kind == "sentencepiece" and not options.size and vocab.size < PIECES:
        notes.append(f"{vocab.size:,} sentencepieces, all that the training text supports")
    about: dict[str, Any] = {
        "source": shown(source.name),
        "canonical": recognised.canonical,
        "note": "; ".join(notes),
        "options": asdict(options),
        "ignored": [shown(name) for name in source.ignored],
        "python": platform.python_version(),
    }
    if options.kind == "sentencepiece":
        about |= {"sentencepiece": version("sentencepiece"), "num_threads": 1}
    write_corpus(folder, folder.name, source.splits, vocab, about, replace=replace)
    return read_corpus(folder, folder.name)


def _vocabulary(splits: Mapping[str, Text], options: VocabOptions, benchmark: bool) -> Vocab:
    train = splits["train"].lines()
    if options.kind == "sentencepiece":
        return sentence_pieces(train, size=options.size, lower=options.lower)
    if benchmark and not options.size:
        return benchmark_words((splits[s].lines() for s in SPLITS), lower=options.lower)
    return frequent_words(train, size=options.size, lower=options.lower)


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
        "words": {split: corpus.words(split) for split in SPLITS},
        "unknown": {split: described["splits"][split]["unknown"] for split in SPLITS},
        "unigram_perplexity": unigram_perplexity(train, test, size),
        "bigram_perplexity": bigram_perplexity(train, test, size),
        "best_perplexity": corpus.best_perplexity("test"),
        "best_perplexities": described.get("best_perplexity"),
        "options": described.get("options"),
        "folder": str(corpus.folder),
    }


def corpus_names() -> list[str]:
    """The names of all corpora, sorted: prepared here, built in, or known to be had."""
    prepared = {path.parent.name for path in corpora_folder().glob(f"*/{DESCRIPTION}")}
    return sorted({*_BUILT_IN, *hub.known(), *(n for n in prepared if not n.startswith("."))})


def list_corpora() -> list[dict[str, Any]]:
    """Every corpus, prepared, built in or known: name, tokens, vocabulary, prepared, note.

    Prepared ones of images have `images` (of all splits) and `classes` (how many) as well.
    """
    folder = corpora_folder()
    prepared = sorted(path.parent.name for path in folder.glob(f"*/{DESCRIPTION}"))
    prepared = [name for name in prepared if not name.startswith(".")]
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
