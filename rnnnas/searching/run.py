"""A search: weights and alphas in turn, then the derived cell. Joins data, network and run."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from rnnnas.cnn.dense.genotype import is_dense
from rnnnas.config.plain import to_plain
from rnnnas.config.presets import AnySearch, with_budget
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import AnyCorpus, Corpus, check_unchanged
from rnnnas.data.yardsticks import yardsticks
from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine.budget import (
    Costs,
    Course,
    Pace,
    Plan,
    RaceClock,
    Stopwatch,
    enter_plan,
    planned,
)
from rnnnas.engine.computed_by import computed_by
from rnnnas.engine.device import exact_float32
from rnnnas.engine.loop import drive, finished
from rnnnas.engine.pick_task import check, fitted
from rnnnas.errors import DivergedError, UsageError, visible
from rnnnas.nas.collapse import collapse_note
from rnnnas.nas.genotype import Genotype, cell_text
from rnnnas.nas.latency_price import MICROSECOND
from rnnnas.nas.methods import method_of
from rnnnas.runs.checkpoint import content_digest
from rnnnas.runs.files import write_json
from rnnnas.runs.folder import Run, open_run
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.cell_training import Course as RaceCourse
from rnnnas.searching.costs import search_costs
from rnnnas.searching.halving import HalvingJob
from rnnnas.searching.race_budget import AIM, SHARE, TimedRace, keep_race, timed_race
from rnnnas.searching.selection import race_behind, race_config
from rnnnas.searching.supernet import SearchJob


def job_of(
    config: AnySearch,
    corpus: AnyCorpus,
    device: torch.device,
    ranks: Ranks = ALONE,
    pace: Pace | None = None,
) -> SearchJob | CandidateJob | HalvingJob:
    """The job that the method asks for: shared weights, one cell after the other, or a race.

    Raises:
        UsageError: where several processes share a search that only one can make, or cannot be
            captured because they talk within a window, for its batch statistics.
    """
    check(config, corpus, ranks)
    config = fitted(config, corpus)
    if ranks.size > 1 and config.capture == "on":
        raise ranks.rank_zero_error(
            UsageError(
                "capture = 'on' is for searches in one process",
                "leave it out, or start the search without torchrun or --processes",
            )
        )
    if ranks.size > 1 and method_of(config.method).alphas != "gradient":
        raise ranks.rank_zero_error(
            UsageError(
                f"a search by {config.method!r} runs in one process",
                "start it without torchrun or --processes; `rnnnas study --jobs N` runs several",
            )
        )
    if ranks.size > 1 and config.races:
        raise ranks.rank_zero_error(
            UsageError(
                "select.by = 'race' is for searches in one process: the race itself runs on all "
                "cores",
                "start the search without torchrun or --processes, or add --set select.by=alphas",
            )
        )
    if config.from_scratch:  # no method for images is
        text, own = cast(SearchConfig, config), cast(Corpus, corpus)
        if method_of(config.method).derive == "halving":
            return HalvingJob(text, own, device)
        return CandidateJob(text, own, device, pace)
    return SearchJob(config, corpus, device, ranks, pace)


def _plan(
    config: AnySearch, corpus: AnyCorpus, folder: Path, device: torch.device, stopwatch: Stopwatch,
    fresh: bool, ranks: Ranks, later: float,
) -> Plan | None:  # fmt: skip
    """The plan of a search with a time budget, None of one without, and of a race by halving.

    later: seconds for a race behind the search.
    """
    seconds = config.seconds
    if not seconds or method_of(config.method).derive == "halving":
        return None

    def measure() -> Costs:
        job = cast(SearchJob | CandidateJob, job_of(config, corpus, device, ranks))
        return search_costs(job, cast(Corpus, corpus), seconds - stopwatch.spent())

    cells = cast(SearchConfig, config).cells if config.from_scratch else 0
    return planned(
        seconds,
        folder,
        stopwatch,
        fresh=fresh,
        ranks=ranks,
        measure=measure,
        equal=cells,
        later=later,
    )


def _timed(
    config: AnySearch, corpus: AnyCorpus, folder: Path, device: torch.device, stopwatch: Stopwatch,
    fresh: bool,
) -> tuple[AnySearch, TimedRace | None]:  # fmt: skip
    """The settings of a search with a time budget in which a race takes part, and the race's plan.

    A race by halving has all of the time; one behind another method has `SHARE` of it.
    """
    halving = method_of(config.method).derive == "halving"
    if not config.seconds or not (halving or config.races):
        return config, None
    text = cast(SearchConfig, config)
    race = text if halving else race_config(text)
    timed = timed_race(
        race, cast(Corpus, corpus), device, folder, text.seconds, spent=stopwatch.spent(),
        share=1.0 if halving else SHARE, fresh=fresh,
    )  # fmt: skip
    if halving:
        black = replace(text.blackbox, budget=timed.budget, windows=timed.windows)
        return replace(text, seconds=0.0, blackbox=black), timed
    select = replace(text.select, budget=timed.budget, windows=timed.windows)
    # The race begins where the search ends: it has the rest of the time.
    return replace(text, seconds=timed.begins, select=select), timed


def _say_collapse(
    job: SearchJob | CandidateJob | HalvingJob,
    genotype: Genotype,
    measured: Mapping[str, float],
    beside: Mapping[str, float],
) -> None:
    """One line on standard error where the search has collapsed."""
    network = measured.get("valid_perplexity") if isinstance(job, SearchJob) else None
    unigram = beside.get("unigram_perplexity") if network is not None else None
    if is_dense(genotype.cells):  # whose blocks may well have one kind of layer
        return
    spaces = job.net.space if isinstance(job, SearchJob) else None
    if note := collapse_note(genotype, network, unigram, spaces):
        print(visible(f"note: {note}"), file=sys.stderr)


@exact_float32()
def search(
    config: AnySearch,
    corpus: AnyCorpus,
    folder: Path,
    *,
    device: torch.device,
    fresh: bool = False,
    quiet: bool = False,
    ranks: Ranks = ALONE,
    minutes: float | None = None,
    stopwatch: Stopwatch | None = None,
) -> dict[str, Any]:
    """Search a cell, or go on with a search that was stopped; returns its result.

    Args:
        minutes: a time budget, as 60 times as many `seconds` of `config`: it decides on the steps.
        stopwatch: of that budget, running since something that the budget is to cover.

    With several ranks every one of them calls this, with its own device; the number may change
    when a search goes on.

    The result: run, genotype, cell, seconds, valid_perplexity or, of images, valid_accuracy in
    percent (of the network under search; where cells were tried, of the best of them), of the same
    validation tokens unigram_perplexity and bigram_perplexity, arithmetic
    (what its products were computed in, and where), digest (SHA-256 of genotype, alphas and
    weights, or of all cells that were trained from scratch with their losses); where latency has a
    price, latency_us, predicted of the cell; where the search was stopped early, stopped_at_epoch
    and genotype_epoch, the one whose cell it is; where a race decided, origin, what proposed the
    cell ("random" for a uniform draw, "structure" for the likeliest of several), finalists, all
    that were trained in full, the best first, and random_cells, the uniform draws that took part;
    valid_perplexity is then of the found cell after its short training.

    Raises:
        RnnnasError: as `loop.drive` and `Run.open` say.
    """
    stopwatch = stopwatch or Stopwatch()
    if minutes is not None:
        config = with_budget(config, minutes)
    check_unchanged(corpus)
    config = fitted(config, corpus)
    plain = {**to_plain(config), "corpus_sha256": corpus.sha256}
    given_seconds = config.seconds
    if isinstance(config, SearchConfig) and config.races:
        # What the race behind it would refuse is said before the search.
        RaceCourse(race_config(config), cast(Corpus, corpus), device)
    config, race_plan = _timed(config, corpus, folder, device, stopwatch, fresh)
    later = given_seconds - config.seconds if config.seconds else 0.0
    plan = _plan(config, corpus, folder, device, stopwatch, fresh, ranks, later)
    pace = None if plan is None else Pace(plan, stopwatch, ranks)
    # First: what it refuses leaves no run folder behind.
    job = job_of(config, corpus, device, ranks, pace)
    pricing = job.task.pricing() if isinstance(job, SearchJob) else None
    options: dict[str, Any] = {
        "fresh": fresh, "save_seconds": config.save_seconds, "idle": config.idle,
    }  # fmt: skip
    clock: RaceClock | None = None
    with open_run(ranks, folder, "search", plain, **options) as run:
        if run.result is not None:
            return finished(run, ranks, quiet=quiet)
        if race_plan is not None:
            keep_race(run.folder, race_plan)
            clock = RaceClock(stopwatch, given_seconds, race_plan.costs, aim=AIM)
        if plan is not None:
            enter_plan(plan, run.folder, cast(Course, job.course), quiet=quiet, ranks=ranks)
        if isinstance(job, SearchJob) and pricing is not None:
            job.set_price(pricing(run.folder))
        title = f"search {config.method} on {config.corpus}"
        if isinstance(job, HalvingJob):
            assert isinstance(run, Run)  # one process: see `job_of`
            job.clock = clock
            if race_plan is not None:
                job.workers = min(job.workers, race_plan.workers)
            seconds = job.run(run, title=title, quiet=quiet)
        else:
            seconds = drive(job, run, kind="search", title=title, quiet=quiet, ranks=ranks)
        if isinstance(job, SearchJob) and job.scored is not None:
            seconds = job.choose(cast(Run, run), quiet)  # one process: see `job_of`
        if isinstance(job, SearchJob) and config.derives_by_perturbation:
            seconds = job.perturb(cast(Corpus, corpus), run, quiet)
        beside: dict[str, float] = {}
        if job.measure == "perplexity":
            streams = cast(SearchConfig, config).valid_streams
            known = partial(yardsticks, cast(Corpus, corpus), "valid", streams)
            beside = ranks.on_rank_zero(lambda: known().to_plain())
        genotype, measured, outcome = job.genotype(), job.measured(), job.outcome()
        origin: dict[str, Any] = {}
        steps = 0 if pace is None else pace.told()["steps"]
        if isinstance(job, SearchJob) and config.races:
            race = race_behind(job, cast(Corpus, corpus))
            race.clock = clock
            if race_plan is not None:
                race.workers = min(race.workers, race_plan.workers)
            title = f"race behind {config.method} on {config.corpus}"
            seconds = race.run(cast(Run, run), title=title, quiet=quiet)
            genotype, measured = race.genotype(), race.measured()
            outcome |= race.outcome()
            origin = _of_race(race)
            steps += race.race.steps
            if not quiet:
                print(visible(f"the cell that won the race: {origin['origin']}"), file=sys.stderr)
        elif isinstance(job, HalvingJob):
            origin = _of_race(job)
            steps = job.race.steps
        elif not quiet and ranks.leads:
            _say_collapse(job, genotype, measured, beside)
        check_finite(measured, job.epochs)
        digest = content_digest({"genotype": genotype.to_plain(), **outcome})
        ranks.on_rank_zero(lambda: write_json(run.folder / "genotype.json", genotype.to_plain()))
        result = {
            "run": str(run.folder),
            "genotype": genotype.to_plain(),
            "cell": cell_text(genotype),
            "seconds": round(seconds, 3),
            **measured,
            **beside,
            **origin,
            **({} if pace is None else pace.told()),
            **({} if clock is None else clock.told() | {"steps": steps}),
            "arithmetic": job.arithmetic,
            "digest": digest,
            **(
                job.eigenvalue_stop.rule.told()
                if isinstance(job, SearchJob) and job.eigenvalue_stop
                else {}
            ),
        }
        if isinstance(job, SearchJob) and job.price is not None:
            result["latency_us"] = job.price.of_cells(genotype.cells) / MICROSECOND
        run.hparams({**plain, "cell": result["cell"]}, measured)
        result = ranks.broadcast(result)  # the seconds differ
        run.finish(result, computed_by(job, ranks.size))
        return result


def _of_race(race: HalvingJob) -> dict[str, Any]:
    """What the result says of a race's cells."""
    return {
        "origin": race.origin(),
        "finalists": race.finalists(),
        "random_cells": race.random_cells(),
    }


def check_finite(measured: Mapping[str, float], epochs: int) -> None:
    """Refuse to recommend a cell whose measured figures are no numbers.

    Raises:
        DivergedError: where one is not finite and there was anything to train.
    """
    for name, value in measured.items():
        if epochs and not math.isfinite(value):
            raise DivergedError(
                f"{name.replace('_', ' ')} is {value}: every candidate diverged, and there is no "
                "cell to recommend",
                "lower the step size with --set weights.lr=... and start with --fresh",
            )
