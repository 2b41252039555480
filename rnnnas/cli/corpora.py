"""corpus: list, info, add, fetch, rm."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnnas.cli import complete
from rnnnas.cli.common import UNKNOWN_LIMIT, echo, json_option, print_json
from rnnnas.data.text_files import shown
from rnnnas.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rnnnas.data.corpus import Corpus, ImageCorpus


@click.group()
def corpus() -> None:
    """Prepare and describe the texts and images that models are trained on.

    \b
    Examples:
      rnnnas corpus list
      rnnnas corpus add mine --from story.txt
    """


@corpus.command("list")
@json_option
def corpus_list(as_json: bool) -> None:
    """All corpora: prepared, built in, and known by name.

    \b
    Example:
      rnnnas corpus list
    """
    from rnnnas.data.corpus import list_corpora

    rows = list_corpora()
    if as_json:
        print_json({"corpora": rows})
        return
    for row in rows:
        size = f"{'unreadable' if row['prepared'] else 'not prepared':>19}"
        if row["tokens"] is not None:
            size = f"{row['tokens']:>12,} tokens"
        elif "images" in row:
            size = f"{row['images']:>12,} images"
        echo(f"{row['name']:16} {size}  {shown(row['note'])}".rstrip())


@corpus.command()
@click.argument("name", shell_complete=complete.corpora)
@json_option
def info(name: str, as_json: bool) -> None:
    """Sizes and content hash of a corpus; of a text, the perplexities of simple models.

    \b
    Example:
      rnnnas corpus info ptb
    """
    from rnnnas.data.corpus import corpus_info, open_any

    described = corpus_info(open_any(name))
    if as_json:
        print_json(described)
        return
    if described["kind"] == "images":
        _say_images(described)
        return
    for split in ("train", "valid", "test"):
        echo(
            f"{split:10} {described[split]:>12,} tokens, "
            f"{described['words'][split] - described['lines'][split]:,} words, "
            f"{described['lines'][split]:,} lines, {_said_bytes(described['bytes'][split])}, "
            f"{100 * described['unknown_share'][split]:.2f} % <unk>"
        )
    kind = described["kind"] + (", punctuation split off" if described["tokenizer"] else "")
    echo(f"{'vocabulary':10} {described['vocabulary']:>12,} ({kind})")
    echo(f"unigram perplexity on test {described['unigram_perplexity']:10.2f}")
    echo(f"bigram perplexity on test  {described['bigram_perplexity']:10.2f}")
    if described["best_perplexity"] is not None:
        echo(f"best any model can reach   {described['best_perplexity']:10.2f}")
    _say_origin(described)
    echo(f"sha256 {described['sha256']}")


def _said_bytes(size: int | None) -> str:
    return "bytes not recorded" if size is None else f"{size:,} bytes"


def _say_images(described: dict[str, Any]) -> None:
    for split in ("train", "valid", "test"):
        counts = described["class_counts"][split]
        echo(
            f"{split:10} {described[split]:>12,} images, {min(counts):,} to {max(counts):,} a class"
        )
    size = described["size"]
    said = f"{size[1]} x {size[0]} pixels" if size else "kept encoded, decoded at every use"
    echo(f"{'size':10} {said}")
    classes = described["classes"]
    more = ", ..." if len(classes) > 20 else ""
    echo(f"{'classes':10} {len(classes):>12,} ({', '.join(map(shown, classes[:20]))}{more})")
    for key in ("mean", "std"):
        echo(f"{key:10} {' '.join(f'{value:.4f}' for value in described[key])}")
    _say_origin(described)
    echo(f"sha256 {described['sha256']}")


def _say_origin(described: dict[str, Any]) -> None:
    if described.get("canonical") and not described["note"].startswith("the canonical words"):
        echo("the canonical text of the benchmark, byte for byte")
    if described["note"]:
        echo(f"note: {shown(described['note'])}")


def _vocabulary_options(command: Callable[..., None]) -> Callable[..., None]:
    """What add and fetch share."""
    for option in reversed(
        [
            click.option("--vocab", default="auto", show_default=True, type=click.Choice(
                ["auto", "words", "sentencepiece", "characters", "bytes"]),
                help="auto: words for pre-tokenised text (PTB, WikiText), sentencepiece for raw "
                     "text. words of raw text have their punctuation split off."),
            click.option("--vocab-size", type=click.IntRange(0), default=0,
                         help="Entries of the vocabulary. [default: by kind and text]"),
            click.option("--vocab-of", metavar="CORPUS", default="",
                         shell_complete=complete.prepared,
                         help="Take the vocabulary of a prepared corpus, so that its models can be "
                         "tuned on this text (train --from)."),
            click.option("--lower", is_flag=True, help="Lower-case the text first."),
            click.option("--column", help="Column of the text, of JSON lines, CSV or a dataset."),
            click.option("--label", help="Column of the classes, of a dataset of images."),
            click.option("--replace", is_flag=True, help="Replace a corpus of other content."),
            json_option,
        ]
    ):  # fmt: skip
        command = option(command)
    return command


class _SourcePath(click.Path):
    """A path of the disk, exactly as it was typed; a web address is told what to do with it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not str(value).strip():
            raise UsageError("--from is empty", "Give a text file, a folder or a zip archive.")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(value)) and not Path(value).exists():
            file = str(value).rstrip("/").rpartition("/")[2] or "FILE"
            raise UsageError(
                f"{shown(value)} is a web address, and `corpus add` reads files",
                f"Download it first: curl -L -o {shlex.quote(shown(file))} "
                f"{shlex.quote(shown(value))}; datasets of the hub: rnnnas corpus fetch OWNER/NAME",
            )
        return super().convert(value, param, ctx)


