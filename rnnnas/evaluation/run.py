"""Evaluating a checkpoint on a split of its corpus or on a text (`images.py`: on images)."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rnnnas.config.plain import from_plain
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import SPLITS, Corpus, check_unchanged, open_corpus
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.data.text_files import read_lines
from rnnnas.data.text_streams import Streams
from rnnnas.data.vocab import Vocab
from rnnnas.data.yardsticks import bits_per_byte, text_bytes, unknown_share, yardsticks
from rnnnas.engine.device import exact_float32
from rnnnas.engine.metrics import perplexity
from rnnnas.engine.steps import evaluate
from rnnnas.errors import CheckpointError, DataError, RnnnasError, UsageError
from rnnnas.evaluation.adaptive import evaluate_adapting
from rnnnas.evaluation.images import accuracy, is_classifier
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas import operations
from rnnnas.nas.genotype import Genotype
from rnnnas.plugins import load as plugins
from rnnnas.runs.checkpoint import content_digest
from rnnnas.runs.files import read_json
from rnnnas.runs.hub_folder import is_folder, trained_content

# How far below the exact bound of a generated corpus a perplexity may lie by chance.
LEAK_MARGIN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a best.pt holds, rebuilt; the network carries the saved (averaged) weights."""

    net: RecurrentLM
    config: TrainConfig
    genotype: Genotype | None  # of a derived cell
    vocab: Vocab
    corpus: str
    corpus_sha256: str
    metrics: dict[str, Any]
    digest: str


def load_checkpoint(path: Path, device: torch.device) -> Loaded:
    """Rebuild the model of a best.pt.

    Raises:
        CheckpointError: where the file is missing, damaged, or not a trained cell.
    """
    refuse_search(path)
    return rebuild_language_model(trained_content(path), path, device)


def rebuild_language_model(content: dict[str, Any], path: Path, device: torch.device) -> Loaded:
    """The model of a best.pt with this content; raises as `load_checkpoint`."""
    if is_classifier(content):
        raise CheckpointError(
            f"{path} holds an image network, which neither reads nor writes text",
            "`rnnnas eval --checkpoint` gives its accuracy",
        )
    _require_operations(content, path)
    try:
        config = from_plain(TrainConfig, content["config"])
        if content["genotype"] != config.genotype:
            raise UsageError("its genotype is not the one of its settings")
        genotype = None
        if config.cell == "derived":
            genotype = Genotype.from_plain(config.genotype)
        vocab = Vocab.from_plain(content["vocabulary"])
        net = RecurrentLM(
            config.model, vocab.size, config.network, noise=config.noise,
            penalty=config.penalty, generator=torch.Generator(),
        )  # fmt: skip
        net.load_state_dict(content["weights"])
        check_finite(net)
        return Loaded(
            net=net.to(device),
            config=config,
            genotype=genotype,
            vocab=vocab,
            corpus=content["corpus"]["name"],
            corpus_sha256=content["corpus"]["sha256"],
            metrics=content["metrics"],
            digest=content_digest(content),
        )
    except (KeyError, TypeError, RuntimeError, RnnnasError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path} is intact but does not hold a trained recurrent cell: {reason}",
            "give the best.pt of a run of `rnnnas train`",
        ) from error


