"""Large buffers that are used again from window to window.

Fresh pages cost a CPU as much as the arithmetic that is done on them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor


class Pool:
    """Buffers that outlive a window. What is taken is not handed out again until given back."""

    def __init__(self) -> None:
        self._free: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """A buffer with undefined content, of `like`'s type and device."""
        free = self._free[(shape, like.dtype, like.device)]
        return free.pop() if free else like.new_empty(shape)

    def give(self, *buffers: Tensor) -> None:
        """Hand buffers back; the caller must not use them again."""
        for buffer in buffers:
            self._free[(tuple(buffer.shape), buffer.dtype, buffer.device)].append(buffer)

    def clear(self) -> None:
        """Forget all free buffers."""
        self._free.clear()


POOL = Pool()
