"""The published algorithm and the fast path side by side at the paper's settings, and the limit.

The limit is the time of an iteration's matrix products alone, each shape timed on this machine in
the same run. Legend: T steps, B streams, H hidden, V vocabulary, N nodes.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rnnnas.bench import classic
from rnnnas.config.presets import resolve
from rnnnas.data.text_streams import Streams
from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine.cuda_graphs import PATIENCE, CudaGraphs, cuda_graphs_for, synchronise
from rnnnas.engine.steps import evaluate, weight_step
from rnnnas.errors import UsageError
from rnnnas.lm.fast import cpu_library
from rnnnas.lm.fast.matmul import multiply
from rnnnas.lm.loss import CHUNK, cross_entropy, cross_entropy_reference
from rnnnas.lm.model import RecurrentLM, low_precision
from rnnnas.nas.architect import Architect, order_for
from rnnnas.nas.zoo import ZOO
from rnnnas.optim import alpha_optimizer, inner_step, weight_optimizer
from rnnnas.processes import end_with
from rnnnas.types import Batch

Kind = Literal["first_order", "second_order", "train", "eval", "loss"]

VOCABULARY = 10_000  # of PTB
WIKITEXT = 33_278  # words of WikiText-2, for the loss alone
EVALUATED = 200  # tokens of one evaluation iteration, one stream
KINDS: dict[str, tuple[Kind, ...]] = {
    "search": ("first_order", "second_order"),
    "train": ("train",),
    "eval": ("eval",),
    "loss": ("loss",),
}


class Product(NamedTuple):
    """The shape of a matrix product; `low`: in bfloat16; `matrices`: right factors that take turns.

    A step of few rows is over as soon as its matrices have been read, and those of a cell may lie
    in no cache when the next step wants them.
    """

    rows: int
    inner: int
    columns: int
    low: bool
    matrices: int = 1


def check_settings(settings: Sequence[str]) -> None:
    """Raises UsageError for what bench itself sets, or what its random words know nothing of."""
    for text in settings:
        key = text.partition("=")[0].strip()
        if key.partition(".")[0] in ("method", "genotype", "cell", "corpus", "seed"):
            raise UsageError(
                f"{key} is what bench sets itself: searches by DARTS, trainings of DARTS_V2, on "
                "random words",
                f"leave --set {key} out",
            )


def _config(kind: Kind, path: str, settings: tuple[str, ...]) -> Any:
    """The paper's own settings (presets ptb-darts and ptb); the reference is always float32.

    Raises:
        UsageError: for `model.path`, which the two sides differ in.
    """
    check_settings(settings)
    if any(text.partition("=")[0].strip() == "model.path" for text in settings):
        raise UsageError("model.path is what bench compares", "leave --set model.path out")
    settings = (*settings, f"model.path={path}")
    if path != "fast":
        settings = (*settings, "model.precision=float32")
    if kind in ("first_order", "second_order"):
        method = "darts" if kind == "second_order" else "darts-1st"
        flags: dict[str, Any] = {"corpus": "ptb", "method": method}
        return resolve("search", preset="ptb-darts", file=None, settings=settings, flags=flags)
    flags = {"corpus": "ptb", "genotype": "DARTS_V2"}
    preset = "wikitext-2" if kind == "loss" else "ptb"
    return resolve("train", preset=preset, file=None, settings=settings, flags=flags)


def _iteration(kind: Kind, config: Any, device: torch.device) -> Callable[[], object]:
    """One iteration on random words: its time does not depend on what the text says."""
    draws = torch.Generator().manual_seed(1)
    if kind == "loss":
        return _loss_iteration(config, device, draws)
    search = kind in ("first_order", "second_order")
    cell = config.cell_space if search else ZOO["DARTS_V2"].genotype.recurrent
    net = RecurrentLM(
        config.model, VOCABULARY, cell,
        noise=config.noise, penalty=config.penalty, generator=draws,
    ).to(device)  # fmt: skip
    masks = torch.Generator(device=device).manual_seed(2)
    cuda_graphs = cuda_graphs_for("auto", device, path=config.model.path)
    old = classic.Classic(net) if config.model.path != "fast" else None
    if kind == "eval":
        text = torch.randint(VOCABULARY, (EVALUATED + 1,), generator=draws).numpy()
        return lambda: evaluate(old or net, Streams(text, 1, device), {}, cuda_graphs=cuda_graphs)
    streams, steps = config.windows.streams, config.windows.bptt
    words = torch.randint(VOCABULARY, (steps + 1, streams), generator=draws).to(device)
    batch = Batch(words[:-1], words[1:])
    optimizer = weight_optimizer(old or net, config.weights)
    clip, lr = config.weights.clip, config.weights.lr
    if not search:
        if old is not None:
            return lambda: classic.train_iteration(
                old, optimizer, batch, {}, net.noise(batch, masks), lr=lr, clip=clip
            )
        return lambda: weight_step(
            net, optimizer, batch, None, {}, net.noise(batch, masks), lr=lr, clip=clip,
            cuda_graphs=cuda_graphs,
        )  # fmt: skip
    method = config.relaxation
    alphas = {n: a.to(device) for n, a in method.init(net.space, draws).items()}
    alphas = {n: a.detach().requires_grad_() for n, a in alphas.items()}
    adam = alpha_optimizer(alphas, config.alphas)
    if old is not None:
        return lambda: classic.search_iteration(
            old, alphas, method, adam, optimizer, batch, lambda: net.noise(batch, masks), masks,
            second=kind == "second_order", lr=lr, clip=clip,
            weight_decay=config.weights.weight_decay,
        )  # fmt: skip
    return search_step(net, config, alphas, adam, optimizer, batch, masks, cuda_graphs=cuda_graphs)


def search_step(
    net: RecurrentLM, config: Any, alphas: dict[str, Tensor], adam: torch.optim.Optimizer,
    optimizer: torch.optim.Optimizer, batch: Batch, masks: torch.Generator, *,
    cuda_graphs: CudaGraphs | None, ranks: Ranks = ALONE,
) -> Callable[[], object]:  # fmt: skip
    """An iteration of a search, the fast way: a step of the alphas, and one of the weights."""
    method, lr, clip = config.relaxation, config.weights.lr, config.weights.clip
    order = order_for(net, config.order, config.alphas.second_order)
    precise = net.in_float32() if order == "finite" else None
    replay = None if cuda_graphs is None else cuda_graphs.run
    architect = Architect(net, alphas, method, adam, order, precise=precise, replay=replay)

    def iterate() -> None:
        architect.step(
            train=(batch, None), valid=(batch, None), progress=0.5, generator=masks,
            inner=inner_step(net, optimizer, clip, lr=lr),
        )  # fmt: skip
        with torch.no_grad():
            mixtures = method.mix(alphas, net.space, 0.5, masks)
        weight_step(
            net, optimizer, batch, None, mixtures, net.noise(batch, masks), lr=lr, clip=clip,
            ranks=ranks, cuda_graphs=cuda_graphs,
        )  # fmt: skip

    return iterate


def _loss_iteration(
    config: Any, device: torch.device, draws: torch.Generator
) -> Callable[[], object]:
    """The loss of one window of WikiText-2 and its gradients, given the cell's outputs."""
    rows, hidden = config.windows.bptt * config.windows.streams, config.model.hidden
    outputs = torch.randn(rows, hidden, generator=draws)
    weight = 0.04 * torch.randn(WIKITEXT, hidden, generator=draws)
    tensors = (outputs, weight, torch.zeros(WIKITEXT))
    leaves = outputs, matrix, bias = [t.to(device).requires_grad_() for t in tensors]
    targets = torch.randint(WIKITEXT, (rows,), generator=draws).to(device)
    low = low_precision(config.model, device)

    def iterate() -> None:
        if config.model.path == "fast":
            value = cross_entropy(outputs, matrix, bias, targets, low=low)
        else:
            value = cross_entropy_reference(outputs, matrix, bias, targets)
        torch.autograd.grad(value, leaves)

    return iterate


