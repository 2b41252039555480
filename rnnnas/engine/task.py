"""What a search and a training ask of what they learn from: an interface, served twice.

The jobs of `search` and `train` own weights, alphas, optimisers, hidden states and what was
measured. A task owns data: which batches there are, how a network for them is built, and how the
step size and the masks depend on a batch. It has no state: everything follows from its arguments
and the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from rnnnas.cnn import model as cnn
from rnnnas.cnn.dense.network import DenseNet
from rnnnas.cnn.model import ConvNet
from rnnnas.data.text_streams import Streams
from rnnnas.engine.cuda_graphs import CudaGraphs
from rnnnas.engine.job import Position
from rnnnas.engine.steps import Readable
from rnnnas.lm import model as lm
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.latency_price import Price
from rnnnas.nas.relax.base import Alphas, Relaxation, Spaces
from rnnnas.types import Batch, Noise

Net: TypeAlias = RecurrentLM | ConvNet | DenseNet


def arithmetic(net: Net, device: torch.device) -> str:
    """The `arithmetic` of a job that trains `net` on `device`."""
    if isinstance(net, RecurrentLM):
        return products_in(lm.low_precision(net.config, device), device)
    return products_in(cnn.low_precision(net.config, device), device)


class AlphaBatch(NamedTuple):
    """batch: of the alphas' data. start: where the next one begins in a text. fresh: whether it
    is the beginning of the data, where no state of before belongs.
    """

    batch: Batch
    start: int
    fresh: bool


class Task(Protocol):
    """The data of a run. measure: the name of what is reported ("perplexity" or "accuracy"); train:
    what the weights learn from.
    """

    measure: str
    train: Any

    @property
    def valid(self) -> Readable:
        """What each epoch is measured on."""

    def lengths(self, epoch: int) -> list[int]:
        """Steps in time of every batch of an epoch; of images 1 each."""

    def batch(self, at: Position, steps: int) -> Batch:
        """The training batch `at`, of `steps` in time."""

    def scaled(self, lr: float, steps: int) -> float:
        """The step size for a batch of `steps`, where `lr` is that of a full one."""

    def cuda_graphs(self) -> CudaGraphs | None:
        """What captures a network's windows; None where they are computed one by one."""


class SearchTask(Task, Protocol):
    """The data of a search. spaces: of every cell, whole; alpha: what the alphas learn from."""

    spaces: Spaces
    alpha: Any

    def network(self, stage: int, spaces: Spaces, generator: torch.Generator) -> Net:
        """A fresh network of a stage, on the CPU."""

    def derive(self, relaxation: Relaxation, alphas: Alphas, spaces: Spaces) -> Genotype:
        """The architecture that the alphas stand for in what is left of the spaces."""

    def alpha_batch(self, at: Position, start: int) -> AlphaBatch:
        """The batch of the alpha step `at`; start: where the one before ended, 0 in a new epoch."""

    def at(self, net: Net, stage: int, progress: float) -> Net:
        """The same weights as they are masked at `progress`, in [0, 1], of a stage."""

    def alone(self, net: Net) -> Net:
        """The same weights in a network that one process evaluates by itself."""

    def scored(self, trained: int) -> Streams:
        """What cells are tried on; trained: steps in time of the whole search."""

    def pricing(self) -> Callable[[Path], Price] | None:
        """What gives the search its price of latency in a run folder; None where it has none.

        A table that the settings name is read here, before there is a run folder.

        Raises:
            CheckpointError, UsageError: where that table is none, or is of another machine.
        """


class TrainTask(Task, Protocol):
    """The data of a training. kind: of its best.pt."""

    kind: str

    def network(self, generator: torch.Generator) -> Net:
        """The network, on the CPU."""

    def noise(
        self, net: Any, batch: Batch, generator: torch.Generator, progress: float
    ) -> Noise:  # fmt: skip
        """The masks of a training step at `progress` of the run."""

    def statistics(self, net: Net, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The buffers that belong to `weights` other than the network's own, as averaged ones."""

    def described(self) -> dict[str, Any]:
        """What a best.pt says of the data, that evaluation needs: plain values."""


def products_in(low: bool, device: torch.device) -> str:
    """A job's `arithmetic`, by whether its products are rounded to bfloat16."""
    return f"{'bfloat16' if low else 'float32'} on {device.type}"
