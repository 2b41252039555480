"""A network that begins with the text's frequencies in the bias of its output."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_home import corpus, home  # noqa: F401  (fixtures)

from rnnnas.config.presets import resolve
from rnnnas.config.recipes import Reading
from rnnnas.data.corpus import Corpus
from rnnnas.data.ngrams import unigram_perplexity, unigram_probabilities
from rnnnas.engine.steps import evaluate
from rnnnas.searching.run import job_of
from rnnnas.training.run import TrainJob, train

CPU = torch.device("cpu")


def config(*settings: str, cell: str = "LSTM", **flags: Any) -> Any:
    sets = ["model.hidden=8", "valid_streams=1", "test_streams=3", "epochs=1", *settings]
    flags = {"corpus": "tiny", "genotype": cell, "seed": 1, **flags}
    return resolve("train", preset="smoke", file=None, settings=sets, flags=flags)


@pytest.mark.parametrize("cell", ["LSTM", "DARTS_V2"])
def test_it_begins_as_a_unigram_model(corpus: Corpus, cell: str) -> None:  # noqa: F811
    job = TrainJob(config("output_bias=frequencies", cell=cell), corpus, CPU)
    texts = corpus.splits["train"], corpus.splits["valid"], corpus.vocab.size
    found = evaluate(job.net, job.valid, {}).perplexity
    assert found == pytest.approx(unigram_perplexity(*texts), rel=0.01)
    plain = TrainJob(config(cell=cell), corpus, CPU)
    assert evaluate(plain.net, plain.valid, {}).perplexity > 1.5 * found


SEARCHES = ["darts-1st", "random-ws", "random", "evolution", "halving", "enas", "p-darts"]


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_begins_so_with_every_method(corpus: Corpus, method: str) -> None:  # noqa: F811
    """Of each kind of job, the network that its first step moves."""
    flags = {"corpus": "tiny", "method": method, "seed": 1}
    sets = ["model.hidden=8", "windows.streams=6", "valid_streams=2"]
    sets += ["output_bias=frequencies", "blackbox.windows=4"]
    if method == "p-darts":
        sets.append("stages.hidden=[8,8,8]")
    settings = resolve("search", preset="smoke", file=None, settings=sets, flags=flags)
    job: Any = job_of(settings, corpus, CPU)
    found = job.net.get_parameter("bias").detach()
    logs = np.log(unigram_probabilities(corpus.splits["train"], corpus.vocab.size))
    torch.testing.assert_close(found, torch.from_numpy(logs).to(found.dtype))


def test_the_bias_counted_by_hand(corpus: Corpus) -> None:  # noqa: F811
    job = TrainJob(config("output_bias=frequencies"), corpus, CPU)
    bias = job.net.get_parameter("bias").detach().double()
    assert float(bias.exp().sum()) == pytest.approx(1.0, rel=1e-5)
    counts = Counter(np.asarray(corpus.splits["train"]).tolist())
    (often, n), (other, m) = counts.most_common(2)
    # Absolute discounting takes the same from both.
    ratio = math.exp(float(bias[often] - bias[other]))
    assert ratio == pytest.approx(n / m, rel=0.02)


def test_what_it_starts_from_keeps_its_bias(corpus: Corpus, tmp_path: Path) -> None:  # noqa: F811
    first = train(config(), corpus, tmp_path / "a", device=CPU, quiet=True)
    again = config("output_bias=frequencies")
    second = train(
        again, corpus, tmp_path / "b", device=CPU, quiet=True, start=Path(first["checkpoint"])
    )
    plain = train(
        config(), corpus, tmp_path / "c", device=CPU, quiet=True, start=Path(first["checkpoint"])
    )
    assert second["test_perplexity"] == plain["test_perplexity"]


def test_a_time_budget_takes_it() -> None:
    flags = {"corpus": "book", "genotype": "LSTM", "seconds": 60.0}
    made = resolve("train", preset=None, file=None, settings=[], flags=flags, reading=Reading())
    assert made.output_bias == "frequencies"
