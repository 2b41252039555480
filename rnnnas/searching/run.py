"""A search: weights and alphas in turn, then the derived cell. Joins data, network and run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rnnnas.config.plain import to_plain
from rnnnas.config.presets import AnySearch
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import AnyCorpus, Corpus, check_unchanged
from rnnnas.data.ngrams import unigram_perplexity
from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine.image_task import _layers_price
from rnnnas.engine.loop import drive, finished
from rnnnas.errors import UsageError
from rnnnas.halving import HalvingJob
from rnnnas.latency.recurrent import given_table, run_price
from rnnnas.nas.collapse import collapse_note
from rnnnas.nas.genotype import Genotype, cell_text
from rnnnas.nas.latency_price import MICROSECOND
from rnnnas.nas.methods import method_of
from rnnnas.runs.checkpoint import content_digest
from rnnnas.runs.files import write_json
from rnnnas.runs.folder import Run, open_run
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.supernet import SearchJob
from rnnnas.selection import race_behind


def job_of(
    config: AnySearch, corpus: AnyCorpus, device: torch.device, ranks: Ranks = ALONE
) -> SearchJob | CandidateJob | HalvingJob:
    """The job that the method asks for: shared weights, one cell after the other, or a race.

    Raises:
        UsageError: where several processes share a search that only one can make, or cannot be
            captured because they talk within a window, for its batch statistics.
    """
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
    if ranks.size > 1 and isinstance(config, SearchConfig) and config.races:
        raise ranks.rank_zero_error(
            UsageError(
                "select.by = 'race' is for searches in one process: the race itself runs on all "
                "cores",
                "start the search without torchrun or --processes, or add --set select.by=alphas",
            )
        )
    if isinstance(config, SearchConfig) and config.from_scratch and isinstance(corpus, Corpus):
        if method_of(config.method).derive == "halving":
            return HalvingJob(config, corpus, device)
        return CandidateJob(config, corpus, device)
    return SearchJob(config, corpus, device, ranks)


def _say_collapse(
    job: SearchJob | CandidateJob | HalvingJob,
    genotype: Genotype,
    corpus: AnyCorpus,
    measured: Mapping[str, float],
) -> None:
    """One line on standard error where the search has collapsed."""
    network = unigram = None
    if isinstance(job, SearchJob) and isinstance(corpus, Corpus):
        network = measured["valid_perplexity"]
        splits = corpus.splits
        unigram = unigram_perplexity(splits["train"], splits["valid"], corpus.vocab.size)
    if note := collapse_note(genotype, network, unigram):
        print(f"note: {note}", file=sys.stderr)


def search(
    config: AnySearch,
    corpus: AnyCorpus,
    folder: Path,
    *,
    device: torch.device,
    fresh: bool = False,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Search a cell, or go on with a search that was stopped; returns its result.

    With several ranks every one of them calls this, with its own device; the number may change
    when a search goes on.

    The result: run, genotype, cell, seconds, valid_perplexity or, of images, valid_accuracy in
    percent (of the network under search; where cells were tried, of the best of them), arithmetic
    (what its products were computed in, and where), digest (SHA-256 of genotype, alphas and
    weights, or of all cells that were trained from scratch with their losses); where latency has a
    price, latency_us, predicted of the cell; where the search was stopped early, stopped_at_epoch
    and genotype_epoch, the one whose cell it is; where a race decided, origin, what proposed the
    cell, and random_cells, those that took part; valid_perplexity is then of that cell after its
    short training.

    Raises:
        RnnnasError: as `loop.drive` and `Run.open` say.
    """
    check_unchanged(corpus)
    plain = {**to_plain(config), "corpus_sha256": corpus.sha256}
    # First: what it refuses leaves no run folder behind.
    job = job_of(config, corpus, device, ranks)
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
        if isinstance(job, SearchJob) and priced is not None:
            job.set_price(run_price(priced, run.folder, table, device, ranks))
        if isinstance(job, SearchJob) and layers is not None:
            job.set_price(layers(run.folder))
        title = f"search {config.method} on {config.corpus}"
        if isinstance(job, HalvingJob):
            assert isinstance(run, Run)  # one process: see `job_of`
            seconds = job.run(run, title=title, quiet=quiet)
        else:
            seconds = drive(job, run, kind="search", title=title, quiet=quiet, ranks=ranks)
        if isinstance(job, SearchJob) and job.scored is not None:
            assert isinstance(run, Run)  # one process: see `job_of`
            seconds = job.choose(run, quiet)
        if isinstance(job, SearchJob) and text is not None and text.derive.by == "perturbation":
            assert isinstance(corpus, Corpus)
            seconds = job.perturb(corpus, run, quiet)
        genotype, measured, outcome = job.genotype(), job.measured(), job.outcome()
        origin: dict[str, Any] = {}
        if isinstance(job, SearchJob) and text is not None and text.races:
            assert isinstance(corpus, Corpus) and isinstance(run, Run)  # see `job_of`
            race = race_behind(job, corpus)
            title = f"race behind {config.method} on {config.corpus}"
            seconds = race.run(run, title=title, quiet=quiet)
            genotype, measured = race.genotype(), race.measured()
            outcome |= race.outcome()
            origin = {"origin": race.origin(), "random_cells": race.random_cells()}
            if not quiet:
                print(f"the cell that won the race: {origin['origin']}", file=sys.stderr)
        elif isinstance(job, HalvingJob):
            origin = {"origin": job.origin(), "random_cells": job.random_cells()}
        elif not quiet and ranks.leads:
            _say_collapse(job, genotype, corpus, measured)
        digest = content_digest({"genotype": genotype.to_plain(), **outcome})
        ranks.on_rank_zero(lambda: write_json(run.folder / "genotype.json", genotype.to_plain()))
        result = {
            "run": str(run.folder),
            "genotype": genotype.to_plain(),
            "cell": cell_text(genotype),
            "seconds": round(seconds, 3),
            **measured,
            **origin,
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
        run.hparams(plain, measured)
        result = ranks.broadcast(result)  # the seconds differ
        run.finish(result)
        return result