@corpus.command()
@click.argument("name")
@click.option("--from", "source", required=True, type=_SourcePath(path_type=Path),
              help="A text file, a folder, a zip, or a folder of parquet files or of images.",
              )  # fmt: skip
@click.option("--encoding", help="Of text that is not UTF-8, such as utf-16 or latin-1; mixed: "
              "UTF-8, and Windows-1252 where a line is not.")  # fmt: skip
@_vocabulary_options
def add(
    name: str, source: Path, encoding: str | None, vocab: str, vocab_size: int, vocab_of: str,
    lower: bool, column: str | None, label: str | None, replace: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prepare a corpus from your own text or images.

    A folder or zip with train, valid and test files keeps its splits; any other text is cut
    into 90, 5 and 5 percent. Archives are read without being extracted. Images lie in a folder
    a class, under train and test where there are such, or in parquet files with the columns img
    and label; a validation split that is missing is held out of train.

    \b
    Examples:
      rnnnas corpus add ptb --from ptb.zip
      rnnnas corpus add birds --from folder-of-class-folders
      rnnnas corpus add mine --from story.txt --vocab sentencepiece --vocab-size 2000
      rnnnas corpus add letters --from letters.txt --vocab-of mine
    """
    from rnnnas.data.corpus import VocabOptions, add_corpus

    options = VocabOptions(kind=vocab, size=vocab_size, lower=lower, like=vocab_of)
    added = add_corpus(
        name, source, options, replace=replace, column=column, encoding=encoding, label=label
    )
    _report(added, as_json)


@corpus.command()
@click.argument("name", shell_complete=complete.corpora)
@click.option("--config", "dataset_config", help="Configuration of the dataset on the hub.")
@click.option("--revision", help="Branch or commit of the dataset on the hub.")
@_vocabulary_options
def fetch(
    name: str, dataset_config: str | None, revision: str | None, vocab: str, vocab_size: int,
    vocab_of: str, lower: bool, column: str | None, label: str | None, replace: bool, as_json: bool,
) -> None:  # fmt: skip
    """Download and prepare ptb, wikitext-2, wikitext-103, cifar10, or a dataset by its hub id.

    \b
    Examples:
      rnnnas corpus fetch wikitext-2
      rnnnas corpus fetch owner/name --config en --column text
    """
    from rnnnas.data.corpus import VocabOptions, fetch_corpus

    options = VocabOptions(kind=vocab, size=vocab_size, lower=lower, like=vocab_of)
    fetched = fetch_corpus(
        name, options, config=dataset_config, revision=revision, column=column, label=label,
        replace=replace,
    )  # fmt: skip
    _report(fetched, as_json)


@corpus.command()
@click.argument("name", shell_complete=complete.prepared)
@json_option
def rm(name: str, as_json: bool) -> None:
    """Remove a prepared corpus. A folder that holds anything else is left as it is.

    \b
    Example:
      rnnnas corpus rm mine
    """
    from rnnnas.data.corpus import remove_corpus

    folder = remove_corpus(name)
    if as_json:
        print_json({"name": name, "removed": str(folder)})
    else:
        echo(f"removed {folder}")


def _report(prepared: Corpus | ImageCorpus, as_json: bool) -> None:
    from rnnnas.data.corpus import Corpus
    from rnnnas.data.yardsticks import unknown_share

    sizes = {split: len(part) for split, part in prepared.splits.items()}
    described, counts = prepared.description, " / ".join(f"{n:,}" for n in sizes.values())
    if described["kind"] == "images":
        keys = ["classes", "sha256", "note"]
        said = f"{counts} images, {len(described['classes']):,} classes"
    else:
        keys = ["vocabulary", "sha256", "canonical", "note", "kind"]
        said = f"{counts} tokens, vocabulary {described['vocabulary']:,} ({described['kind']})"
    about = {key: described[key] for key in keys}
    unknown: dict[str, float] = {}  # what the vocabulary lacks, of all tokens
    shares: dict[str, float] = {}  # with what the text itself calls <unk>
    if isinstance(prepared, Corpus):
        unknown = {s: described["splits"][s]["unknown"] / size for s, size in sizes.items()}
        shares = {s: unknown_share(part, prepared.vocab) for s, part in prepared.splits.items()}
        about["unknown_share"] = shares
    if as_json:
        print_json({"name": prepared.name, **sizes, **about})
        return
    echo(f"{prepared.name}: {said}")
    if shares:
        said = " / ".join(f"{100 * share:.2f} %" for share in shares.values())
        own = any(shares[split] > unknown[split] for split in shares)
        echo(f"unknown (<unk>): {said} of train / valid / test"
             + (", with those of the text itself" if own else ""))  # fmt: skip
    if max(unknown.values(), default=0) > UNKNOWN_LIMIT:
        most = [split for split, share in unknown.items() if share >= 0.5]
        if "train" in most:
            echo(
                "warning: more than half of train is <unk>: too few of its words are in the "
                "vocabulary for words to teach a model much",
                err=True,
            )
        else:
            for split in most:
                echo(
                    f"warning: {split} is mostly unknown words: is it another language or kind of "
                    "text than train?",
                    err=True,
                )
        echo(
            "warning: more than 2 % of a split is <unk>, which a model predicts without knowing "
            "the word; --vocab sentencepiece or bytes has none, --vocab-size sets more words",
            err=True,
        )
    _say_origin(about)
    if described["kind"] == "images":
        echo(f"search on it: rnnnas search --corpus {prepared.name}", err=True)
    else:
        echo(
            f"train on it: rnnnas train --corpus {prepared.name} --genotype LSTM --minutes 10",
            err=True,
        )
