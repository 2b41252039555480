"""A search step on images: the classic way, the fast path, and its convolutions alone.

One iteration is an alpha step of the first order and a weight step, in the network of the DARTS
paper (preset cifar10-darts: 16 channels, 8 cells) on fewer images, so that it takes seconds on one
core. The classic way is `model.path=reference`: every operation of every edge by itself, in
float32 and in the images' own order of memory.

The limit is the time of the fast path's convolutions and products, forward and backward: each call
that an iteration makes of them is noted, and timed by itself on numbers of the same shape, layout
and type. Normalisations, pools, activations and sums are what it leaves out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rnnnas.bench.recurrent import apart, cost, timed
from rnnnas.cnn.model import ConvNet
from rnnnas.cnn.space import image_spaces
from rnnnas.config.presets import resolve
from rnnnas.engine.device import exact_float32
from rnnnas.engine.steps import weight_step
from rnnnas.errors import UsageError
from rnnnas.nas.architect import Architect
from rnnnas.nas.relax.base import Mixture
from rnnnas.optim import alpha_optimizer, inner_step, weight_optimizer
from rnnnas.types import Batch

IMAGES = 16  # a step; the paper's 64 take four times as long
SIDE = 32  # pixels of CIFAR-10
CLASSES = 10
KIND = "first_order"
_ATEN = torch.ops.aten
_PRODUCTS = {
    _ATEN.convolution.default, _ATEN.convolution_backward.default,
    _ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default,
}  # fmt: skip


class Form(NamedTuple):
    """path and precision as in `CnnConfig`; channels_last: of the images that are handed in. The
    fast path brings them into that order by itself.
    """

    path: str = "reference"
    precision: str = "float32"
    channels_last: bool = False


CLASSIC = Form()
VARIANTS = {
    "reference_channels_last": Form(channels_last=True),
    "reference_bfloat16": Form(precision="bfloat16"),
    "fast_float32": Form("fast"),
    "fast_bfloat16": Form("fast", precision="bfloat16"),
}


def config_of(form: Form, settings: tuple[str, ...]) -> Any:
    """The search of preset cifar10-darts, first order, on `IMAGES` images.

    Args:
        settings: of other sizes. What is compared is no setting.

    Raises:
        UsageError: where one is.
    """
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key in ("space", "method", "model.path", "model.precision"):
            raise UsageError(
                f"{key} is no setting of `bench cnn`, which compares forms of one step itself",
                "set sizes, e.g. model.channels=8 or batches.size=32",
            )
    chosen = (f"batches.size={IMAGES}", *settings, f"model.path={form.path}")
    return resolve(
        "image-search",
        preset="cifar10-darts",
        file=None,
        settings=(*chosen, f"model.precision={form.precision}"),
        flags={"corpus": "cifar10", "method": "darts-1st"},
    )


def iteration(config: Any, device: torch.device, channels_last: bool) -> Callable[[], object]:
    """One iteration on random images: its time does not depend on what they show."""
    draws = torch.Generator().manual_seed(1)
    net = ConvNet(config.model, image_spaces(config.model.nodes), CLASSES, generator=draws)
    net = net.to(device)
    count, side = config.batches.size, config.augment.size or SIDE
    images = torch.randn(count, 3, side, side, generator=draws).to(device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(CLASSES, (count,), generator=draws).to(device))
    masks = torch.Generator(device=device).manual_seed(2)
    method, clip = config.relaxation, config.weights.clip
    fresh = method.init(net.space, draws)
    alphas = {n: a.detach().to(device).requires_grad_() for n, a in fresh.items()}
    optimizer = weight_optimizer(net, config.weights)
    architect = Architect(net, alphas, method, alpha_optimizer(alphas, config.alphas), "first")

    def iterate() -> object:
        architect.step(
            train=(batch, None), valid=(batch, None), progress=0.5, generator=masks,
            inner=inner_step(net, optimizer, clip, lr=config.weights.lr),
        )  # fmt: skip
        with torch.no_grad():
            mixtures: dict[str, Mixture] = method.mix(alphas, net.space, 0.5, masks)
        noise = net.noise(batch, masks)
        lr = config.weights.lr
        return weight_step(net, optimizer, batch, None, mixtures, noise, lr=lr, clip=clip)

    return iterate


@exact_float32()
def measure(form: Form, settings: tuple[str, ...], name: str, repeats: int) -> tuple[float, float]:
    """Seconds and peak memory in GB of one iteration; for a process of its own."""
    device = torch.device(name)
    run = iteration(config_of(form, settings), device, form.channels_last)
    return cost(run, device, repeats)


class Like(NamedTuple):
    """A tensor of a call, without its numbers."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def make(self, device: torch.device) -> Tensor:
        """Random numbers in this shape and layout; where elements share memory, in rows."""
        if 0 in self.strides:
            return torch.randn(self.shape, device=device).to(self.dtype)
        empty = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device)
        return empty.normal_()


