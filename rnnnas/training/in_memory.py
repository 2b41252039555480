"""A training without a run folder: its curve and its figures, and nothing on a disk."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch

from rnnnas.config.text import TrainConfig
from rnnnas.data.text_corpus import Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.engine.device import exact_float32
from rnnnas.engine.job import Position, StepReport
from rnnnas.engine.loop import drive
from rnnnas.engine.metrics import perplexity
from rnnnas.engine.steps import evaluate
from rnnnas.errors import DivergedError
from rnnnas.runs.checkpoint import plain_copy
from rnnnas.runs.folder import AnyRun
from rnnnas.training.run import TrainJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training gave.

    nats: the train loss of every step, in nats a target, up to where it diverged; steps: of the
    whole training; valid_perplexity, test_perplexity: of the weights that `training.run.train`
    would report, None where diverged; arithmetic: what its products were computed in, and where.
    """

    nats: tuple[float, ...]
    steps: int
    valid_perplexity: float | None
    test_perplexity: float | None
    diverged: bool
    arithmetic: str


@final
class _Memory:
    """The part of a run folder that a job and the loop use, in memory."""

    folder = Path("a training in memory")  # as messages name it

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None
        self.best: dict[str, Any] = {}

    def load_state(self) -> dict[str, Any] | None:
        return copy.deepcopy(self.state)

    def save_state(self, content: Mapping[str, Any]) -> None:
        self.state = copy.deepcopy(plain_copy(content))

    def due(self) -> bool:
        return False

    def save_best(self, content: Mapping[str, Any]) -> None:
        self.best = {name: value.clone() for name, value in content["weights"].items()}

    def log(self, kind: str, step: int, /, **values: Any) -> None:
        """Nobody reads it."""


class _Noted(TrainJob):
    """A training that remembers the loss of every step; what is done again takes its place."""

    nats: dict[int, float]

    def step(self, at: Position, steps: int, lr_factor: float) -> StepReport:
        report = super().step(at, steps, lr_factor)
        self.nats[at.step] = float(report.nats)
        return report


@exact_float32()
def train_in_memory(config: TrainConfig, corpus: Corpus, device: torch.device) -> Trained:
    """What `training.run.train` gives for these settings, to the last bit on as many threads.

    Raises:
        Interrupted: on SIGINT or SIGTERM; nothing of the training is kept.
    """
    job, memory = _Noted(config, corpus, device), _Memory()
    job.nats = {}
    run = cast(AnyRun, memory)
    diverged = False
    try:
        drive(job, run, kind="train", title="", quiet=True)
    except DivergedError:
        diverged = True
    every = (job.nats[step] for step in sorted(job.nats))
    nats = tuple(itertools.takewhile(math.isfinite, every))
    steps = sum(len(job.lengths(epoch)) for epoch in range(job.epochs))
    if diverged or not math.isfinite(job.best):
        return Trained(
            nats=nats, steps=steps, valid_perplexity=None, test_perplexity=None, diverged=True,
            arithmetic=job.arithmetic,
        )  # fmt: skip
    job.net.load_state_dict(memory.best)
    test = Streams(corpus.splits["test"], config.test_streams, device, "")
    return Trained(
        nats=nats, steps=steps, valid_perplexity=perplexity(job.best, 1),
        test_perplexity=evaluate(job.net, test, {}).perplexity, diverged=False,
        arithmetic=job.arithmetic,
    )  # fmt: skip