def _require_operations(content: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError where a best.pt has operations that nobody has registered here."""
    try:
        nodes = Genotype.from_plain(content["genotype"]).recurrent.nodes
    except (KeyError, UsageError):
        return  # a baseline, or no checkpoint of ours, which is told of by others
    unknown = sorted({g.op for node in nodes for g in node if not operations.is_known(g.op)})
    if unknown:
        noted = content.get("plugins")
        plugins.require(noted, f"the cell of {path}, with operation {', '.join(unknown)},")
        raise CheckpointError(
            f"the cell of {path} has operation {', '.join(unknown)}, which is not registered here",
            "name the file that registers it with --plugin FILE, or call "
            "rnnnas.operations.register",
        )


def check_finite(net: nn.Module) -> None:
    """Raises CheckpointError where a weight is infinite or no number: no figure of it means any."""
    for name, weight in net.named_parameters():
        if not bool(weight.isfinite().all()):
            raise CheckpointError(f"its weights are not finite ({name}): its training diverged")


def refuse_search(path: Path) -> None:
    """Raises CheckpointError where `path` is the state of a search, or missing from its folder."""
    about = path.parent / "config.json"
    if (os.path.exists(path) and path.name != "state.pt") or not os.path.isfile(about):
        return
    stored = read_json(about)
    if not isinstance(stored, dict) or stored.get("kind") != "search":
        return
    config = stored.get("config")
    corpus = config.get("corpus") if isinstance(config, dict) else None
    folder = shlex.quote(str(path.parent))
    train = f"`rnnnas train --corpus {shlex.quote(str(corpus))} --genotype {folder}`"
    if not (path.parent / "genotype.json").exists():
        train = f"finish the search with --out {folder}, then {train}"
    raise CheckpointError(
        f"{path.parent} is a search: it has no trained model to evaluate",
        f"train its cell first: {train}",
    )


def _beside(path: Path) -> Path:
    """Where settings that were chosen for a model are kept: beside its file, or its hub folder."""
    if is_folder(path):
        whole = path.absolute()  # "." has no name
        return whole.with_name(f"{whole.name}.dynamic.json")
    return path.with_suffix(".dynamic.json")


@exact_float32()
def evaluate_checkpoint(
    path: Path,
    split: str = "test",
    *,
    text: str | os.PathLike[str] | None = None,
    corpus: Corpus | ImageCorpus | None = None,
    device: torch.device,
    dynamic: bool = False,
    cache: bool = False,
    given: Mapping[str, Any] | None = None,
    quiet: bool = False,
    encoding: str | None = None,
) -> dict[str, Any]:
    """The perplexity of a checkpoint; of an image network the accuracy, as `evaluation.images`
    says.

    Args:
        split: "train", "valid" or "test" of the corpus it was trained on; validation runs on
            `valid_streams` streams and the others on `test_streams` (10 and 1 by default).
        text: evaluated instead of a split; words the vocabulary lacks count as `<unk>`.
        corpus: the corpus, where the caller has it open.
        dynamic, cache: let the model learn from the text as it goes by (see `evaluation.adaptive`);
            any split is then one stream. Parameters are chosen on validation text, once, and kept
            beside the checkpoint.
        given: settings of dynamic evaluation (`DynamicConfig`) that are not to be chosen.
        quiet: show no progress of these.
        encoding: of the text, where that is not UTF-8.

    Returns:
        split ("text" for a text), perplexity, nats (mean a token), tokens (targets counted),
        unknown (tokens read as `<unk>` that the text itself did not write so), digest (of the
        checkpoint), word_perplexity, bits_per_byte, unknown_share (of tokens that are `<unk>`,
        the text's own included), of a split unigram_perplexity and bigram_perplexity, and for a
        generated corpus best_perplexity with `leak`, whether the perplexity lies clearly below it.
        With `dynamic` or `cache` also plain_perplexity, without either on the same stream, and
        under their names the parameters used and the validation perplexity they were chosen by.

    Raises:
        CheckpointError, DataError: as their causes say.
        UsageError: a text, or learning from one, for an image network.
    """
    refuse_search(path)
    if split not in SPLITS:
        raise UsageError(f"there is no split {split!r}", f"splits: {', '.join(SPLITS)}")
    content = trained_content(path)
    if is_classifier(content):
        if text is not None or dynamic or cache:
            raise UsageError(
                f"{path} holds an image network: --text, --dynamic and --cache are for text",
                "leave them out",
            )
        if isinstance(corpus, Corpus):
            raise UsageError(
                f"{path} holds an image network, and {corpus.name} is a text", "give its images"
            )
        return accuracy(content, path, split, corpus=corpus, device=device)
    if isinstance(corpus, ImageCorpus):
        raise UsageError(
            f"{path} holds a language model, and {corpus.name} is a set of images", "give its text"
        )
    loaded = rebuild_language_model(content, path, device)
    config = loaded.config
    bound: float | None = None
    if text is not None:
        split = "text"
        encoded = loaded.vocab.encode(read_lines(Path(text), encoding))
        tokens, unknown, words = encoded.tokens, encoded.unknown, encoded.words
        size = encoded.bytes
    else:
        corpus = _trained_on(loaded, corpus)
        tokens, words = corpus.splits[split], corpus.words(split)
        unknown = int(corpus.description["splits"][split]["unknown"])
        size = text_bytes(corpus, split)
        bound = corpus.best_perplexity(split)
    streams = config.valid_streams if split == "valid" else config.test_streams
    if text is not None or dynamic or cache:
        streams = 1
    if text is not None and len(tokens) < 2:
        raise DataError(f"{text} holds fewer than two tokens", "give a longer text")
    read = Streams(tokens, streams, device, "")
    plain = score = evaluate(loaded.net, read, {})
    report: dict[str, Any] = {}
    if dynamic or cache:
        score, report = evaluate_adapting(
            loaded.net, read, lambda: _trained_on(loaded, corpus), dynamic=dynamic, cache=cache,
            saved=_beside(path), digest=loaded.digest, quiet=quiet, given=given,
        )  # fmt: skip
        report["plain_perplexity"] = plain.perplexity
    result: dict[str, Any] = {
        "split": split,
        "perplexity": score.perplexity,
        "nats": score.loss,
        "tokens": score.tokens,
        "unknown": unknown,
        "digest": loaded.digest,
        **report,
    }
    # All nats of the text shared out over its words and line ends.
    result["word_perplexity"] = perplexity(score.loss * len(tokens), words)
    if text is None and corpus is not None:
        result |= yardsticks(corpus, split, streams).to_plain()
    result["bits_per_byte"] = bits_per_byte(score.loss, len(tokens), size)
    result["unknown_share"] = unknown_share(tokens, loaded.vocab)
    if bound is not None:
        result["best_perplexity"] = bound
        result["leak"] = score.perplexity < bound * (1 - LEAK_MARGIN)
    return result


def _trained_on(loaded: Loaded, corpus: Corpus | None) -> Corpus:
    """The corpus the model was trained on: the one given, or opened by its name, and checked."""
    corpus = corpus or open_corpus(loaded.corpus)
    if corpus.sha256 != loaded.corpus_sha256:
        raise DataError(
            f"the corpus {loaded.corpus!r} here is not the one this model was trained on",
            "add the original text again, or evaluate a text of your own with --text FILE",
        )
    check_unchanged(corpus)
    return corpus
