"""What a study will take, before it is started: a few steps of each kind of run, timed."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any, cast

import torch

from rnnnas.config.presets import AnySearch, AnyTrain
from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.data.corpus import AnyCorpus, Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.engine.cuda_graphs import PATIENCE, synchronise
from rnnnas.engine.job import Position
from rnnnas.engine.steps import EVALUATION_STEPS, evaluate, generator
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.relax.base import Mixture, Mixtures
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.halving import HalvingJob
from rnnnas.searching.run import job_of
from rnnnas.searching.selection import race_config
from rnnnas.searching.supernet import SearchJob
from rnnnas.studies.local_jobs import threads_each
from rnnnas.studies.plan import (
    RANDOM,
    Sizes,
    StudyConfig,
    final_jobs,
    first_jobs,
    search_config,
    train_config,
)
from rnnnas.training.run import TrainJob

START_SECONDS = 5.0  # of a process: the interpreter, torch, the corpus
_WARM, _TIMED = 1, 3  # steps
_WINDOWS = 2  # of an evaluation


def estimate(
    config: StudyConfig, corpus: AnyCorpus, device: torch.device, *, slots: int
) -> dict[str, Any]:
    """Every job of a study with its steps and estimated seconds, as if nothing were done yet.

    The seconds are those of one job that has its share of this machine's cores, one of `slots`.
    Final trainings are of cells that are not known yet: their names lack it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, threads_each(slots)))
    try:
        return _estimate(config, corpus, device, slots)
    finally:
        torch.set_num_threads(threads)


def _estimate(
    config: StudyConfig, corpus: AnyCorpus, device: torch.device, slots: int
) -> dict[str, Any]:
    sizes = Sizes(corpus.splits)
    seconds = {m: search_seconds(search_config(config, m), corpus, device) for m in config.methods}
    trained: Mapping[str, float] = {
        "short": train_seconds(train_config(config, "short"), corpus, device),
        "final": train_seconds(train_config(config, "final"), corpus, device),
    }
    rows = () if config.finals == "all" else (*config.methods, RANDOM)
    finals = final_jobs(config, dict.fromkeys(rows, 1), sizes)
    jobs: list[dict[str, Any]] = [
        {
            # A final training of the best cell, which is not known yet, lacks its name.
            "name": f"final-{job.method.replace(' ', '-')}" if job in finals else job.name,
            "kind": job.kind,
            "command": ["rnnnas", *job.words],
            "steps": job.steps,
            "seconds": seconds[job.method] if job.kind == "search" else trained[job.kind],
        }
        for job in (*first_jobs(config, sizes), *finals)
    ]
    return {"jobs": jobs, "seconds": sum(job["seconds"] for job in jobs) / slots}


def search_seconds(config: AnySearch, corpus: AnyCorpus, device: torch.device) -> float:
    """Seconds of a search: its steps, an evaluation an epoch, and the cells that it tries."""
    if config.seconds:
        return config.seconds
    job = job_of(config, corpus, device)
    if isinstance(job, HalvingJob):
        text = cast(Corpus, corpus)  # no method for images races
        tokens, streams = len(text.splits["valid"]), job.config.windows.streams
        scored = job.course.held_out.length * streams
        passed = _pass_seconds(job, text, "valid", streams, {}) / tokens * scored
        return START_SECONDS + job.plan.total_steps * _step(job) + job.plan.scorings * passed
    steps = Sizes(corpus.splits).steps(config) * _step(job)
    seconds = START_SECONDS + steps
    if not isinstance(config, SearchConfig):
        assert isinstance(job, SearchJob)
        draws = generator(config.seed, "valid", 0, device)
        with torch.no_grad():
            mixed = job.relaxation.mix(job.alphas, job.net.space, 0.5, draws)
        return seconds + config.epochs * _images_seconds(job, mixed)
    assert isinstance(corpus, Corpus)
    tried: Mixtures = {}  # of a cell that is tried with the shared weights
    if isinstance(job, SearchJob):
        draws = generator(config.seed, "valid", 0, device)
        with torch.no_grad():
            mixed = job.relaxation.mix(job.alphas, job.net.space, 0.5, draws)
        seconds += config.epochs * _pass_seconds(job, corpus, "valid", config.valid_streams, mixed)
        if job.scored is not None:
            rng = random.Random(0)
            spaces = job.net.space.items()
            some = Genotype(cells={name: space.sample(rng) for name, space in spaces})
            tried = job.mixtures_of(some)
    if job.scored is not None:
        targets = job.scored.length * config.windows.streams
        valid = _pass_seconds(job, corpus, "valid", config.windows.streams, tried)
        seconds += config.cells * valid * targets / len(corpus.splits["valid"])
    if config.races:
        seconds += search_seconds(race_config(config), corpus, device) - START_SECONDS
    return seconds


