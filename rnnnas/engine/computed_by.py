"""By what a run is computed: all that may decide its last bits, beside its settings."""

from __future__ import annotations

from typing import Any

import torch

from rnnnas.lm.fast.cpu_library import built
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
