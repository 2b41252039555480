"""What is said where memory does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rnnnas.errors import UsageError

# Parts of messages: torch has no exception of its own for memory on a CPU.
_SAYS = ("memory", "Storage size calculation overflowed")
_TEXT = "model.hidden, windows.streams or windows.bptt"
_IMAGES = "batches.size, batches.evaluated or model.channels"
ANY = "close other programs, or lower the sizes of what the command computes"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _SAYS)


def reason_of(error: BaseException) -> str:
    """The first line of what it says; a MemoryError of Python's says nothing."""
    lines = str(error).splitlines() or ["there is none left"]
    return f"not enough memory: {lines[0]}"


@contextmanager
def memory_errors(images: bool) -> Iterator[None]:
    """Turns an exception for want of memory into the remedy for a run on text or on images.

    Raises:
        UsageError: for it. The run's folder holds the settings that were too much, hence --fresh.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = f"lower {_IMAGES if images else _TEXT}, and add --fresh: the folder is taken"
        raise UsageError(reason_of(error), remedy) from error
