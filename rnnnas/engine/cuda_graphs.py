"""A window's whole computation on tensors that stay where they are: one CUDA graph a form.

The form of a window is what is fixed once a graph is captured: the length, the streams, which
masks there are, which paths are computed. On a CUDA device a captured window is one launch instead
of thousands. Anywhere else the same work runs on the same buffers, operation by operation, so that
all but the capture itself is tested without a card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import nullcontext
from itertools import count
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from rnnnas.distributed import ALONE, Ranks
from rnnnas.errors import RnnnasError
from rnnnas.lm.fast.buffers import WORKSPACE

# Tensors and plain values in tuples, NamedTuples and mappings, nested at will.
Tree: TypeAlias = Any
T = TypeVar("T")
Buffers: TypeAlias = dict[tuple[Hashable, ...], Tensor]

# Of one name: more than there are forms of windows in any preset (lengths of 5 to 55, with and
# without a hidden state). For 35 steps of 8 nodes a graph holds about 1,000 launches of a derived
# cell and 1,800 of one under search, five times as many for a second order.
KEPT = 128
# Forms that come seldom, e.g. the paths of one draw, are not worth a graph.
PATIENCE = 2
WARM_UP = 3  # runs before a capture: libraries set themselves up in the first ones


class CudaGraph:
    """`work` for inputs of one form.

    It reads its inputs, and whatever tensors it holds on to, where they lie: weights must be
    changed in place. Its results must be tensors made from them, and must not depend on anything
    else that changes, nor on values that only the device knows.

    Args:
        inputs: of the form; buffers like them are made, or taken where `buffers` has them.
        buffers: shared by graphs that never run at the same time.
        capture: whether `work` is captured as a CUDA graph. Its intermediate tensors then lie in
            `pool`, which graphs may share, for nothing of it is read after a run.
    """

    def __init__(
        self, work: Callable[..., Tree], inputs: tuple[Tree, ...], *, name: str = "",
        buffers: Buffers | None = None, capture: bool = False, pool: Any = None,
    ) -> None:  # fmt: skip
        self._work = work
        self._name = name
        self._buffers: Buffers = {} if buffers is None else buffers
        self._inputs = self._like(inputs, "in")
        self._outputs: Tree = None
        self._run: Callable[[], None] = self._compute
        if capture:
            _copy(inputs, self._inputs)
            self._run = captured(self._compute, pool)

    def run(self, inputs: tuple[Tree, ...]) -> Tree:
        """The results for `inputs`, in buffers that the next run of any graph overwrites."""
        _copy(inputs, self._inputs)
        self._run()
        return self._outputs

    def _compute(self) -> None:
        with torch.enable_grad():
            results = self._work(*self._inputs)
        if self._outputs is None:  # in the first run, which is never the captured one
            self._outputs = self._like(results, "out")
        _copy(results, self._outputs)

    def _like(self, tree: Tree, side: str) -> Tree:
        """The same with a buffer for every tensor."""
        place = count()

        def buffer(tensor: Tensor) -> Tensor:
            key = (self._name, side, next(place), *_form(tensor), tensor.stride())
            if key not in self._buffers:
                self._buffers[key] = torch.empty_like(tensor, requires_grad=False)
            return self._buffers[key]

        return mapped(buffer, tree)


def captured(compute: Callable[[], None], pool: Any) -> Callable[[], None]:
    """`compute` as a CUDA graph on the current device; what is returned replays it.

    Every launch of `compute` is recorded with its addresses: whatever tensors it makes lie in
    `pool`, and large buffers are none of those that other code may use or free.

    Raises:
        RnnnasError: where the device refuses.
    """
    try:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), WORKSPACE.apart():
            for _ in range(WARM_UP):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with WORKSPACE.apart(), torch.cuda.graph(graph, pool=pool):
            compute()
    except RuntimeError as error:
        raise RnnnasError(
            f"a window could not be captured: {str(error).splitlines()[0]}",
            "go on without by the same command and --set capture=off",
        ) from error
    WORKSPACE.clear()  # what plain windows used, and the graph has a place of its own for
    return graph.replay


class CudaGraphs:
    """The graphs of one network, found by name and form; at most `kept` of each name.

    A form gets a graph when it has come `patience` times before; once all places of its name are
    taken no further one does.
    """

    def __init__(self, device: torch.device, *, kept: int = KEPT, patience: int = PATIENCE) -> None:
        self._device = device
        self._capture = device.type == "cuda"
        self._kept = kept
        self._patience = patience
        self._cuda_graphs: dict[Hashable, CudaGraph] = {}
        self._taken: Counter[str] = Counter()  # how many of each name
        self._seen: dict[Hashable, int] = {}  # oldest first
        self._buffers: Buffers = {}
        # Made at the first capture: it belongs to the device that is current then.
        self._pool: Any = None

    @property
    def count(self) -> int:
        """How many graphs there are."""
        return len(self._cuda_graphs)

    def find(
        self, name: str, work: Callable[..., Tree], inputs: tuple[Tree, ...]
    ) -> CudaGraph | None:
        """The graph for inputs of this form, or None where they are to be computed plainly.

        Args:
            name: what `work` does; it must do the same whenever the name is the same.
        """
        key = (name, _form(inputs))
        if key in self._cuda_graphs:
            return self._cuda_graphs[key]
        seen = self._seen.pop(key, 0)
        if seen < self._patience or self._taken[name] >= self._kept:
            self._seen[key] = seen + 1
            if len(self._seen) > 16 * self._kept:
                del self._seen[next(iter(self._seen))]
            return None
        on_cuda = self._device.type == "cuda"
        with torch.cuda.device(self._device) if on_cuda else nullcontext():
            if on_cuda and self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = CudaGraph(
                work, inputs, name=name, buffers=self._buffers, capture=self._capture,
                pool=self._pool,
            )  # fmt: skip
        self._cuda_graphs[key] = graph
        self._taken[name] += 1
        return graph

    def run(self, name: str, work: Callable[..., T], *inputs: Tree) -> T:
        """`work(*inputs)`, by a graph where there is one; the caller may keep the results."""
        graph = self.find(name, work, inputs)
        if graph is None:
            return work(*inputs)
        kept: T = mapped(torch.clone, graph.run(inputs))
        return kept


def cuda_graphs_for(
    setting: Literal["auto", "on", "off"], device: torch.device, ranks: Ranks = ALONE,
    path: str = "fast",
) -> CudaGraphs | None:  # fmt: skip
    """What the setting `capture` asks for; None where every window is computed plainly.

    "on" captures on CUDA, and runs the same graphs uncaptured elsewhere. "auto" captures where
    it pays: on CUDA, the fast path of a process that is alone.
    """
    able = device.type == "cuda" and ranks.size == 1 and path == "fast"
    return CudaGraphs(device) if setting == "on" or (setting == "auto" and able) else None


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mapped(form: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The tree with `form` of every tensor."""
    if isinstance(tree, Tensor):
        return form(tree)
    if isinstance(tree, Mapping):
        return {key: mapped(form, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [mapped(form, value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def _tensors(tree: Tree) -> Iterator[Tensor]:
    """All tensors, in the order of `mapped`."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (Mapping, tuple)):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _tensors(value)


def _form(tree: Tree) -> tuple[Any, ...]:
    """What of a tree a graph does not change: all but the numbers in its tensors."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype, tree.device
    if isinstance(tree, Mapping):
        return (dict, *((key, _form(value)) for key, value in tree.items()))
    if isinstance(tree, tuple):
        return (type(tree), *(_form(value) for value in tree))
    return (type(tree), tree)


@torch.no_grad()
def _copy(tree: Tree, buffers: Tree) -> None:
    """The numbers of a tree's tensors into those of another tree of the same form."""
    for source, target in zip(_tensors(tree), _tensors(buffers), strict=True):
        target.copy_(source)
