"""What the commands share: options, output, devices, the default folder."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import click

from rnnnas.runs.files import json_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def print_json(value: object) -> None:
    """One JSON object on standard output; what JSON has no number for (inf, nan) is null."""
    click.echo(json.dumps(json_plain(value), allow_nan=False))


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device of `--device`, with float32 exact from here on: this process is ours alone.

    Raises:
        UsageError: where it cannot be used.
    """
    import torch

    from rnnnas.engine.device import pick_device as pick

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return pick(name, local_rank)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object only.")
device_option = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def plugin_option(command: Callable[..., None]) -> Callable[..., None]:
    """The option `--plugin`, whose files are loaded before the command begins."""

    @functools.wraps(command)
    def loading(*args: Any, plugin: tuple[str, ...], **options: Any) -> None:
        from rnnnas.plugins.load import load

        load(*plugin)
        command(*args, **options)

    return click.option(
        "--plugin", multiple=True, type=click.Path(dir_okay=False), metavar="FILE",
        help="A Python file of your own that registers operations or methods; may be repeated.",
    )(loading)  # fmt: skip


def say_cell(cell: Any) -> None:
    """One line where the fast path does not know a cell, or the space of a search."""
    from rnnnas.lm.fast.known import note_of

    if note := note_of(cell):
        click.echo(note, err=True)


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
