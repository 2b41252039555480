"""How a time budget lets a network read a text, measured before its size is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rnnnas.config.presets import resolve_run
from rnnnas.config.recipes import REFERENCE_UNITS, STEPS, STREAMS, Reading, chosen
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import AnyCorpus, Corpus
from rnnnas.engine.budget import measure_step, read_plan
from rnnnas.engine.device import pick_device
from rnnnas.runs.files import read_object
from rnnnas.training.run import TrainJob

SHARE = 0.01  # of the budget, that the measurement may take, about


def reading_of(config: TrainConfig, corpus: Corpus, device: torch.device) -> Reading:
    """How the cell of `config` reads the training text in its seconds, with `REFERENCE_UNITS`
    units in one layer.

    By steps that are timed, on a network that is thrown away: on a machine that others use, too,
    they are fewer.
    """
    timed = replace(
        config,
        seconds=0.0,
        model=replace(config.model, hidden=REFERENCE_UNITS, layers=1),
        windows=replace(config.windows, streams=STREAMS, bptt=STEPS, limit=0),
        capture="off",  # whose capturing would take longer than what is measured
    )
    job = TrainJob(timed, corpus, device)
    steps = len(job.lengths(0))  # of a pass
    passes = config.seconds / (steps * measure_step(job, SHARE * config.seconds))
    weights = sum(weight.numel() for weight in job.net.parameters())
    return Reading(passes, weights / len(corpus.splits["train"]))


def resolve_train(
    opened: AnyCorpus, device: str | torch.device, *, kept: Mapping[str, Any] | None, **given: Any
) -> Any:
    """The configuration of a training; where a time is given and neither preset nor file, with
    the sizes that this device's speed allows.

    Args:
        kept: what was chosen for the run that goes on. given: other arguments of `resolve_run`.

    Raises:
        UsageError: as `resolve_run`.
    """
    budget = given["flags"].get("seconds")
    free = not (given.get("preset") or given.get("file") or given.get("base"))
    if not (budget and free and isinstance(opened, Corpus)):
        return resolve_run("train", **given)
    resolved = resolve_run("train", reading=Reading(), kept=kept, **given)
    if kept is not None:
        return resolved
    allowed = reading_of(resolved, opened, pick_device(device))
    return resolve_run("train", reading=allowed, **given)


def kept(folder: Path) -> dict[str, Any] | None:
    """What a recipe chose for the training with a budget in `folder`; None where there is none.

    Raises:
        CheckpointError: where its plan or its settings are damaged.
    """
    if read_plan(folder) is None:
        return None
    config = read_object(folder / "config.json").get("config")
    return chosen(config) if isinstance(config, dict) else None
