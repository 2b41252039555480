"""What the commands share: options, output, devices, the default folder."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnnas.errors import UsageError

if TYPE_CHECKING:
    import torch

STARTED = time.perf_counter()  # of the command: a budget covers its start, too


def print_json(value: object) -> None:
    """One JSON object on standard output; what JSON has no number for (inf, nan) is null."""
    click.echo(json.dumps(_finite(value), allow_nan=False))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device of `--device`. Raises UsageError where it cannot be used.

    float32 is float32 from here on: a GPU's matrix units would otherwise round convolutions and
    LSTMs to the 10 bits of TF32, in evaluations and finite differences too.

    Args:
        local_rank: number on this machine of one of several processes: each takes the CUDA
            device of its number.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
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


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object only.")
device_option = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def budget_seconds(minutes: float | None, seconds: float | None) -> float | None:
    """The budget that --minutes or --seconds gives. Raises UsageError for both."""
    if minutes is not None and seconds is not None:
        raise UsageError("--minutes and --seconds are one budget", "give one of them")
    return seconds if minutes is None else 60.0 * minutes


def home() -> Path:
    """The folder that everything lies under by default."""
    return Path(os.environ.get("RNNNAS_HOME", ""))


def checkpoints() -> Path:
    """Where runs lie by default."""
    return home() / "checkpoints"


def say_kernels(device: torch.device, precision: str = "auto") -> None:
    """One line where the recurrent cells have to do without their compiled kernels, and one where
    `precision` asks for what the processor can only imitate.
    """
    from rnnnas.lm.fast import triton_support as devices
    from rnnnas.lm.fast.cpu_library import built, has_bfloat16

    if device.type == "cuda" and (reason := devices.reason(device)):
        click.echo(f"note: without kernels for CUDA, hence slower: {reason}", err=True)
    if device.type != "cpu":
        return
    if reason := built().reason:
        click.echo(f"note: without compiled kernels, hence slower: {reason}", err=True)
    if precision == "bfloat16" and not has_bfloat16():
        click.echo("note: this processor has no bfloat16 products: imitating them is many times "
                   "slower than model.precision=float32", err=True)  # fmt: skip


def say_compared(result: dict[str, Any], perplexity: float | None, whose: str, remedy: str) -> None:
    """Hold a perplexity against the n-grams' of the same tokens, where the result has them."""
    from rnnnas.data.yardsticks import Yardsticks, compared

    if "bigram_perplexity" not in result:
        return
    given = Yardsticks(unigram=result["unigram_perplexity"], bigram=result["bigram_perplexity"])
    value = math.inf if perplexity is None else perplexity
    for line in compared(value, given, whose=whose, remedy=remedy):
        click.echo(line, err=line.startswith("WARNING"))


def duration(seconds: float) -> str:
    """'40 seconds', '12 minutes', '3.5 hours', '2 days' for people."""
    for size, unit in ((172_800, 86_400), (7_200, 3_600), (120, 60)):
        if seconds >= size:
            name = {86_400: "days", 3_600: "hours", 60: "minutes"}[unit]
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds:.0f} seconds"


def memory_bytes(device: torch.device) -> int | None:
    """The most memory that this process has held: of a card its own, else of the machine; None
    where the system does not say.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(held) * (1 if sys.platform == "darwin" else 1024)
