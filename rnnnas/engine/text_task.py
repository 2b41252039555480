"""Text: streams cut into windows, a state carried from one to the next, a recurrent network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.data.ngrams import unigram_probabilities
from rnnnas.data.text_corpus import Corpus
from rnnnas.data.text_streams import Streams, epoch_lengths, epochs_for
from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine.cuda_graphs import CudaGraphs, cuda_graphs_for
from rnnnas.engine.job import Position
from rnnnas.engine.task import AlphaBatch, Net
from rnnnas.errors import DataError
from rnnnas.latency.recurrent import given_table, run_price
from rnnnas.lm.model import RecurrentLM, cell_path
from rnnnas.nas.derive import derive
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.latency_price import Price
from rnnnas.nas.operations import are_shipped
from rnnnas.nas.relax.base import Alphas, Relaxation, Spaces
from rnnnas.plugins import load as plugins
from rnnnas.types import Batch, Noise

Lengths = TypeVar("Lengths", SearchConfig, TrainConfig)

LEAST_TOKENS = 1_000  # of a training text


def fitted(config: Lengths, corpus: Corpus) -> Lengths:
    """The settings with as many epochs as `least_steps` asks for on this corpus.

    Raises:
        DataError: where the text is too short to learn from.
    """
    tokens = len(corpus.splits["train"])
    if tokens < LEAST_TOKENS:
        raise DataError(
            f"corpus {corpus.name} has {tokens:,} training tokens: too few to learn from, "
            "a table of words knows as much",
            f"take a text of {10 * LEAST_TOKENS:,} words or more",
        )
    if not config.least_steps or config.seconds:
        return config
    if isinstance(config, SearchConfig):
        tokens = len(search_texts(config, corpus)[0])
    epochs = epochs_for(config.windows, tokens, config.seed, config.epochs, config.least_steps)
    return replace(config, epochs=epochs, least_steps=0)


class _Text:
    """What a search and a training on text have in common."""

    measure = "perplexity"
    config: SearchConfig | TrainConfig
    device: torch.device
    ranks: Ranks
    train: Streams

    def lengths(self, epoch: int) -> list[int]:
        return epoch_lengths(self.config.windows, self.train.length, self.config.seed, epoch)

    def batch(self, at: Position, steps: int) -> Batch:
        return self.train.window(at.start, steps)

    def scaled(self, lr: float, steps: int) -> float:
        return lr * steps / self.config.windows.bptt

    def cuda_graphs(self) -> CudaGraphs | None:
        config = self.config
        cell = config.cell_space if isinstance(config, SearchConfig) else config.network
        path = cell_path(config.model, cell)
        return cuda_graphs_for(config.capture, self.device, self.ranks, path)


@final
class TextSearch(_Text):
    """See `task.SearchTask`."""

    def __init__(
        self, config: SearchConfig, corpus: Corpus, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        ranks.check(config.windows.streams)
        self.config: SearchConfig = config
        self.corpus = corpus
        self.device = device
        self.ranks = ranks
        self.spaces: Spaces = {RECURRENT: config.cell_space}
        streams = config.windows.streams
        train, alpha = search_texts(config, corpus)
        part = ranks.part(streams)
        self.train = Streams(train, streams, device, part=part)
        self.alpha = Streams(alpha, streams, device, part=part)
        self.valid = Streams(corpus.splits["valid"], config.valid_streams, device, "valid_streams")

    def network(self, stage: int, spaces: Spaces, generator: torch.Generator) -> Net:
        config, now = self.config, self.config.plan[stage]
        (space,) = spaces.values()
        net = RecurrentLM(
            replace(config.model, hidden=now.hidden),
            self.corpus.vocab.size,
            space,
            noise=replace(config.noise, dropouth=now.dropouth),
            penalty=config.penalty,
            generator=generator,
            ranks=self.ranks,
        )
        begin_output(net, config, self.corpus)
        return net

    def derive(self, relaxation: Relaxation, alphas: Alphas, spaces: Spaces) -> Genotype:
        return derive(relaxation, alphas, spaces)

    def alpha_batch(self, at: Position, start: int) -> AlphaBatch:
        """A full window, whatever the length of the training window beside it, as published."""
        steps = min(self.config.windows.bptt, self.alpha.length - 1)
        # Back to the start of the text: the state of its end does not belong there.
        fresh = start + steps > self.alpha.length - 1
        start = 0 if fresh else start
        return AlphaBatch(self.alpha.window(start, steps), start + steps, fresh)

    def at(self, net: Net, stage: int, progress: float) -> Net:
        return net

    def alone(self, net: Net) -> Net:
        assert isinstance(net, RecurrentLM)
        return net.alone()

    def scored(self, trained: int) -> Streams:
        return scoring_streams(self.config, self.corpus, self.device, trained)

    def pricing(self) -> Callable[[Path], Price] | None:
        config, device, ranks = self.config, self.device, self.ranks
        if not config.latency.weight:
            return None
        table = given_table(config, device)
        return lambda folder: run_price(config, folder, table, device, ranks)


@final
class TextTraining(_Text):
    """See `task.TrainTask`."""

    kind = "recurrent"

    def __init__(
        self, config: TrainConfig, corpus: Corpus, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        ranks.check(config.windows.streams)
        self.config: TrainConfig = config
        self.corpus = corpus
        self.device = device
        self.ranks = ranks
        streams = config.windows.streams
        self.train = Streams(corpus.splits["train"], streams, device, part=ranks.part(streams))
        self.valid = Streams(corpus.splits["valid"], config.valid_streams, device, "valid_streams")
        # Not used before the end, but a text too short for it is better refused now.
        Streams(corpus.splits["test"], config.test_streams, device, "test_streams")

    def network(self, generator: torch.Generator) -> Net:
        config = self.config
        net = RecurrentLM(
            config.model,
            self.corpus.vocab.size,
            config.network,
            noise=config.noise,
            penalty=config.penalty,
            generator=generator,
            ranks=self.ranks,
        )
        begin_output(net, config, self.corpus)
        return net

    def noise(
        self, net: Any, batch: Batch, generator: torch.Generator, progress: float
    ) -> Noise:  # fmt: skip
        return net.noise(batch, generator)

    def statistics(self, net: Net, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}  # a recurrent network has no buffers

    def described(self) -> dict[str, Any]:
        described: dict[str, Any] = {"vocabulary": self.corpus.vocab.to_plain()}
        network = self.config.network
        if not isinstance(network, str) and not are_shipped(
            gene.op for node in network.nodes for gene in node
        ):
            described["plugins"] = plugins.loaded()  # says what to name where it is loaded
        return described


def begin_output(net: RecurrentLM, config: SearchConfig | TrainConfig, corpus: Corpus) -> None:
    """Set the bias of a fresh network's output as `output_bias` says.

    As log frequencies it makes the first predictions those of a unigram model of the training text,
    for the other weights begin small.
    """
    if config.output_bias == "frequencies":
        logs = np.log(unigram_probabilities(corpus.splits["train"], corpus.vocab.size))
        with torch.no_grad():
            net.bias.copy_(torch.from_numpy(logs))


def search_texts(config: SearchConfig, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """The text that a search trains weights on, and the one for alphas and for scoring cells."""
    train, other = corpus.splits["train"], corpus.splits["valid"]
    if config.holds_out:
        kept = int(len(train) * (1 - config.alphas.held_out))
        train, other = train[:kept], train[kept:]
    return train, other


def alpha_text(config: SearchConfig, corpus: Corpus) -> np.ndarray:
    """The text that a search trains its alphas on: the weights' own for a single-level method."""
    train, other = search_texts(config, corpus)
    return train if config.relaxation.level == "train" else other


def scoring_streams(
    config: SearchConfig, corpus: Corpus, device: torch.device, trained: int
) -> Streams:
    """What cells are scored on: `blackbox.targets` of the alphas' text, from its beginning.

    As many streams as in training: the batch statistics are then of the same kind.

    Args:
        trained: steps in time that the search trains on, T of all its windows together.
    """
    _, text = search_texts(config, corpus)
    streams = config.windows.streams
    steps = max(trained // max(config.cells, 1), config.windows.bptt)
    targets = config.blackbox.targets or steps * streams
    return Streams(text[: targets + streams], streams, device)