def train_seconds(config: AnyTrain, corpus: AnyCorpus, device: torch.device) -> float:
    """Seconds of a training: its steps, an evaluation an epoch, and one of either text at last."""
    if config.seconds:
        return config.seconds
    job = TrainJob(config, corpus, device)
    if not isinstance(config, TrainConfig):
        steps = Sizes(corpus.splits).steps(config) * _step(job)
        return START_SECONDS + steps + (job.epochs + 2) * _images_seconds(job, {})
    assert isinstance(corpus, Corpus)
    valid = _pass_seconds(job, corpus, "valid", config.valid_streams, {})
    test = _pass_seconds(job, corpus, "test", config.test_streams, {})
    steps = Sizes(corpus.splits).steps(config) * _step(job)
    return START_SECONDS + steps + (job.epochs + 1) * valid + test


def _images_seconds(job: SearchJob | TrainJob, mixtures: Mapping[str, Mixture]) -> float:
    """Seconds that an evaluation of the validation images takes."""
    began = time.perf_counter()
    evaluate(job.net, job.valid, mixtures, cuda_graphs=job.cuda_graphs)
    synchronise(job.device)
    return time.perf_counter() - began


def _step(job: SearchJob | CandidateJob | HalvingJob | TrainJob) -> float:
    """Seconds a step, in the middle of the run, where alphas are stepped too."""
    job.begin_epoch(Position())
    start, began = 0, 0.0
    warm, lengths = _WARM, job.lengths(0)
    if job.cuda_graphs is None:
        lengths = lengths[: warm + _TIMED]
    else:  # one length until it has its graph, or a capture is what would be timed
        warm = PATIENCE + 2
        lengths = lengths[:1] * min(warm + _TIMED, len(lengths))
    warm = min(warm, len(lengths) - 1)
    for number, steps in enumerate(lengths):
        if number == warm:
            synchronise(job.device)
            began = time.perf_counter()
        job.step(Position(step=number, start=start, progress=0.5), steps, 1.0)
        start += steps
    synchronise(job.device)
    return (time.perf_counter() - began) / (len(lengths) - warm)


def _pass_seconds(
    job: SearchJob | CandidateJob | HalvingJob | TrainJob, corpus: Corpus, split: str, streams: int,
    mixtures: Mapping[str, Mixture],
) -> float:  # fmt: skip
    """Seconds that an evaluation of a split takes, from its first windows."""
    tokens = corpus.splits[split]
    # A first one is slow, and a compiler may run, or a window is captured.
    windows = _WINDOWS + (0 if job.cuda_graphs is None else PATIENCE)
    cut = tokens[: streams * (windows * EVALUATION_STEPS + 1)]
    first = tokens[: 2 * streams] if job.cuda_graphs is None else cut
    evaluate(job.net, Streams(first, streams, job.device), mixtures, cuda_graphs=job.cuda_graphs)
    began = time.perf_counter()
    evaluate(job.net, Streams(cut, streams, job.device), mixtures, cuda_graphs=job.cuda_graphs)
    return (time.perf_counter() - began) * len(tokens) / len(cut)
