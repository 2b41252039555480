"""What an early stop looks at after an epoch: the alphas' eigenvalue of a search, measured."""

from __future__ import annotations

from typing import final

import torch

from rnnnas.config.text import SearchConfig
from rnnnas.data.text_corpus import Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.distributed import Ranks
from rnnnas.engine.steps import generator
from rnnnas.engine.text_task import alpha_text
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas.early_stopping import EarlyStop
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.hessian import alpha_eigenvalue
from rnnnas.nas.relax.base import Alphas


@final
class EigenvalueStop:
    """Reports the largest eigenvalue of the loss' Hessian in the alphas, and stops by it.

    It is taken on the first window of the alphas' text, from a zero state, under the same masks
    each time, by one process alone.
    """

    def __init__(self, config: SearchConfig, corpus: Corpus, device: torch.device) -> None:
        self.config, self.device = config, device
        self.rule = EarlyStop(config.stop)
        streams = min(config.stop.streams or config.windows.streams, config.windows.streams)
        text = Streams(alpha_text(config, corpus), streams, device)
        steps = min(config.stop.steps or config.windows.bptt, config.windows.bptt)
        self.batch = text.window(0, min(steps, text.length - 1))

    def look(
        self, epoch: int, net: RecurrentLM, alphas: Alphas, genotype: Genotype, ranks: Ranks
    ) -> dict[str, float]:
        """What to log after `epoch`, counted from 1: nothing, or the eigenvalue."""
        if not self.rule.due(epoch):
            return {}
        twin, relaxation = net.twice(), self.config.relaxation
        noise = twin.noise(self.batch, generator(self.config.seed, "curvature", 0, self.device))
        value = ranks.on_rank_zero(
            lambda: alpha_eigenvalue(twin, relaxation, alphas, self.batch, noise)
        )
        self.rule.report(epoch, value, genotype.to_plain())
        return {"alpha_eigenvalue": value}

    @property
    def stopped_at(self) -> int | None:
        """The epoch after which the search ended, counted from 1; None where it goes on."""
        return self.rule.stopped_at

    @property
    def genotype(self) -> Genotype | None:
        """The cell that a stopped search ends with."""
        plain = self.rule.genotype
        return None if plain is None else Genotype.from_plain(plain)
