"""A search: weights and alphas in turn, then the derived cell. Joins data, network and run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rnnnas.config.plain import to_plain
from rnnnas.config.presets import AnySearch
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import AnyCorpus, Corpus, check_unchanged
from rnnnas.data.yardsticks import yardsticks
from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine.budget import Costs, Pace, Plan, Stopwatch, enter_plan, planned
from rnnnas.engine.image_task import _layers_price
from rnnnas.engine.loop import drive, finished
from rnnnas.engine.pick_task import fitted
from rnnnas.errors import UsageError
from rnnnas.latency.recurrent import given_table, run_price
from rnnnas.nas.genotype import cell_text
from rnnnas.nas.latency_price import MICROSECOND
from rnnnas.nas.methods import method_of
from rnnnas.runs.checkpoint import content_digest
from rnnnas.runs.files import write_json
from rnnnas.runs.folder import Run, open_run
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.costs import search_costs
from rnnnas.searching.supernet import SearchJob


def job_of(
    config: AnySearch,
    corpus: AnyCorpus,
    device: torch.device,
    ranks: Ranks = ALONE,
    pace: Pace | None = None,
) -> SearchJob | CandidateJob:
    """The job that the method asks for: shared weights, or one cell after the other.

    Raises:
        UsageError: where several processes share a search that only one can make, or cannot be
            captured because they talk within a window, for its batch statistics.
    """
    config = fitted(config, corpus)
    if ranks.size > 1 and isinstance(config, SearchConfig) and config.capture == "on":
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
    if isinstance(config, SearchConfig) and config.from_scratch and isinstance(corpus, Corpus):
        return CandidateJob(config, corpus, device, pace)
    return SearchJob(config, corpus, device, ranks, pace)


def _plan(
    config: AnySearch, corpus: AnyCorpus, folder: Path, device: torch.device, stopwatch: Stopwatch,
    fresh: bool, ranks: Ranks,
) -> Plan | None:  # fmt: skip
    """The plan of a search with a time budget, None of one without."""
    if not isinstance(config, SearchConfig) or not config.seconds:
        return None
    assert isinstance(corpus, Corpus)

    def measure() -> Costs:
        job = job_of(config, corpus, device, ranks)
        return search_costs(job, corpus, config.seconds - stopwatch.spent())

    cells = config.cells if config.from_scratch else 0
    return planned(
        config.seconds, folder, stopwatch, fresh=fresh, ranks=ranks, measure=measure, equal=cells
    )


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
    and genotype_epoch, the one whose cell it is.

    Raises:
        RnnnasError: as `loop.drive` and `Run.open` say.
    """
    stopwatch = stopwatch or Stopwatch()
    if minutes is not None:
        if not isinstance(config, SearchConfig):
            raise UsageError("a time budget is for text so far", "leave out `minutes`")
        config = replace(config, seconds=60.0 * minutes)
    check_unchanged(corpus)
    config = fitted(config, corpus)
    plain = {**to_plain(config), "corpus_sha256": corpus.sha256}
    plan = _plan(config, corpus, folder, device, stopwatch, fresh, ranks)
    pace = None if plan is None else Pace(plan, stopwatch, ranks)
    # First: what it refuses leaves no run folder behind.
    job = job_of(config, corpus, device, ranks, pace)
    text = config if isinstance(config, SearchConfig) else None  # what images have not
    priced = text if text is not None and text.latency.weight else None
    table = None if priced is None else given_table(priced, device)
    layers = _layers_price(config, corpus, device)
    options: dict[str, Any] = {
        "fresh": fresh, "save_seconds": config.save_seconds, "idle": config.idle,
    }  # fmt: skip
    with open_run(ranks, folder, "search", plain, **options) as run:
        if run.result is not None:
            return finished(run, ranks)
        if plan is not None:
            enter_plan(plan, run.folder, job.course, quiet=quiet, ranks=ranks)
        if isinstance(job, SearchJob) and priced is not None:
            job.set_price(run_price(priced, run.folder, table, device, ranks))
        if isinstance(job, SearchJob) and layers is not None:
            job.set_price(layers(run.folder))
        title = f"search {config.method} on {config.corpus}"
        seconds = drive(job, run, kind="search", title=title, quiet=quiet, ranks=ranks)
        if isinstance(job, SearchJob) and job.scored is not None:
            assert isinstance(run, Run)  # one process: see `job_of`
            seconds = job.choose(run, quiet)
        if isinstance(job, SearchJob) and text is not None and text.derive.by == "perturbation":
            assert isinstance(corpus, Corpus)
            seconds = job.perturb(corpus, run, quiet)
        beside = {}
        if text is not None and isinstance(corpus, Corpus):
            known = partial(yardsticks, corpus, "valid", text.valid_streams)
            beside = ranks.on_rank_zero(lambda: known().to_plain())
        genotype = job.genotype()
        digest = content_digest({"genotype": genotype.to_plain(), **job.outcome()})
        ranks.on_rank_zero(lambda: write_json(run.folder / "genotype.json", genotype.to_plain()))
        result = {
            "run": str(run.folder),
            "genotype": genotype.to_plain(),
            "cell": cell_text(genotype),
            "seconds": round(seconds, 3),
            **job.measured(),
            **beside,
            **({} if pace is None else pace.told()),
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
        run.hparams(plain, job.measured())
        result = ranks.broadcast(result)  # the seconds differ
        run.finish(result)
        return result
