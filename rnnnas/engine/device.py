"""The device of a run, by its name, and float32 that is float32 while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rnnnas.errors import UsageError


def pick_device(name: str | torch.device, local_rank: int | None = None) -> torch.device:
    """The device called `name`: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" ...

    Args:
        local_rank: number on this machine of one of several processes: each takes the CUDA
            device of its number.

    Raises:
        UsageError: where it cannot be used.
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local_rank is not None and name.startswith("cuda:"):
        raise UsageError(
            f"--device {name} is one device for several processes", "each takes its own: say cuda"
        )
    if local_rank is not None and name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device).item()  # sums of losses are such
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used: {reason}", "try --device cpu") from error
    return device


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within the block, float32 products and convolutions on CUDA are not rounded to TF32.

    A GPU's matrix units would otherwise round them to 10 bits, in evaluations and finite
    differences too. The settings of the process are put back afterwards: a notebook keeps its own.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
