"""What the parts of a search take on this device, measured before it begins."""

from __future__ import annotations

import random
from typing import cast

import torch

from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import AnyCorpus, Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.data.yardsticks import yardsticks
from rnnnas.engine.budget import TIMED_SHARE, Costs, measure_pass, measure_step
from rnnnas.engine.steps import generator
from rnnnas.engine.text_task import alpha_text
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.perturbation import Perturbation
from rnnnas.nas.relax.base import Mixtures
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.halving import HalvingJob
from rnnnas.searching.race_budget import race_seconds
from rnnnas.searching.supernet import SearchJob

DRY_SECONDS = 1.0  # that steps are timed for where there is no budget
FILES_SECONDS = 0.5  # the state is written once more, and the result
BETTER = 0.5  # share of the cells, tried one by one, that are taken to be the best so far


def search_costs(
    job: SearchJob | CandidateJob, corpus: Corpus, left: float = 0.0, trained: int | None = None
) -> Costs:
    """The costs of a search on text, with a job that is thrown away: its weights move.

    Args:
        left: seconds of the budget that are not spent yet. Deriving a cell by trying reads as much
            text as the search trains on, so that it takes a share of them. trained: steps of the
            search, where they are known.
    """
    config = cast(SearchConfig, job.config)
    most = TIMED_SHARE * config.seconds or DRY_SECONDS
    yardsticks(corpus, "valid", config.valid_streams)  # now, so that the end need not wait for it
    step = measure_step(job, most)
    valid = Streams(corpus.splits["valid"], config.valid_streams, job.device)
    targets = (valid.length - 1) * valid.streams
    window = config.windows.bptt * config.windows.streams  # targets of a step
    alphas = alpha_text(config, corpus) if isinstance(job, SearchJob) else corpus.splits["valid"]
    streams = Streams(alphas, config.windows.streams, job.device)
    if isinstance(job, CandidateJob):
        validation = measure_pass(job.net, valid, targets, {})
        scoring = measure_pass(job.net, streams, window, {})
        end = FILES_SECONDS + validation
        return Costs(step=step + scoring, validation=BETTER * validation, end=end)
    draws = generator(config.seed, "valid", 0, job.device)
    with torch.no_grad():
        mixed = job.relaxation.mix(job.alphas, job.net.space, 0.5, draws)
        scores = job.relaxation.scores(job.alphas, job.net.space)
    validation = measure_pass(job.net, valid, targets, mixed)
    end = FILES_SECONDS + validation
    tried: Mixtures | None = None
    count = asked = (
        0  # masks or cells that are scored, and on how many targets each, if that is said
    )
    if job.scored is not None:
        rng = random.Random(0)
        cells = {name: space.sample(rng) for name, space in job.net.space.items()}
        tried = job.mixtures_of(Genotype(cells=cells))
        count, asked = config.cells, config.blackbox.targets
    elif config.derive.by == "perturbation":
        tried = mixed
        plan = Perturbation(job.net.space, scores, config.derive.order, config.seed)
        end += config.derive.tune_windows * max(len(plan.plan) - 1, 0) * step
        count, asked = plan.total, config.derive.targets
    if tried is not None:
        scoring = measure_pass(job.net, streams, window, tried)
        end += validation
        if asked:
            end += scoring * count * min(asked, len(alphas)) / window
        else:
            if trained is None:
                trained = int(max(left - end, 0.0) / (step + scoring))
            end += scoring * max(trained, count)  # each has a window at least
    return Costs(step=step, validation=validation, end=end)


def search_seconds(job: SearchJob | CandidateJob | HalvingJob, corpus: AnyCorpus) -> float:
    """Seconds that a search without a budget takes, by a job that is thrown away."""
    if isinstance(job, HalvingJob):
        return race_seconds(job)
    steps = job.epochs * len(job.lengths(0))
    if not isinstance(corpus, Corpus):
        return steps * measure_step(job, DRY_SECONDS)
    costs = search_costs(job, corpus, trained=steps)
    return steps * costs.step + job.epochs * costs.validation + costs.end
