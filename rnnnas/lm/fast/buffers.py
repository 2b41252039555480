"""Large buffers that are used again from window to window.

Fresh pages cost a CPU as much as the arithmetic that is done on them.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Workspace:
    """Buffers that outlive a window. What is taken is not handed out again until given back.

    A request gets the smallest free buffer that is large enough, whatever its shape and type were:
    windows differ in length, and those of a second-order step in type; a set of buffers for each
    would fill the memory. Where none is, the largest free one makes room for a larger: there are
    never more buffers than were in use at once.
    """

    def __init__(self) -> None:
        self._free: dict[torch.device, list[Tensor]] = defaultdict(list)  # bytes, by size

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """A buffer with undefined content, of `like`'s type and device."""
        need = math.prod(shape) * like.element_size()
        free = self._free[like.device]
        for place, buffer in enumerate(free):
            if len(buffer) >= need:
                return free.pop(place)[:need].view(like.dtype).view(shape)
        if free:
            free.pop()
        return like.new_empty(shape)

    def give(self, *buffers: Tensor) -> None:
        """Hand buffers back; the caller must not use them again."""
        for buffer in buffers:
            storage = buffer.untyped_storage()
            flat = torch.empty(0, dtype=torch.uint8, device=buffer.device)
            flat.set_(storage, 0, (storage.nbytes(),), (1,))
            insort(self._free[buffer.device], flat, key=len)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within it, an empty pool: nothing comes from outside, and nothing is kept after it.

        A captured window writes to its buffers whenever it is replayed. Those of the pool may be
        in use or freed by then, and its own would be handed to others.
        """
        outside, self._free = self._free, defaultdict(list)
        try:
            yield
        finally:
            self._free = outside

    def held(self) -> int:
        """Bytes of all free buffers."""
        return sum(len(buffer) for free in self._free.values() for buffer in free)

    def clear(self) -> None:
        """Forget all free buffers."""
        self._free.clear()


WORKSPACE = Workspace()
