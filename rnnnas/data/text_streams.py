"""Text as parallel streams, cut into windows. Legend: T steps, B streams, L tokens a stream."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rnnnas.errors import DataError, UsageError
from rnnnas.types import Batch

EVALUATION_ROWS = 512  # T·B at least: what is done once a window should not be what costs
LONGEST = 100_000  # steps of a window


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig:
    """How a training text is cut.

    A window's length is min(max(shortest, int N(b, jitter)), bptt + longer), where b is bptt, or
    half of it for a share `halved` of the windows. With jitter 0 it is int(b).

    streams: B, texts read side by side (the batch size); streams; 1 or more, 2 or more in a search;
        64 as in the training of the DARTS paper
    bptt: tokens a window, through which gradients are propagated; tokens; 2 or more; 35 as in
        the literature
    jitter: standard deviation of a window's length; tokens; 0 or more, 0 for windows of `bptt`, or
        half of it for the share `halved`; 0 as in a search, since trainings ask for 5
    halved: share of the windows that are half as long; share; 0 to 1; 0.05 as in the AWD-LSTM
    shortest: the least length that is drawn where there is jitter; tokens; 1 or more; 5 as in the
        AWD-LSTM
    longer: by how much a drawn length may exceed bptt; tokens; 0 or more; 20 as in the code of the
        DARTS paper, since memory grows with the longest
    limit: windows an epoch at most; windows; 0 or more, 0 for the whole text; an epoch is the whole
        text unless a preset wants a short one
    """

    streams: int = 64
    bptt: int = 35
    jitter: float = 0.0
    halved: float = 0.05
    shortest: int = 5
    longer: int = 20
    limit: int = 0

    def __post_init__(self) -> None:
        for name, low in {"streams": 1, "bptt": 2, "shortest": 1, "longer": 0, "limit": 0}.items():
            if getattr(self, name) < low:
                raise UsageError(f"windows.{name} = {getattr(self, name)} must be at least {low}")
        if self.bptt > LONGEST:
            raise UsageError(
                f"windows.bptt = {self.bptt} cannot be meant: at most {LONGEST:,} steps of a "
                "window fit the memory of any training"
            )
        if self.jitter < 0 or not 0 <= self.halved <= 1:
            raise UsageError(
                f"windows.jitter = {self.jitter} must not be negative, and "
                f"windows.halved = {self.halved} must lie in [0, 1]"
            )


def window_lengths(config: WindowConfig, length: int, rng: random.Random) -> list[int]:
    """The lengths T of one epoch's windows over streams of `length` tokens.

    They add up to `length` - 1, the targets of a stream, unless `limit` ends the epoch before.
    """
    lengths: list[int] = []
    left = length - 1
    while left > 0 and not (config.limit and len(lengths) == config.limit):
        b = config.bptt / 2 if rng.random() < config.halved else float(config.bptt)
        drawn = int(b)
        if config.jitter:
            drawn = max(config.shortest, int(rng.gauss(b, config.jitter)))
            drawn = min(drawn, config.bptt + config.longer)
        lengths.append(min(max(drawn, 1), left))
        left -= lengths[-1]
    return lengths


def epoch_lengths(config: WindowConfig, length: int, seed: int, epoch: int) -> list[int]:
    """`window_lengths` of one epoch of a run: they depend on its seed and the epoch alone."""
    return window_lengths(config, length, random.Random(f"{seed}/windows/{epoch}"))


def epochs_for(config: WindowConfig, tokens: int, seed: int, epochs: int, least: int) -> int:
    """Epochs of a text of `tokens` that are no fewer than `epochs`, and hold `least` windows."""
    number = windows = 0
    while number < epochs or windows < least:
        if windows < least:
            windows += max(len(epoch_lengths(config, tokens // config.streams, seed, number)), 1)
        number += 1
    return number


class Streams:
    """A token array as B streams of L tokens; what does not fill a row is left off the end.

    Args:
        tokens: 1-D integers, a memory map as well: it is viewed, not copied.
        setting: what the user can set to get fewer streams, for the message.
        part: the streams that windows hold, where other processes take the others; the length
            of a stream does not depend on it.
        held: whether the text is copied to the device once, as int32, instead of window by
            window; by default where that is not the CPU.

    Raises:
        DataError: where a stream would hold fewer than two tokens.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        streams: int,
        device: torch.device,
        setting: str = "windows.streams",
        *,
        part: slice = slice(None),
        held: bool | None = None,
    ) -> None:
        self.length = len(tokens) // streams
        if self.length < 2:
            raise DataError(
                f"{len(tokens)} tokens are too few for {streams} streams",
                "take a longer text"
                + (f", or fewer streams with --set {setting}=N" if setting else ""),
            )
        self.streams = streams
        self.device = device
        self._rows = tokens[: self.length * streams].reshape(streams, self.length)[part]
        self._held: torch.Tensor | None = None
        if device.type != "cpu" if held is None else held:
            self._held = torch.from_numpy(self._rows.astype(np.int32)).to(device)

    def window(self, start: int, steps: int) -> Batch:
        """The window of `steps` inputs from position `start`; targets lie one token ahead."""
        if self._held is not None:
            ids = self._held[:, start : start + steps + 1].t()
            block = ids.to(torch.int64, memory_format=torch.contiguous_format)
            return Batch(block[:-1], block[1:])
        cut = np.array(self._rows[:, start : start + steps + 1].T, dtype=np.int64, order="C")
        block = torch.from_numpy(cut).to(self.device)
        return Batch(block[:-1], block[1:])

    def read(self, steps: int) -> Iterator[Batch]:
        """Every target once, in windows of `steps` or, of few streams, longer: for evaluation."""
        steps = max(steps, EVALUATION_ROWS // self.streams)
        return (self.window(start, own) for start, own in self.windows(steps))

    def windows(self, steps: int) -> list[tuple[int, int]]:
        """(start, steps) of consecutive windows that cover the streams."""
        last = self.length - 1
        return [(start, min(steps, last - start)) for start in range(0, last, steps)]
