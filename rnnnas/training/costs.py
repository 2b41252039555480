"""What the parts of a training take on this device, measured before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import AnyCorpus, Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.engine.budget import TIMED_SHARE, Costs, measure_pass, measure_step

if TYPE_CHECKING:
    from rnnnas.training.run import TrainJob

FILES_SECONDS = 1.0  # best.pt is written and read, the result is written


def training_costs(job: TrainJob, corpus: AnyCorpus) -> Costs:
    """The costs of a training on text, with a job that is thrown away: its weights move."""
    config = job.config
    assert isinstance(config, TrainConfig) and isinstance(corpus, Corpus)
    step = measure_step(job, TIMED_SHARE * config.seconds)
    valid = Streams(corpus.splits["valid"], config.valid_streams, job.device)
    test = Streams(corpus.splits["test"], config.test_streams, job.device)
    validation, testing = (
        measure_pass(job.net, data, (data.length - 1) * data.streams, {}) for data in (valid, test)
    )
    end = FILES_SECONDS + validation + testing
    return Costs(step=step, validation=validation, end=end)
