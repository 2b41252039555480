"""The exact second order on the fast path: the same alphas' gradient as by double backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_torch import off
from torch import Tensor

from rnnnas.config.presets import resolve
from rnnnas.lm import model
from rnnnas.lm.fast import cpu_library
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.architect import hypergradient, order_for
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.relax.gdas import Gdas
from rnnnas.nas.space import recurrent_space
from rnnnas.types import Batch, InnerStep

DOUBLE = torch.float64
NOISE = {"dropout": 0.3, "dropoutx": 0.2, "dropouth": 0.2, "dropouti": 0.1, "dropoute": 0.2}


def network(path: str, precision: str = "float32", dtype: torch.dtype = DOUBLE) -> RecurrentLM:
    net = RecurrentLM(
        ModelConfig(hidden=8, nodes=3, path=path, precision=precision, partial=2),  # type: ignore[arg-type]
        13, recurrent_space(3), noise=NoiseConfig(**NOISE), penalty=PenaltyConfig(ar=0.1, tar=0.2),
        generator=torch.Generator().manual_seed(1),
    ).to(dtype)  # fmt: skip
    with torch.no_grad():  # larger weights than the initial ones: a curved loss
        for p in net.parameters():
            p.mul_(12)
    return net


def gradient(net: RecurrentLM, order: Any, relaxation: Any = None, **options: Any) -> Tensor:
    draws = torch.Generator().manual_seed(3)
    words = [torch.randint(13, (5, 5), generator=draws) for _ in range(2)]
    hidden_state = torch.randn(5, 8, generator=draws, dtype=DOUBLE).to(net.embedding.dtype)
    train, valid = ((Batch(w[:-1], w[1:]), hidden_state) for w in words)
    table = torch.randn(6, 5, generator=draws, dtype=DOUBLE).to(net.embedding.dtype)
    buffers = {
        n: torch.randn(p.shape, generator=draws, dtype=DOUBLE) for n, p in net.named_parameters()
    }
    inner = InnerStep(
        lr=0.3, clip=options.pop("clip", 0.25), weight_decay=0.01, momentum=0.9,
        buffers={n: 0.01 * b.to(net.embedding.dtype) for n, b in buffers.items()},
    )  # fmt: skip
    grads, loss = hypergradient(
        net, {"recurrent": table.requires_grad_()}, relaxation or Darts(), train=train,
        valid=valid, inner=inner, order=order, progress=0.5,
        generator=torch.Generator().manual_seed(7), **options,
    )  # fmt: skip
    assert torch.isfinite(loss.value)
    return grads["recurrent"]


@pytest.mark.parametrize("through_clip", [True, False])
@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("kernel", [True, False])
def test_it_is_double_backward(kernel: bool, clip: float, through_clip: bool) -> None:
    if kernel and cpu_library.built().library is None:
        pytest.skip(cpu_library.built().reason)
    options = {"clip": clip, "through_clip": through_clip}
    wanted = gradient(network("reference"), "exact", **options)
    first = gradient(network("reference"), "first", **options)
    with off(not kernel):
        found = gradient(network("fast"), "exact", **options)
    assert float((wanted - first).norm()) > 1e-3 * float(first.norm())
    assert float((found - wanted).norm() / (wanted - first).norm()) < 1e-8


def test_of_a_mixture_that_is_one_draw() -> None:
    """GDAS computes some of the paths only."""
    method = Gdas()
    wanted, found = (gradient(network(path), "exact", method) for path in ("reference", "fast"))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


def test_what_is_added_outside_the_loss_counts() -> None:
    def outer(value: Tensor, scores: Any) -> Tensor:
        return 2 * value + scores["recurrent"].weights.square().sum()

    wanted, found = (
        gradient(network(path), "exact", outer=outer) for path in ("reference", "fast")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


def test_it_may_be_recorded() -> None:
    """As the finite difference: by a function of tensors that does the same each time."""
    names = []

    def replay(name: str, work: Any, *inputs: Any) -> Any:
        names.append(name)
        return work(*inputs)

    plain = gradient(network("fast"), "exact")
    assert torch.equal(gradient(network("fast"), "exact", replay=replay), plain)
    assert names == ["alphas"]


def test_rounding_costs_it_less_than_kinks_cost_the_difference() -> None:
    """Of fresh weights of a common size: the relative error of the alphas' gradient."""
    draws = torch.Generator().manual_seed(0)
    words, others = (torch.randint(60, (9, 16), generator=draws) for _ in range(2))

    def of(path: Any, precision: Any, order: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        net = RecurrentLM(
            ModelConfig(path=path, precision=precision, hidden=32, nodes=3), 60,
            recurrent_space(3), noise=NoiseConfig(), penalty=PenaltyConfig(),
            generator=torch.Generator().manual_seed(1),
        ).to(dtype)  # fmt: skip
        alphas = Darts().init(net.space, torch.Generator().manual_seed(4))
        grads, _ = hypergradient(
            net, {n: a.detach().to(dtype).requires_grad_() for n, a in alphas.items()}, Darts(),
            train=(Batch(words[:-1], words[1:]), None),
            valid=(Batch(others[:-1], others[1:]), None), inner=InnerStep(lr=1.0, clip=0.25),
            order=order, progress=0.5, generator=torch.Generator().manual_seed(2),
            precise=net.in_float32() if order == "finite" else None,
        )  # fmt: skip
        return grads["recurrent"].double()

    exact = of("eager", "float32", "exact", DOUBLE)

    def error(found: Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    assert error(of("fast", "float32", "exact")) < 1e-4
    assert error(of("fast", "bfloat16", "exact")) < 0.03
    assert error(of("fast", "float32", "finite")) > error(of("fast", "bfloat16", "exact"))


def test_auto_takes_what_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("fast", "bfloat16", torch.float32)
    monkeypatch.setattr(model.cpu_library, "built", lambda: cpu_library.Built(object(), ""))  # type: ignore[arg-type]
    assert order_for(net, "finite", "auto") == "exact"
    assert order_for(net, "finite", "finite") == "finite"
    assert order_for(net, "first", "auto") == "first"
    for other in (network("fast", "float32", torch.float32), network("eager", dtype=torch.float32)):
        assert order_for(other, "finite", "auto") == "finite"
    monkeypatch.setattr(model.cpu_library, "built", lambda: cpu_library.Built(None, "no compiler"))
    assert order_for(net, "finite", "auto") == "finite"


def test_the_settings_allow_it_on_the_fast_path() -> None:
    config: Any = resolve(
        "search", preset="smoke", file=None,
        settings=("alphas.second_order=exact", "model.path=fast"),
        flags={"corpus": "ptb", "method": "darts"},
    )  # fmt: skip
    assert config.order == "exact" and config.model.path == "fast"
