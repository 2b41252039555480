"""By what a run is computed: all that may decide its last bits, beside its settings."""

from __future__ import annotations

from typing import Any

import torch

from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.lm.fast.cpu_library import built
from rnnnas.lm.fast.known import note_of, notes_on_device, without_device_kernels
from rnnnas.lm.model import RecurrentLM


def computed_by(job: Any, ranks: int = 1) -> str:
    """'float32 on cpu, torch 2.13.0, 2 threads, compiled kernels'."""
    parts = [job.arithmetic, f"torch {torch.__version__}"]
    if job.arithmetic.endswith("on cpu"):
        parts.append(f"{torch.get_num_threads()} threads")
        if isinstance(getattr(job, "net", None), RecurrentLM):
            parts.append("compiled kernels" if built().library is not None else "no kernels")
    if ranks > 1:
        parts.append(f"{ranks} processes")
    return ", ".join(parts)


def notes_on_run(
    config: SearchConfig | TrainConfig, device: torch.device, processes: int = 1
) -> list[str]:
    """Lines for the user of a run on text: that kernels are missing, or that the fast path does not
    know a cell, or the space of a search. Compiles the kernels of a CPU where they are not yet.

    Args:
        processes: that share the run.
    """
    if config.model.path != "fast":
        return []
    notes = notes_on_device(device, config.model.precision)
    if isinstance(config, SearchConfig):
        if not config.from_scratch:  # which computes no mixture
            notes += [without_device_kernels(device, config.windows.streams, processes)]
        notes += [note_of(config.cell_space)]
    else:
        notes += [note_of(config.network)]
    return list(filter(None, notes))
