"""What a run is held against: words' frequencies, published curves, tables of latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rnnnas.config.plain import from_plain
from rnnnas.config.presets import AnyTrain
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import Corpus, corpora_folder, open_any
from rnnnas.data.ngrams import unigram_perplexity
from rnnnas.errors import RnnnasError, UsageError
from rnnnas.home import home
from rnnnas.latency.recurrent import RUN_FILE, read_table
from rnnnas.nas.latency_price import MICROSECOND
from rnnnas.nas.space import recurrent_space
from rnnnas.reporting.read import RunData, genotype_from
from rnnnas.training.published_curves import Curve, curve_for


def word_frequencies(run: RunData) -> float | None:
    """The perplexity of the validation text under the frequencies of the training words.

    Returns:
        None where the corpus that the run was made with is not at hand.
    """
    return _frequencies(str(run.config.get("corpus")), str(run.config.get("corpus_sha256")))


@lru_cache(maxsize=32)
def _frequencies(name: str, sha256: str) -> float | None:
    try:
        if not (corpora_folder() / name).is_dir():  # a built-in one would be made now
            return None
        corpus = open_any(name)
    except RnnnasError:
        return None
    if not isinstance(corpus, Corpus) or corpus.sha256 != sha256:
        return None
    splits = corpus.splits
    return unigram_perplexity(splits["train"], splits["valid"], corpus.vocab.size)


def published_of(run: RunData) -> Curve | None:
    """The published curve of a training's text and sizes, if there is one."""
    if run.kind != "train" or run.measure != "perplexity":
        return None
    plain = {k: v for k, v in run.config.items() if k != "corpus_sha256"}
    try:
        config: AnyTrain = from_plain(TrainConfig, plain)
    except (UsageError, TypeError, ValueError):
        return None  # settings of another version
    return curve_for(str(run.config.get("corpus_sha256")), config)


def latency_of(cells: Sequence[str], run: RunData | None = None) -> tuple[dict[str, float], str]:
    """Predicted microseconds a time step of recurrent cells, by their short text, and what machine
    and sizes they are of: 'cpu, float32, H 300, B 256'.

    By the table that the run kept, or else one in the default place, of the run's sizes if there is
    one; cells that it says nothing of are left out.
    """
    kept = None if run is None else run.folder / RUN_FILE
    paths = [kept] if kept is not None and kept.is_file() else _tables(run)
    for path in paths:
        try:
            table = read_table(path)
        except RnnnasError:
            continue
        costs = table.costs
        found = {}
        for text in cells:
            genotype = genotype_from(text)
            try:
                if genotype is not None:
                    cell = genotype.recurrent
                    costs.check(recurrent_space(len(cell.nodes)))
                    found[text] = costs.of_cell(cell) / MICROSECOND
            except (UsageError, KeyError):
                continue
        if found:
            return found, table.describe()
    return {}, ""


def _tables(run: RunData | None) -> list[Path]:
    """Those in the default place, the ones of the run's units and streams in front."""
    config: Mapping[str, Any] = {} if run is None else run.config
    units, streams = (config.get(group, {}).get(key)
                      for group, key in (("model", "hidden"), ("windows", "streams")))  # fmt: skip
    sizes = f"-H{units}-B{streams}.json"
    return sorted(
        home().glob("latency-*-H*-B*.json"), key=lambda p: (not p.name.endswith(sizes), p.name)
    )
