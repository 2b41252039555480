"""Times every matrix product of the presets' steps, the chosen way against the plainest way.

Run as a script, for oneDNN reads which instructions it may use only when it is loaded. Prints one
JSON object: the number of products by preset, and those that took too long.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from plain_torch import off
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rnnnas.config.presets import resolve
from rnnnas.lm import loss, softmaxes
from rnnnas.lm.fast import cpu_library, derived, derived_cpu, matmul, mixture
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.zoo import ZOO
from rnnnas.types import Batch

USERS = (matmul, derived, derived_cpu, mixture, loss, softmaxes)
OWN = {"multiply": matmul.multiply, "accumulate": matmul.accumulate}
ATEN = torch.ops.aten
PLAIN = (ATEN.mm.default, ATEN.mm.out, ATEN.bmm.default, ATEN.bmm.out)
# (kind, preset, cell): what runs.
STEPS = (
    ("train", "quick", "DARTS_V1"), ("train", "ptb", "DARTS_V2"), ("train", "wikitext-2", "ENAS"),
    ("search", "quick", ""), ("search", "quick-pc-darts", ""), ("search", "ptb-darts", ""),
)  # fmt: skip
ROUNDS, LONGEST = 40, 60.0  # of one product: rounds, and seconds after which they end


class Lie(NamedTuple):
    """How a matrix lies in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        steps = zip(self.shape, self.stride, strict=True)
        size = 1 + sum((n - 1) * step for n, step in steps)
        return torch.randn(size).to(self.dtype).as_strided(self.shape, self.stride)


class Call(NamedTuple):
    """A product: by what, of what, into what."""

    name: str
    a: Lie
    b: Lie
    out: Lie | None


def lie(tensor: Tensor) -> Lie:
    return Lie(tuple(tensor.shape), tensor.stride(), tensor.dtype)


class Recorder(TorchDispatchMode):
    """Notes the products of torch itself; of ours what `noted` hands on.

    Args:
        computed: whether they are computed, too; else every product is zero, at no cost.
    """

    def __init__(self, computed: bool = True) -> None:
        super().__init__()
        self.calls: dict[Call, None] = {}
        self.computed = computed
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func not in PLAIN or self.inside:
            return func(*args, **given)
        a, b = args
        self.calls[Call(func._schema.name[6:], lie(a), lie(b), None)] = None
        if self.computed:
            return func(a, b, **given)
        return given["out"].zero_() if given else a.new_zeros(*a.shape[:-1], b.shape[-1])

    def noted(self, name: str) -> Callable[..., Any]:
        own = OWN[name]

        def product(*args: Any, **kwargs: Any) -> Any:
            first, *rest = args
            if name == "multiply":
                a, b, out = first, rest[0], (*rest[1:], kwargs.get("out"))[0]
            else:
                out, (a, b) = first, rest
            into = None if out is None else lie(out)
            self.calls[Call(name, lie(a), lie(b), into)] = None
            if not self.computed:
                return a.new_zeros(len(a), b.shape[1]) if out is None else out.zero_()
            before, self.inside = self.inside, True
            try:
                return own(*args, **kwargs)
            finally:
                self.inside = before

        return product

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Within it, all products are noted."""
        for module in USERS:
            for name in OWN:
                if hasattr(module, name):
                    setattr(module, name, self.noted(name))
        try:
            with self:
                yield
        finally:
            for module in USERS:
                for name, own in OWN.items():
                    if hasattr(module, name):
                        setattr(module, name, own)


def met(kind: str, preset: str, cell: str, precision: str, compiled: bool) -> list[Call]:
    """The products of one training step of a preset, forward and backward, with its loss."""
    flags: dict[str, Any] = {"corpus": "ptb"}
    flags |= {"genotype": cell} if cell else {"method": "darts-1st"}
    settings = (f"model.precision={precision}",)
    config: Any = resolve(kind, preset=preset, file=None, settings=settings, flags=flags)
    draws = torch.Generator().manual_seed(1)
    own = ZOO[cell].genotype.recurrent if cell else recurrent_space(config.model.nodes)
    words = 33_278 if preset == "wikitext-2" else 10_000
    net = RecurrentLM(
        config.model, words, own, noise=config.noise, penalty=config.penalty, generator=draws
    )
    shape = config.windows.bptt + 1, config.windows.streams
    text = torch.randint(words, shape, generator=draws)
    batch = Batch(text[:-1], text[1:])
    mixtures = {}
    if not cell:
        edges, ops = len(own.edges), len(own.ops)  # type: ignore[union-attr]
        even = torch.full((edges, ops), 1 / ops).requires_grad_()
        mixtures = {"recurrent": Mixture(even)}
    recorder = Recorder(computed=False)
    with recorder.everywhere(), off(not compiled):
        net(batch, None, mixtures, net.noise(batch, draws)).objective.backward()
    return list(recorder.calls)


def ways(call: Call) -> tuple[Callable[[], object], list[Callable[[], object]]]:
    """The chosen way of a product, and the plain ways to its value, in the same place."""
    a, b = call.a.make(), call.b.make()
    out = None if call.out is None else call.out.make()
    form = torch.bmm if call.name == "bmm" else torch.mm

    def plain(copied: bool) -> Callable[[], object]:
        def run() -> object:
            left, right = (a.contiguous(), b.contiguous()) if copied else (a, b)
            product = form(left, right)
            if out is None:
                return product
            return out.copy_(product) if call.name == "multiply" else out.add_(product)

        return run

    if call.name == "multiply":
        return lambda: OWN["multiply"](a, b, out=out), [plain(False), plain(True)]
    if call.name == "accumulate":
        return lambda: OWN["accumulate"](out, a, b), [plain(False), plain(True)]
    return plain(False), [plain(True)]


def ratio(call: Call, bound: float) -> float:
    """The chosen way's time over the plain way's, each the least of several in turn."""
    chosen, others = ways(call)
    runs = [chosen, *others]
    least = [float("inf")] * len(runs)
    began = time.perf_counter()
    for turn in range(ROUNDS):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            spent = time.perf_counter() - start
            if turn or spent > 1:  # the first ones set the libraries up
                least[i] = min(least[i], spent)
        found = least[0] / min(least[1:])
        if turn > 2 and (found < bound or time.perf_counter() - began > LONGEST):
            break
    return found


def main(precisions: list[str], bound: float) -> dict[str, Any]:
    counts: dict[str, int] = {}
    slow: list[Call] = []
    seen: set[Call] = set()
    with torch.no_grad():
        for kind, preset, cell in STEPS:
            for precision in precisions:
                for compiled in (
                    (True, False) if cpu_library.built().library is not None else (False,)
                ):
                    with torch.enable_grad():
                        calls = met(kind, preset, cell, precision, compiled)
                    counts[f"{kind} {preset} {precision} {compiled}"] = len(calls)
                    for call in calls:
                        if call in seen:
                            continue
                        seen.add(call)
                        times = ratio(call, bound)
                        print(f"{times:.2f} {call}", file=sys.stderr, flush=True)
                        if times > bound:
                            slow.append(call)
        # A small product is timed within some milliseconds, which a neighbour on the machine can
        # take from one way alone; so what seemed slow is timed anew, when that has passed.
        again = [(ratio(call, bound), call) for call in slow]
    told = [f"{times:.1f} times: {call}" for times, call in again if times > bound]
    return {"counts": counts, "distinct": len(seen), "slow": told}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[2:], float(sys.argv[1]))))