Call = tuple[Any, tuple[Any, ...]]  # the operation, and its arguments with `Like` for tensors


class Noted(TorchDispatchMode):
    """Counts the convolutions and products that are made while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            self.calls[(func, tuple(_plain(value) for value in args))] += 1
        return func(*args, **(kwargs or {}))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Like(tuple(value.shape), value.stride(), value.dtype)
    return tuple(value) if isinstance(value, list) else value


def products(run: Callable[[], object]) -> Counter[Call]:
    """The convolutions and products of one run, by shape, layout and type."""
    noted = Noted()
    with noted:
        run()
    return noted.calls


def limit(calls: Counter[Call], device: torch.device) -> float:
    """Seconds of all the calls, each kind timed by itself."""
    total = 0.0
    for (func, plain), count in calls.items():
        args = [value.make(device) if isinstance(value, Like) else value for value in plain]

        def run(func: Any = func, args: Any = args) -> None:
            for _ in range(5):
                func(*args)

        total += count * timed(run, device, 2) / 5
    return total


@exact_float32()
def _alone(settings: tuple[str, ...], name: str) -> float:
    """The limit; for a process of its own."""
    device = torch.device(name)
    run = iteration(config_of(Form("fast"), settings), device, False)
    run()
    return limit(products(run), device)


def bench_images(
    device: torch.device, *, settings: tuple[str, ...] = (), repeats: int = 2,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Time one iteration in every form.

    Args:
        settings: `--set` texts on top of preset cifar10-darts with `IMAGES` images; augment.size
            is the images' side in pixels, 32 where it is 0. Path and precision are the forms'.

    Returns:
        For "first_order": reference_seconds, fast_seconds (the faster precision of the fast path),
        ratio (of the two), limit_seconds and limit_ratio (the convolutions and products of the
        fast path in float32, and that path over them), peak_memory_gb and
        reference_peak_memory_gb, images_per_second (of fast_seconds), and seconds and
        peak_memory_gb of each of `VARIANTS`.
    """
    config = config_of(CLASSIC, settings)
    side = config.augment.size or SIDE
    say(
        f"{config.batches.size} images of {side} x {side} pixels (batches.size, augment.size), "
        f"{config.model.channels} channels, {config.model.layers} cells, "
        f"{config.model.nodes} nodes (model.channels, .layers, .nodes)"
    )

    def costs(form: Form, title: str) -> tuple[float, float]:
        say(f"{KIND}: {title}")
        found: tuple[float, float] = apart(
            measure, form, settings, str(device), repeats, smaller="batches.size=4"
        )
        return found

    slow, slow_memory = costs(CLASSIC, "the reference")
    others = {n: costs(form, n.replace("_", " ")) for n, form in VARIANTS.items()}
    say(f"{KIND}: the convolutions of the fast path alone")
    least: float = apart(_alone, settings, str(device), smaller="batches.size=4")
    fast, memory = min(others["fast_float32"], others["fast_bfloat16"])
    report = {
        "reference_seconds": slow,
        "fast_seconds": fast,
        "ratio": slow / fast,
        "limit_seconds": least,
        "limit_ratio": others["fast_float32"][0] / least,
        "peak_memory_gb": memory,
        "reference_peak_memory_gb": slow_memory,
        "images_per_second": config.batches.size / fast,
    }
    for name, (seconds, gigabytes) in others.items():
        report[f"{name}_seconds"] = seconds
        report[f"{name}_peak_memory_gb"] = gigabytes
    return {KIND: report}
