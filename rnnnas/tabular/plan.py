"""What a table holds: its cells in order, and the settings of their trainings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rnnnas.config.plain import from_plain, leaves, to_plain
from rnnnas.config.presets import compose, resolve
from rnnnas.config.table import TableConfig
from rnnnas.config.text import TrainConfig
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import RECURRENT, Gene, Genotype
from rnnnas.nas.space import CellSpace
from rnnnas.runs.files import json_plain

MOST_CELLS = 100_000  # beyond that nobody trains them all


def resolve_table(*, preset: str, settings: Iterable[str], flags: Mapping[str, Any]) -> TableConfig:
    """The configuration of a table: as `presets.resolve`, its trainings checked as well.

    Raises:
        UsageError: for whatever a training would refuse, and for a space too large to be trained.
    """
    table = compose("table", preset=preset, file=None, settings=settings, flags=flags)
    config = from_plain(TableConfig, table)
    if (count := config.space.count()) > MOST_CELLS:
        raise UsageError(
            f"a space of {count:,} cells is too large to be trained whole",
            "give fewer nodes or operations, e.g. --set nodes=3",
        )
    training = train_config(config, next(cells(config.space)), config.seeds[0])
    steps = training.windows.limit * training.epochs
    if 0 < steps < config.stretches:
        raise UsageError(
            f"stretches = {config.stretches} of a training of {steps} steps",
            f"give --set stretches={steps} or fewer",
        )
    return config


def cells(space: CellSpace) -> Iterator[str]:
    """The short text of every cell of a space with one edge a node, in a fixed order."""
    choices = [
        [
            Gene(space.ops[op], space.edges[edge][0])
            for edge in space.rows(node)
            for op in space.choices(edge)
        ]
        for node in range(space.nodes)
    ]
    for genes in itertools.product(*choices):
        cell = space.cell([(gene,) for gene in genes])
        yield Genotype(cells={RECURRENT: cell}).to_text()


def train_words(config: TableConfig) -> tuple[str, list[str]]:
    """The preset of the trainings, and its other settings as `--set` takes them."""
    rest = dict(config.train)
    preset = rest.pop("preset", None)
    if not isinstance(preset, str):
        raise UsageError(f"train.preset = {preset!r} must be the name of a preset")
    return preset, [f"{key}={json.dumps(value)}" for key, value in leaves(rest)]


def train_config(config: TableConfig, cell: str, seed: int) -> TrainConfig:
    """The settings of one training of the table."""
    preset, settings = train_words(config)
    flags = {"corpus": config.corpus, "genotype": cell, "seed": seed}
    resolved: TrainConfig = resolve(
        "train", preset=preset, file=None, settings=settings, flags=flags
    )
    return resolved


def training_settings(config: TableConfig) -> dict[str, Any]:
    """What all trainings have in common, as plain values."""
    plain = to_plain(train_config(config, next(cells(config.space)), config.seeds[0]))
    for key in ("genotype", "seed"):
        del plain[key]
    common: dict[str, Any] = json_plain(plain)
    return common
