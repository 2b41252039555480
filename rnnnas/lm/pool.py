"""Large buffers that are used again from window to window.

Fresh pages cost a CPU as much as the arithmetic that is done on them.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class Pool:
    """Buffers that outlive a window. What is taken is not handed out again until given back.

    A request gets the smallest free buffer that is large enough, whatever its shape was: windows
    differ in length, and a set of buffers for each length would fill the memory. Where none is,
    the largest free one makes room for a larger: there are never more buffers than were in use
    at once.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)  # flat, by size

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """A buffer with undefined content, of `like`'s type and device."""
        need = math.prod(shape)
        free = self._free[like.dtype, like.device]
        for place, buffer in enumerate(free):
            if len(buffer) >= need:
                return free.pop(place)[:need].view(shape)
        if free:
            free.pop()
        return like.new_empty(need).view(shape)

    def give(self, *buffers: Tensor) -> None:
        """Hand buffers back; the caller must not use them again."""
        for buffer in buffers:
            storage = buffer.untyped_storage()
            size = storage.nbytes() // buffer.element_size()
            flat = buffer.new_empty(0).set_(storage, 0, (size,), (1,))
            insort(self._free[buffer.dtype, buffer.device], flat, key=len)

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
        return sum(b.numel() * b.element_size() for free in self._free.values() for b in free)

    def clear(self) -> None:
        """Forget all free buffers."""
        self._free.clear()


POOL = Pool()
