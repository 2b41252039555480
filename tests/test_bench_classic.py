"""The classic side of the benchmark: the readable network's values, at the public code's cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rnnnas.bench import recurrent
from rnnnas.bench.classic import Classic, search_iteration, train_iteration
from rnnnas.errors import UsageError
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.architect import hypergradient
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.zoo import ZOO
from rnnnas.types import Batch, InnerStep

DOUBLE = torch.float64


class Products(TorchDispatchMode):
    """Counts multiplications by the number that one forward product of a cell has."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.unbound = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            a, b = args[-2:]
            self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        elif func is torch.ops.aten.unbind.int and args[0].dim() == 3:
            self.unbound += 1
        return func(*args, **(kwargs or {}))


def network(search: bool, **config: Any) -> tuple[RecurrentLM, Batch, torch.Generator]:
    draws = torch.Generator().manual_seed(1)
    cell = recurrent_space(3) if search else ZOO["ENAS"].genotype.recurrent
    net = RecurrentLM(
        ModelConfig(hidden=6, nodes=3, path="reference", **config), 11, cell,
        noise=NoiseConfig(dropout=0.3, dropoutx=0.2, dropouth=0.2, dropouti=0.1, dropoute=0.2),
        penalty=PenaltyConfig(ar=0.1, tar=0.2), generator=draws,
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(10)
    words = torch.randint(11, (6, 4), generator=draws)
    return net, Batch(words[:-1], words[1:]), draws


def joined(net: Classic, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by the names of `RecurrentLM`: those of a cell's nodes as one tensor."""
    found = {n: g for n, g in gradients.items() if "." not in n}
    for k in range(len(net.cells)):
        own = {n: g for n, g in gradients.items() if n.startswith(f"cells.{k}.")}
        prefix = f"layers.{k + 1}." if k else ""
        found[prefix + "first"] = own.pop(f"cells.{k}.first")
        nodes = range(len(own))
        found[prefix + "nodes"] = torch.stack([own[f"cells.{k}.nodes.{i}"] for i in nodes])
    return found


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize(
    "config", [{}, {"layers": 2}, {"softmaxes": 2}, {"partial": 2}, {"layers": 2, "partial": 3}]
)
@pytest.mark.parametrize("noisy", [True, False])
def test_it_is_the_readable_network(search: bool, config: dict[str, Any], noisy: bool) -> None:
    if "partial" in config and not search:
        pytest.skip("a derived cell computes all units")
    net, batch, draws = network(search, **config)
    old = Classic(net)
    noise = net.noise(batch, draws) if noisy else None
    weights = torch.randn(6, 5, dtype=DOUBLE, generator=draws).softmax(-1)
    losses, gradients, carries = [], [], []
    for form in (net, old):
        alpha = weights.clone().requires_grad_()
        mixtures = {"recurrent": Mixture(alpha)} if search else {}
        hidden_state: Any = None
        total: Any = 0.0
        for _ in range(2):  # the second window begins where the first one ended
            loss = form(batch, hidden_state, mixtures, noise)
            hidden_state, total = loss.hidden_state, total + loss.objective
        names = [n for n, _ in form.named_parameters()]
        leaves = [*form.parameters(), *([alpha] if search else [])]
        grads = torch.autograd.grad(total, leaves)
        losses.append(total.detach())
        carries.append(hidden_state if isinstance(hidden_state, tuple) else (hidden_state,))
        own = dict(zip([*names, "alpha"], grads, strict=False))
        gradients.append(own if form is net else joined(old, own))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(carries[1], carries[0], rtol=1e-10, atol=1e-12)
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("second", [True, False])
def test_a_search_iteration_has_the_architects_gradient(second: bool) -> None:
    net, batch, draws = network(True)
    old = Classic(net)
    noise = [net.noise(batch, draws) for _ in range(3)]
    alphas = {"recurrent": torch.randn(6, 5, dtype=DOUBLE, generator=draws).requires_grad_()}
    inner = InnerStep(lr=0.3, clip=0.25, weight_decay=0.01)
    given = iter(noise if second else noise[1:])
    net.noise = lambda batch, generator: next(given)  # type: ignore[method-assign]
    wanted, _ = hypergradient(
        net, alphas, Darts(), train=(batch, None), valid=(batch, None), inner=inner,
        order="finite" if second else "first", progress=0.5, generator=draws,
    )  # fmt: skip
    tables = list(alphas.values())
    adam = torch.optim.Adam(tables, lr=0.0)  # the weight step then sees the same alphas
    sgd = torch.optim.SGD(old.parameters(), lr=0.3, weight_decay=0.01)
    twin = Classic(net)
    given = iter(noise if second else noise[1:])
    found = search_iteration(
        old, alphas, Darts(), adam, sgd, batch, lambda: next(given), draws,
        second=second, lr=0.3, clip=0.25, weight_decay=0.01,
    )  # fmt: skip
    torch.testing.assert_close(found["recurrent"], wanted["recurrent"], rtol=1e-7, atol=1e-10)
    with torch.no_grad():
        mixtures = Darts().mix(alphas, net.space, 0.5, draws)
    train_iteration(
        twin, torch.optim.SGD(twin.parameters(), lr=0.3, weight_decay=0.01), batch, mixtures,
        noise[2], lr=0.3, clip=0.25,
    )  # fmt: skip
    for one, other in zip(old.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)  # nothing else has moved


@pytest.mark.parametrize(
    ("kind", "units"), [("first_order", 6), ("second_order", 13), ("train", 3)]
)
def test_its_products_are_the_published_ones(kind: Any, units: int) -> None:
    """In forward passes: 3 with both gradients, 2 where only the alphas' are asked for.

    First order: the alpha step goes back to the weights, too. Second: the inner gradient and the
    validation's (3 each), two ends of 2, the weight step.
    """
    settings = ("model.hidden=8", "windows.streams=4", "windows.bptt=3")
    config = recurrent._config(kind, "reference", settings)
    run = recurrent._iteration(kind, config, torch.device("cpu"))
    with Products() as seen:
        run()
    nodes = 9 if kind == "train" else 37  # rows of predecessors, and the carried state
    rows = 12
    forward = 2 * rows * 8 * (2 * 8 * (nodes + 1) + recurrent.VOCABULARY)
    assert seen.flops == pytest.approx(units * forward, rel=0.01)
    assert seen.unbound <= units, "weights are no tensor that is taken apart at every step"


def test_a_baseline_is_refused() -> None:
    net, _, _ = network(False)
    net.cell = "lstm"
    with pytest.raises(UsageError, match="has no lstm"):
        Classic(net)
