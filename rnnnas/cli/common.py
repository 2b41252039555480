"""What the commands share: options, output, devices, the default folder."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from rnnnas.errors import UsageError, visible
from rnnnas.runs.files import json_plain
from rnnnas.runs.progress import waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def _age() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])  # field 22 of proc(5)
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


# A budget covers the start of the command, too, and its end: an interpreter that leaves takes
# about as long as one that comes.
UNKNOWN_LIMIT = 0.02  # share of <unk> in a split above which a perplexity flatters
STARTED = time.perf_counter() - 2 * _age()


def echo(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text. On standard error, and where a person looks on, without control characters.

    What the stream's encoding lacks, such as bytes of a path that are no text, is escaped.
    """
    stream = sys.stderr if err else sys.stdout
    if err or (stream is not None and stream.isatty()):
        text = visible(text)
    coding = getattr(stream, "encoding", None) or "utf-8"
    try:
        str(text).encode(coding, getattr(stream, "errors", None) or "strict")
    except UnicodeEncodeError:
        text = str(text).encode(coding, "backslashreplace").decode(coding)
    try:
        click.echo(text, nl=nl, err=err)
    except OSError:  # what is said of a full disk may itself go to one
        if not err:
            raise
        with contextlib.suppress(OSError, ValueError):  # nor when this process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def print_json(value: object) -> None:
    """One JSON object on standard output; what JSON has no number for (inf, nan) is null."""
    echo(json.dumps(json_plain(value), allow_nan=False).replace("\x7f", "\\u007f"))


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


def budget_seconds(minutes: float | None, seconds: float | None) -> float | None:
    """The budget that --minutes or --seconds gives. Raises UsageError for both."""
    if minutes is not None and seconds is not None:
        raise UsageError("--minutes and --seconds are one budget", "give one of them")
    return seconds if minutes is None else 60.0 * minutes


def compiling(quiet: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Says what it waits for, where the kernels are not there yet."""
    return waiting("compiling the kernels, once for this processor", quiet=quiet)


def say_kernels(device: torch.device, precision: str = "auto") -> None:
    """What `notes_on_device` has to say, and that it waits where kernels are compiled for it."""
    from rnnnas.lm.fast.known import notes_on_device

    with compiling() if device.type == "cpu" else contextlib.nullcontext():
        notes = notes_on_device(device, precision)
    for note in notes:
        echo(note, err=True)


def say_compared(
    result: dict[str, Any], perplexity: float | None, whose: str, remedy: str, found: bool = False
) -> None:
    """Hold a perplexity against the n-grams' of the same tokens, where the result has them."""
    from rnnnas.data.yardsticks import Yardsticks, compared

    if "bigram_perplexity" not in result:
        return
    given = Yardsticks(unigram=result["unigram_perplexity"], bigram=result["bigram_perplexity"])
    value = math.inf if perplexity is None else perplexity
    for line in compared(value, given, whose=whose, remedy=remedy, found=found):
        echo(line, err=line.startswith("WARNING"))


def say_bits(result: dict[str, Any]) -> None:
    """Bits a byte, where the result has them, and what `<unk>` takes from their meaning."""
    if "bits_per_byte" not in result:
        return
    share = result.get("unknown_share", 0.0)
    echo(f"{result['bits_per_byte']:.3f} bits per byte")
    if share > UNKNOWN_LIMIT:
        echo(
            f"note: {100 * share:.1f} % of the tokens are <unk>, whose words nothing predicts: "
            "perplexity and bits per byte are lower than those of the whole text would be",
            err=True,
        )


def took(result: dict[str, Any]) -> str:
    """How long a run took, with what is counted: its loop, and of a budget everything."""
    said = f"{result['seconds']:.0f} s of steps and validation"
    if "spent_seconds" in result:
        said += (
            f"; {result['spent_seconds']:.0f} s of the {result['budget_seconds']:.0f} given, "
            "start and end included"
        )
    return said


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
