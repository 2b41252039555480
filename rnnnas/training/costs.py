"""What the parts of a training take on this device, measured before it begins."""

from __future__ import annotations

from typing import Any, Protocol, cast

from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import AnyCorpus, Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.data.yardsticks import yardsticks
from rnnnas.engine.budget import TIMED_SHARE, Costs, Steppable, measure_pass, measure_step

DRY_SECONDS = 1.0  # that steps are timed for where there is no budget
FEW = 20  # epochs whose windows are counted one by one
FILES_SECONDS = 1.0  # best.pt is written and read, the result is written


class Training(Steppable, Protocol):
    """What is measured of a training's job."""

    config: Any
    net: Any
    epochs: int


def training_costs(job: Training, corpus: AnyCorpus) -> Costs:
    """The costs of a training on text, with a job that is thrown away: its weights move."""
    config, corpus = cast(TrainConfig, job.config), cast(Corpus, corpus)
    most = TIMED_SHARE * config.seconds or DRY_SECONDS
    yardsticks(corpus, "test", config.test_streams)  # now, so that the end need not wait for it
    step = measure_step(job, most)
    valid = Streams(corpus.splits["valid"], config.valid_streams, job.device)
    test = Streams(corpus.splits["test"], config.test_streams, job.device)
    validation, testing = (
        measure_pass(job.net, data, (data.length - 1) * data.streams, {}) for data in (valid, test)
    )
    end = FILES_SECONDS + validation + testing
    return Costs(step=step, validation=validation, end=end)


def training_seconds(job: Training, corpus: AnyCorpus) -> float:
    """Seconds that a training without a budget takes, by a job that is thrown away."""
    steps = sum(len(job.lengths(epoch)) for epoch in range(min(job.epochs, FEW)))
    steps = round(steps * max(1.0, job.epochs / FEW))
    if not isinstance(corpus, Corpus):
        return steps * measure_step(job, DRY_SECONDS)
    costs = training_costs(job, corpus)
    return steps * costs.step + (job.epochs - 1) * costs.validation + costs.end