def timed(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The least seconds of `repeats` runs, after one that warms up; on a card, after as many as a
    window is captured in.
    """
    for _ in range(1 if device.type == "cpu" else PATIENCE + 2):
        run()
    best = float("inf")
    for _ in range(repeats):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        best = min(best, time.perf_counter() - began)
    return best


def cost(run: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Seconds of one run, and the peak memory in GB of this process, or of the GPU."""
    seconds = timed(run, device, repeats)
    if device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _measure(kind: Kind, path: str, settings: tuple[str, ...], name: str, repeats: int) -> Any:
    """`cost` of one iteration; runs in a process of its own."""
    device = torch.device(name)
    return cost(_iteration(kind, _config(kind, path, settings), device), device, repeats)


def apart(measure: Callable[..., Any], *args: Any, smaller: str = "windows.streams=64") -> Any:
    """What `measure` gives in a fresh process: its peak memory is its own.

    Args:
        smaller: the setting to recommend where memory does not suffice.

    Raises:
        UsageError: where that process was killed, as systems do that are out of memory.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=end_with, initargs=(os.getpid(),)
    ) as workspace:
        try:
            return workspace.submit(measure, *args).result()
        except BrokenProcessPool as error:
            raise UsageError(
                "the process that measures was killed, most likely for want of memory",
                f"measure something smaller, e.g. --set {smaller}",
            ) from error


def products(kind: Kind, config: Any, device: torch.device) -> Counter[Product]:
    """The matrix products of one iteration, by shape, as the mathematics asks for them."""
    hidden = config.model.hidden
    low = low_precision(config.model, device)
    search = kind in ("first_order", "second_order")
    units, layers = hidden // config.model.partial, config.model.layers
    experts = config.model.softmaxes if kind != "loss" else 1
    if kind == "eval":
        steps, streams = EVALUATED, 1
    else:
        steps, streams = config.windows.bptt, config.windows.streams
    rows, nodes = steps * streams, config.model.nodes if search else 8

    words = WIKITEXT if kind == "loss" else VOCABULARY

    def at_once(rounded: bool) -> Counter[Product]:
        """Of all steps together: the decoder, and the input's part of the first product."""
        chunks = [min(CHUNK, rows - start) for start in range(0, rows, CHUNK)]
        found = Counter(Product(size, hidden, words, rounded) for size in chunks * experts)
        if experts > 1:
            found[Product(rows, hidden, hidden * experts, rounded)] += 1
            found[Product(rows, hidden, experts, rounded)] += 1
        if kind != "loss":
            found[Product(rows, hidden, 2 * hidden, rounded)] += layers
        return found

    def each_step(rounded: bool) -> Counter[Product]:
        """Of one step: the rest of the cell."""
        found: Counter[Product] = Counter()
        if kind == "loss":
            return found
        # In search a node's product has a row for every predecessor.
        each = [streams, *(streams * (node + 1 if search else 1) for node in range(nodes))]
        for size, inner in zip(each, [hidden, *[units] * nodes], strict=True):
            found[Product(size, inner, 2 * inner, rounded)] += layers
        return Counter({shape._replace(matrices=count): count for shape, count in found.items()})

    def window(*, back: bool, weights: bool, rounded: bool) -> Counter[Product]:
        """Forward; back to the inputs, and to the weights, where they are wanted."""
        total: Counter[Product] = Counter()
        for found, times in ((at_once(rounded), 1), (each_step(rounded), steps)):
            for (m, k, n, low, matrices), count in found.items():
                total[Product(m, k, n, low, matrices)] += count * times
                if back:
                    total[Product(m, n, k, low, matrices)] += count * times
                if weights:  # the sum over all steps is one product of a long inner dimension
                    total[Product(k, m * times, n, low)] += count
        return total

    def tangents(rounded: bool) -> Counter[Product]:
        """Of the derivative along a direction: with [s' s] [W; V], and back with [p' p] [W V]^T."""
        total: Counter[Product] = Counter()
        for found, times in ((at_once(rounded), 1), (each_step(rounded), steps)):
            for (m, k, n, low, matrices), count in found.items():
                shapes = ((m, k, n), (m, 2 * k, n), (m, n, k), (m, 2 * n, k))
                total += {Product(*one, low, matrices): count * times for one in shapes}
        return total

    if kind == "eval":
        return window(back=False, weights=False, rounded=False)
    step = window(back=True, weights=True, rounded=low)
    if kind in ("train", "loss"):
        return step
    if kind == "first_order":
        return step + window(back=True, weights=False, rounded=low)
    # The inner gradient and the direction, then the mixed derivative.
    if _exact(config, low, device):
        return step + step + step + tangents(low)
    ends = window(back=True, weights=False, rounded=False)  # of the difference: without rounding
    return step + step + step + ends + ends


def _exact(config: Any, low: bool, device: torch.device) -> bool:
    """Whether a second-order iteration of the fast path takes the exact order."""
    cheap = low and device.type == "cpu" and cpu_library.built().library is not None
    asked: str = config.alphas.second_order
    return asked == "exact" or (asked == "auto" and cheap)


def limit(shapes: Counter[Product], device: torch.device) -> float:
    """Seconds of all the products, each shape timed by itself."""
    return sum(count * _seconds(shape, device) for shape, count in shapes.items())


@cache
def _seconds(shape: Product, device: torch.device) -> float:
    """Of one product: the fastest of all libraries and of the ways its factors can lie."""
    m, k, n, low, matrices = shape
    dtype = torch.bfloat16 if low else torch.float32
    a = torch.randn(m, k, device=device).to(dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)
    turns = max(1, min(30, int(2e9 / (2 * m * k * n))) // matrices)
    several = [torch.randn(k, n, device=device).to(dtype) for _ in range(matrices)]
    turned = [b.t().contiguous().t() for b in several]
    # As they are in a forward pass, backward to the inputs, and backward to the weights.
    ways = (a, several), (a, turned), (a.t().contiguous().t(), several)

    def run(product: Callable[..., Tensor], left: Tensor, right: list[Tensor]) -> None:
        for _ in range(turns):
            for b in right:
                product(left, b)

    forms = partial(torch.mm, out=out), multiply, partial(multiply, out=out)
    runs = (partial(run, form, *way) for form in forms for way in ways)
    return min(timed(each, device, 2) for each in runs) / (turns * matrices)


def bench(
    what: str, device: torch.device, *, settings: tuple[str, ...] = (), repeats: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Time one iteration the classic way, which is that of DARTS' public code in float32
    (`bench_classic.py`), and one of the fast path.

    Args:
        what: "search", "train", "eval" or "loss" (alone, at the size of WikiText-2).
        settings: `--set` texts on top of the paper's presets.
        repeats: of either side, after one that warms up; the least counts.

    Returns:
        By kind of iteration: reference_seconds, fast_seconds, ratio (of the two), limit_seconds
        (the products alone), limit_ratio (fast over limit), peak_memory_gb and
        reference_peak_memory_gb (of the process), tokens_per_second (of the fast path).
    """
    report: dict[str, dict[str, float]] = {}
    for kind in KINDS[what]:
        say(f"{kind}: the classic way")
        slow, slow_memory = apart(_measure, kind, "reference", settings, str(device), repeats)
        say(f"{kind}: the fast path")
        fast, memory = apart(_measure, kind, "fast", settings, str(device), repeats)
        config = _config(kind, "fast", settings)
        say(f"{kind}: its products alone")
        least = limit(products(kind, config, device), device)
        tokens = EVALUATED if kind == "eval" else config.windows.bptt * config.windows.streams
        report[kind] = {
            "reference_seconds": slow,
            "fast_seconds": fast,
            "ratio": slow / fast,
            "limit_seconds": least,
            "limit_ratio": fast / least,
            "peak_memory_gb": memory,
            "reference_peak_memory_gb": slow_memory,
            "tokens_per_second": tokens / fast,
        }
    return report
