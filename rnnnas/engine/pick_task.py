"""The task of a run, by its configuration and its corpus, which must be of one kind."""

from __future__ import annotations

from typing import TypeVar, cast

import torch

from rnnnas.config.images import ImageSearchConfig, ImageTrainConfig
from rnnnas.config.presets import AnySearch, AnyTrain
from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.data.corpus import AnyCorpus
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.data.text_corpus import Corpus
from rnnnas.distributed import Ranks
from rnnnas.engine import text_task
from rnnnas.engine.image_task import ImageSearch, ImageTraining
from rnnnas.engine.task import SearchTask, TrainTask
from rnnnas.engine.text_task import TextSearch, TextTraining
from rnnnas.errors import UsageError

Run = TypeVar("Run", bound=AnySearch | AnyTrain)


def fitted(config: Run, corpus: AnyCorpus) -> Run:
    """The settings of a run with the length that fits this corpus; see `text_task.fitted`."""
    if isinstance(corpus, Corpus):
        if isinstance(config, SearchConfig):
            return cast(Run, text_task.fitted(config, corpus))
        if isinstance(config, TrainConfig):
            return cast(Run, text_task.fitted(config, corpus))
    return config


def search_task(
    config: AnySearch, corpus: AnyCorpus, device: torch.device, ranks: Ranks
) -> SearchTask:
    """The task of a search. Raises UsageError as `check` does."""
    check(config, corpus, ranks)
    if isinstance(config, SearchConfig):
        return TextSearch(config, cast(Corpus, corpus), device, ranks)
    return ImageSearch(config, cast(ImageCorpus, corpus), device)


def train_task(
    config: AnyTrain, corpus: AnyCorpus, device: torch.device, ranks: Ranks
) -> TrainTask:
    """The task of a training. Raises UsageError as `check` does."""
    check(config, corpus, ranks)
    if isinstance(config, TrainConfig):
        return TextTraining(config, cast(Corpus, corpus), device, ranks)
    return ImageTraining(config, cast(ImageCorpus, corpus), device)


def check(config: AnySearch | AnyTrain, corpus: AnyCorpus, ranks: Ranks) -> None:
    """Raises UsageError: settings for the other kind of corpus, several processes on images."""
    images = isinstance(config, ImageSearchConfig | ImageTrainConfig)
    if images != isinstance(corpus, ImageCorpus):
        is_, for_ = ("a text", "images") if images else ("images", "text")
        raise UsageError(
            f"these settings are for {for_}, and the corpus {corpus.name} holds {is_}",
            "name a preset that fits it; see `rnnnas presets list`",
        )
    if images and ranks.size > 1:
        # Each process would normalise by its own share of a batch.
        raise ranks.rank_zero_error(
            UsageError("a run on images has one process", "leave out --processes and torchrun")
        )
