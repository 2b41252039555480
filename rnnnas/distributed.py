"""The processes that share a run: which streams each owns, and what they tell each other.

Legend: R ranks, B streams. Every rank holds all weights and B / R of the streams. Its own loss is
the mean over its own targets, so that the mean over the ranks of losses, and of their gradients,
is that of the whole batch. Where each rank computes a loss of its own from states that all share
(`mean`), the sum of the losses is what the ranks differentiate together.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed.distributed_c10d import _set_pg_timeout

from rnnnas.errors import RnnnasError, UsageError
from rnnnas.processes import end_folder_with_parent
from rnnnas.ranks.rendezvous import FORMING, meet, place

T = TypeVar("T")

STORE = "RNNNAS_RANKS_FILE"  # where ranks that were started by hand find each other: a file
# Rank 0 evaluates and writes alone while the others wait. A rank that dies is noticed at once.
_PATIENCE = timedelta(hours=6)


@final
class Ranks:
    """A process among those that share a run. With one process every call does nothing.

    Calls that talk to the others (all but `part` and `own`) are made by every rank in the same
    order.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    # What a rank owns

    def check(self, streams: int) -> None:
        """Raises UsageError where `streams` cannot be shared out evenly."""
        if streams % self.size:
            below = streams - streams % self.size
            fitting = [str(n) for n in (below, below + self.size) if n]
            raise self.rank_zero_error(
                UsageError(
                    f"windows.streams = {streams} cannot be shared out among {self.size} processes",
                    f"choose a multiple, e.g. --set windows.streams={' or '.join(fitting)}",
                )
            )

    def part(self, streams: int) -> slice:
        """The places, among `streams`, of those that this rank owns."""
        each = streams // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def own(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's streams of a tensor over all of them, which lie along `dim`."""
        if self.size == 1:
            return whole
        part = self.part(whole.shape[dim])
        return whole.narrow(dim, part.start, part.stop - part.start)

    def gather(self, own: Tensor, dim: int) -> Tensor:
        """The inverse of `own`: the tensor over all streams, on every rank."""
        if self.size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts, dim)

    # Numbers

    def mean(self, own: Tensor) -> Tensor:
        """The mean over the ranks. Gradients, of any order, flow back to every rank."""
        if self.size == 1:
            return own
        total: Tensor = _Sum.apply(own)  # type: ignore[no-untyped-call]
        return total / self.size

    def mean_gradient(self, same: Tensor) -> Tensor:
        """A tensor that is the same on every rank, for each to compute its own loss with.

        Its gradient, of any order, is the mean over the ranks: that of the whole batch's loss.
        """
        if self.size == 1:
            return same
        mean_gradient: Tensor = _MeanGradient.apply(same, self)  # type: ignore[no-untyped-call]
        return mean_gradient

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, all in one message."""
        if self.size == 1:
            return
        group = list(tensors)
        with torch.no_grad():
            flat = torch.cat([t.reshape(-1) for t in group])
            dist.all_reduce(flat)
            flat /= self.size
            parts = torch.split_with_sizes(flat, [t.numel() for t in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def max_reduce(self, *values: int) -> Sequence[int]:
        """The largest of each value over the ranks."""
        if self.size == 1:
            return values
        together = torch.tensor(values)  # on the CPU, whatever the device of the run
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return [int(value) for value in together]

    # Values

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, plain or with tensors, on every rank; tensors come on the CPU."""
        if self.size == 1:
            return value
        stored = io.BytesIO()
        if self.leads:
            torch.save(value, stored)
        data = bytearray(stored.getbuffer())
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        if self.leads:
            dist.broadcast(torch.frombuffer(data, dtype=torch.uint8), 0)
            return value
        received = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(received, 0)
        file = io.BytesIO(received.numpy().tobytes())
        told: T = torch.load(file, map_location="cpu", weights_only=True)
        return told

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """The result of `work`, done by rank 0 while the others wait, on every rank.

        Raises:
            RnnnasError: on every rank, where rank 0 met one; quiet on all but rank 0.
        """
        if self.size == 1:
            return work()
        met: RnnnasError | None = None
        value: Any = None
        if self.leads:
            try:
                value = work()
            except RnnnasError as error:
                met = error
        told: dict[str, Any] = self.broadcast(
            {"value": value}
            if met is None
            else {"cause": met.cause, "remedy": met.remedy, "code": met.exit_code}
        )
        if met is not None:
            raise met
        if "cause" in told:
            raise self.rank_zero_error(_told_error(told))
        result: T = told["value"]
        return result

    def rank_zero_error(self, error: RnnnasError) -> RnnnasError:
        """An error that every rank raises: rank 0 alone shows it."""
        error.quiet = not self.leads
        return error


ALONE = Ranks()


class _Sum(torch.autograd.Function):
    """The sum over the ranks. Its gradient is the sum of the gradients: it is its own transpose."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient.contiguous())  # type: ignore[no-untyped-call]
        return total


class _MeanGradient(torch.autograd.Function):
    """The same value; the mean over the ranks as its gradient."""

    @staticmethod
    def forward(ctx: Any, same: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return same.view_as(same)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.mean(gradient), None


def _told_error(told: dict[str, Any]) -> RnnnasError:
    error = RnnnasError(told["cause"], told["remedy"])
    error.exit_code = told["code"]
    return error


def started() -> bool:
    """Whether this process was started as one of several: by torchrun, `--processes`, or by hand.

    Raises:
        UsageError: where the environment says that but in part, or contradicts itself.
    """
    world, rank = place("WORLD_SIZE", 1), place("RANK", 0)
    if world > 1 and not os.environ.get("RANK", "").strip():
        raise UsageError(
            f"WORLD_SIZE is {world}, but RANK is not set",
            "start with torchrun or --processes, which set both; or unset WORLD_SIZE",
        )
    if rank >= world:
        raise UsageError(
            f"RANK is {rank}, but WORLD_SIZE is {os.environ.get('WORLD_SIZE') or 'not set'}: "
            "ranks count from 0",
            "start with torchrun or --processes, which set both; or unset both",
        )
    return world > 1


def local_rank() -> int:
    """Which of the processes on this machine this is: it takes the device of that number."""
    return place("LOCAL_RANK", 0)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The group that the environment describes, joined for the block; alone where it does not.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; `rnnnas --processes`
    gives a file instead of an address. Messages between CPU tensors go over gloo, on the
    loopback interface where all ranks are on one machine, those between CUDA tensors over nccl.

    Raises:
        RnnnasError: where the group cannot be formed, or another rank has gone.
    """
    if not started():
        yield ALONE
        return
    world, rank = place("WORLD_SIZE", 1), place("RANK", 0)
    if place("LOCAL_WORLD_SIZE", 0) == world and sys.platform != "win32":
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    file = os.environ.get(STORE)
    if file:
        end_folder_with_parent(Path(file).parent)
    cuda = device.type == "cuda"

    def form(store: Store) -> None:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=FORMING),
            device_id=device if cuda else None,
        )
        _set_pg_timeout(_PATIENCE)
        store.set_timeout(_PATIENCE)

    meet(rank, world, file, form)
    try:
        yield Ranks(rank, world)
        dist.barrier()  # nobody takes the group down while another still uses it
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise RnnnasError(
            f"process {rank} of {world} stopped: another one has ended",
            "see what that one said",
        ) from error
    finally:
        dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    """Whether a message failed because the other side has gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
