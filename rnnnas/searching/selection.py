"""A race behind a search: the cells that it proposes, published ones and random ones beside."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch

from rnnnas.config.text import SearchConfig, SpaceConfig
from rnnnas.data.corpus import Corpus
from rnnnas.nas.derive import DeriveConfig
from rnnnas.nas.early_stopping import StopConfig
from rnnnas.nas.genotype import Gene, Genotype
from rnnnas.nas.halving import Proposal, SelectConfig
from rnnnas.nas.latency_price import LatencyConfig
from rnnnas.nas.relax.policy import Policy
from rnnnas.nas.space import NONE, CellSpace
from rnnnas.nas.stages import StageConfig
from rnnnas.nas.strategies import BlackboxConfig, Scored
from rnnnas.nas.zoo import ZOO
from rnnnas.searching.derive_by_trying import PolicyCells
from rnnnas.searching.halving import HalvingJob
from rnnnas.searching.supernet import SearchJob

PUBLISHED = ("DARTS_V2", "DARTS_V1", "ENAS")
_DARTS = ZOO["DARTS_V2"].genotype


def race_config(config: SearchConfig) -> SearchConfig:
    """The settings of the race behind a search: those of a search by halving with the same texts,
    windows and sizes, and the schedule, length and budget that `select` says.
    """
    select = config.select
    return replace(
        config,
        method="halving",
        relax={},
        model=replace(config.model, partial=1),
        weights=replace(config.weights, schedule=select.schedule),
        # Of the alphas only the text counts; a race looks ahead of no step.
        alphas=replace(config.alphas, published_lookahead=False),
        blackbox=BlackboxConfig(
            budget=select.budget, windows=select.windows, rung=select.rung,
            targets=config.blackbox.targets, draws=config.blackbox.draws,
        ),
        stages=StageConfig(),
        latency=LatencyConfig(),
        derive=DeriveConfig(),
        stop=StopConfig(),
        select=SelectConfig(),
    )  # fmt: skip


def race_behind(job: SearchJob, corpus: Corpus) -> HalvingJob:
    """The race among what a finished search proposes."""
    config = cast(SearchConfig, job.config)
    select = config.select
    return HalvingJob(
        race_config(config), corpus, job.device, proposed=proposals(job, config),
        guards=select.guards,
    )  # fmt: skip


def proposals(job: SearchJob, config: SearchConfig) -> list[Proposal]:
    """What a finished search proposes, the cell that it would return first.

    Then, the latest first, the cells that its alphas stood for on the way; samples of the
    distribution they stand for now; of cells that were tried with shared weights the best; and the
    published cells.
    """
    select, method = config.select, config.method
    found = [Proposal(job.genotype(), method)]
    found += [
        Proposal(genotype, f"{method} at {100 * (point + 1) // select.points} %")
        for point, genotype in reversed([*enumerate(job.passed)])
        if genotype is not None
    ]
    found += [Proposal(scored.genotype, f"{method}, tried") for scored in _best(job)]
    found += [Proposal(genotype, f"{method}, sample") for genotype in _samples(job, config)]
    # In a space of the user's own they would bring in what was left out of it.
    default = config.space == SpaceConfig() and config.model.nodes == len(_DARTS.recurrent.nodes)
    if select.published and default:
        found += [Proposal(ZOO[name].genotype, name) for name in PUBLISHED]
    return found


def _best(job: SearchJob) -> Sequence[Scored]:
    """Cells that were tried with shared weights, but for the best, by rising loss."""
    ranked = sorted(job.tried, key=lambda scored: scored.loss)
    config = cast(SearchConfig, job.config)
    return ranked[1 : 1 + config.select.samples]


def _samples(job: SearchJob, config: SearchConfig) -> list[Genotype]:
    spaces, count = job.net.space, config.select.samples
    if job.architect is None:
        return []
    if isinstance(job.relaxation, Policy):
        seed = config.seed + 1  # not the cells that were tried already
        cells = PolicyCells(job.relaxation, job.alphas, spaces, seed, count)
        found = []
        for _ in range(count):
            found.append(cells.ask())
            cells.tell(found[-1], 0.0)
        return found
    with torch.no_grad():
        scores = job.relaxation.scores(job.alphas, spaces)
    tables = {name: scores[name].tolist() for name in spaces}
    rng = random.Random(f"{config.seed}/select/samples")
    return [sample(spaces, tables, rng) for _ in range(count)]


def sample(
    spaces: Mapping[str, CellSpace],
    tables: Mapping[str, Sequence[Sequence[float]]],
    rng: random.Random,
) -> Genotype:
    """A cell whose every gene is drawn with a probability in proportion to its score.

    Args:
        tables: (E, O) scores by cell, none negative.
    """
    cells = {}
    for name, space in spaces.items():
        nodes = []
        for node in range(space.nodes):
            genes: list[Gene] = []
            while len(genes) < space.kept(node):
                used = {gene.source for gene in genes}
                options = [
                    (Gene(space.ops[o], space.edges[edge][0]), tables[name][edge][o])
                    for edge in space.rows(node)
                    for o in space.choices(edge)
                    if space.ops[o] != NONE and space.edges[edge][0] not in used
                ]
                weights = [max(weight, 1e-12) for _, weight in options]
                genes.append(rng.choices([gene for gene, _ in options], weights)[0])
            nodes.append(tuple(sorted(genes, key=lambda gene: gene.source)))
        cells[name] = space.cell(tuple(nodes))
    return Genotype(cells=cells)
