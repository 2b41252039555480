"""CudaGraphs against the plain step, bit by bit; what a graph would do, played from a tape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from plain_torch import without_kernels
from test_waiting import Watch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rnnnas.engine import cuda_graphs
from rnnnas.engine.cuda_graphs import CudaGraphs
from rnnnas.engine.steps import generator, weight_step
from rnnnas.errors import RnnnasError
from rnnnas.lm.fast.buffers import WORKSPACE
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.architect import Architect
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.space import recurrent_space
from rnnnas.types import Batch, InnerStep

CPU = torch.device("cpu")
V, H, B = 23, 8, 4
LENGTHS = (5, 3, 5, 5, 3, 4, 3, 5, 3)  # 4 comes once
DERIVED = Genotype.from_text("sigmoid0 relu1 tanh1 identity0").recurrent
SPACE = recurrent_space(3)
SKIPS = ((0, 1), (0, 3), (1, 2), (3, 1), (3, 4), (5, 2), (5, 3))  # edges, and operations of some
NOISE = NoiseConfig(dropout=0.3, dropouti=0.2, dropoute=0.2, dropoutx=0.3, dropouth=0.2)
DROPPED = replace(NOISE, dropoutx=0.0, weightdrop=0.3)
CASES: dict[str, tuple[Any, NoiseConfig, dict[str, Any]]] = {
    "derived": (DERIVED, NOISE, {}),
    "quiet": (DERIVED, NoiseConfig(), {}),
    "layers": (DERIVED, NOISE, {"layers": 2}),
    "rounded": (DERIVED, NOISE, {"precision": "bfloat16"}),
    "searched": (SPACE, NOISE, {}),
    "searched, rounded": (SPACE, NOISE, {"precision": "bfloat16"}),
    "partial": (SPACE, NOISE, {"partial": 2}),
    "skips": (SPACE, NOISE, {}),
    "skips, eager": (SPACE, NOISE, {"path": "eager"}),
    "lstm": ("lstm", DROPPED, {"layers": 2}),
    "gru": ("gru", DROPPED, {}),
    "softmaxes": ("gru", DROPPED, {"softmaxes": 3}),
}


def network(case: str, device: torch.device = CPU) -> RecurrentLM:
    cell, noise, settings = CASES[case]
    settings = {"hidden": H, "precision": "float32", **settings}
    net = RecurrentLM(
        ModelConfig(**settings), V, cell, noise=noise, penalty=PenaltyConfig(ar=0.5, tar=0.9),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(8)
    return net.to(device)


def steps_of(
    case: str, made: CudaGraphs | None, device: torch.device = CPU, net: RecurrentLM | None = None
) -> list[dict[str, Any]]:
    """Weight steps over windows of LENGTHS; the hidden state starts anew in the middle."""
    net = network(case, device) if net is None else net
    sgd = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.5, weight_decay=0.01)
    draws = torch.Generator().manual_seed(1)
    hidden_state, found = None, []
    for step, length in enumerate(LENGTHS):
        ids = torch.randint(V, (length + 1, B), generator=draws).to(device)
        mixtures = {}
        if net.space:
            shares = torch.rand(len(SPACE.edges), len(SPACE.ops), generator=draws).to(device)
            mixtures = {"recurrent": Mixture(shares, SKIPS if "skips" in case else None)}
        batch = Batch(ids[:-1], ids[1:])
        noise = net.noise(batch, generator(1, "step", step, device))
        hidden_state = None if step == 4 else hidden_state
        loss, norm = weight_step(
            net, sgd, batch, hidden_state, mixtures, noise, lr=0.3, clip=0.25, cuda_graphs=made
        )
        hidden_state = loss.hidden_state
        assert loss.count == length * B and not loss.value.requires_grad
        found.append(
            {"value": loss.value, "penalty": loss.penalty, "norm": norm, "carry": hidden_state}
        )
        found[-1] |= {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        found[-1] |= {f"new {n}": p.detach().clone() for n, p in net.named_parameters()}
    return found


def assert_same(found: Any, expected: Any, **close: float) -> None:
    close = close or {"rtol": 0.0, "atol": 0.0}
    assert len(found) == len(expected) == len(LENGTHS)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and len(one) > 6
        for name in one:
            torch.testing.assert_close(one[name], other[name], **close)


# Without capture


@pytest.mark.parametrize("case", CASES)
def test_a_program_equals_the_plain_step(case: str) -> None:
    made = CudaGraphs(CPU, patience=1)
    assert_same(steps_of(case, made), steps_of(case, None))
    # Each of the two lengths with a hidden state, and not the one that came once, nor a window that
    # begins a text.
    assert made.count == 2


@pytest.mark.parametrize("patience", [0, 2])
def test_when_a_form_gets_a_program(patience: int) -> None:
    made = CudaGraphs(CPU, patience=patience)
    assert_same(steps_of("derived", made), steps_of("derived", None))
    # With patience 2, of 5 with a hidden state (3 times) and 3 (3 times, the first without one):
    # none but those that come a third time.
    carried = [n for k, n in enumerate(LENGTHS) if k not in (0, 4)]
    often = {n for n in carried if carried.count(n) > patience}
    assert made.count == len(often) + (2 if patience == 0 else 0)


def test_no_more_programs_than_may_be_kept() -> None:
    made = CudaGraphs(CPU, patience=0, kept=2)
    assert_same(steps_of("derived", made), steps_of("derived", None))
    assert made.count == 2


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def test_what_was_seen_is_forgotten_in_time() -> None:
    made = CudaGraphs(CPU, patience=1, kept=1)
    for n in range(1, 41):
        made.run("a", doubled, torch.ones(n))
    assert made.count == 0 and len(made._seen) == 16
    made.run("a", doubled, torch.ones(40))
    assert made.count == 1
    made.run("a", doubled, torch.ones(39))
    assert made.count == 1  # the place is taken


FORMS: list[Any] = [
    {"x": Mixture(torch.ones(2, 3), None)},
    {"y": Mixture(torch.ones(2, 3), None)},
    {"x": Mixture(torch.ones(3, 2), None)},
    {"x": Mixture(torch.ones(2, 3).double(), None)},
    {"x": Mixture(torch.ones(2, 3), ((0, 1),))},
    {"x": Mixture(torch.ones(2, 3), ((0, 2),))},
    {"x": (torch.ones(2, 3), None)},
    (None, torch.ones(2)), (torch.ones(2), None), (torch.ones(2),), torch.ones(2), 1, True,
]  # fmt: skip


def test_forms_are_told_apart() -> None:
    made = CudaGraphs(CPU, patience=0)
    for count, form in enumerate(FORMS, 1):
        for name in ("a", "b"):
            made.run(name, lambda tree: cuda_graphs.mapped(doubled, tree), form)
        assert made.count == 2 * count
    for form in FORMS:  # the numbers make no difference
        made.run("a", doubled, cuda_graphs.mapped(torch.zeros_like, form))
    assert made.count == 2 * len(FORMS)


def test_results_that_are_handed_out_stay() -> None:
    made = CudaGraphs(CPU, patience=0)
    one, two = torch.ones(2), torch.full((2,), 5.0)
    first = made.run("a", doubled, one)
    second = made.run("a", doubled, two)
    assert first.tolist() == [2.0, 2.0] and second.tolist() == [10.0, 10.0]
    assert one.tolist() == [1.0, 1.0]


def test_programs_share_their_buffers() -> None:
    made = CudaGraphs(CPU, patience=0)
    steps_of("derived", made)
    counts = {
        "new": sum(shape == torch.Size([V, H]) for _, _, _, shape, *_ in made._buffers),
        "all": len(made._buffers),
    }
    assert made.count == 5 and counts["new"] == 1, "one buffer for the embedding's gradient"


def searched(made: CudaGraphs | None) -> list[Any]:
    net = network("searched")
    method = Darts()
    alphas = method.init(net.space, torch.Generator().manual_seed(1))
    alphas = {n: a.detach().requires_grad_() for n, a in alphas.items()}
    adam = torch.optim.Adam(alphas.values(), lr=0.1)

    def outer(value: Tensor, mixtures: Any) -> Tensor:
        return value + 0.1 * mixtures["recurrent"].weights[:, 1].sum()

    architect = Architect(
        net, alphas, method, adam, "first", outer, replay=None if made is None else made.run
    )
    found: list[Any] = []
    hidden_state = None
    for step, length in enumerate(LENGTHS):
        ids = torch.randint(V, (length + 1, B), generator=torch.Generator().manual_seed(step))
        batch = Batch(ids[:-1], ids[1:])
        loss = architect.step(
            train=(batch, None), valid=(batch, hidden_state), inner=InnerStep(lr=0.1), progress=0.5,
            generator=generator(1, "alphas", step, CPU),
        )  # fmt: skip
        hidden_state = loss.hidden_state
        found += [loss.value, loss.penalty, hidden_state, alphas["recurrent"].detach().clone()]
        assert all(p.grad is None for p in net.parameters())
        with torch.no_grad():  # weights change in place
            net.nodes.mul_(0.9)
    return found


@pytest.mark.parametrize("taped", [False, True])
def test_a_first_order_alpha_step_by_a_program(
    taped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = CudaGraphs(CPU, patience=1)
    if taped:
        record(made, monkeypatch)
    found, expected = searched(made), searched(None)
    assert made.count == 2 and len(found) == 4 * len(LENGTHS)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# As captured: what was launched once is launched again, at the same addresses


class Tape(TorchDispatchMode):
    """Notes every operation with its arguments and results, and does them again.

    As in a graph, nothing but operations on tensors is done again: what Python computed stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if "empty" not in str(op):  # memory, whose content is undefined
            self.calls.append((op, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        # Below autograd, as where it was noted; a fused kernel keeps what its backward pass needs
        # by the mode that is set.
        with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad():
            for op, args, kwargs, old in self.calls:
                new = op(*args, **kwargs)
                aliased = [r.alias_info is not None for r in op._schema.returns]
                many = isinstance(old, (tuple, list))
                pairs = zip(old, new, strict=True) if many else [(old, new)]
                for k, (there, value) in enumerate(pairs):
                    if isinstance(there, Tensor) and not aliased[min(k, len(aliased) - 1)]:
                        there.copy_(value)


def taping(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Let tapes stand for graphs."""
    without_kernels(monkeypatch)
    tapes: list[Tape] = []

    def captured(compute: Callable[[], None], workspace: Any) -> Callable[[], None]:
        with WORKSPACE.apart():
            compute()
        with WORKSPACE.apart(), Tape() as tape:
            compute()
        tapes.append(tape)
        return tape.replay

    monkeypatch.setattr(cuda_graphs, "captured", captured)
    return tapes


def record(made: CudaGraphs, monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Let `made` capture by tapes."""
    made._capture = True
    return taping(monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_a_replayed_window_equals_the_plain_step(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = CudaGraphs(CPU, patience=1)
    tapes = record(made, monkeypatch)
    net, calls = network(case), [0]
    net.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    assert_same(steps_of(case, made, net=net), steps_of(case, None))
    assert made.count == len(tapes) == 2 and all(len(tape.calls) > 50 for tape in tapes)
    # 4 plain windows: the first of each length, 4, and the one without a hidden state; 2 calls a
    # tape.
    assert calls[0] == 4 + 1 + 2 * 2


def test_a_tape_shows_what_python_bakes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    made, factor = CudaGraphs(CPU, patience=0), [1.0]
    record(made, monkeypatch)
    for wanted in (1.0, 2.0, 3.0):
        factor[0] = wanted
        found = made.run("a", lambda x: x * factor[0], torch.ones(2))
        assert found.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("case", CASES)
def test_a_window_asks_nothing_of_the_host(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is read from the device, and no index or table is copied to it."""
    without_kernels(monkeypatch)
    net = network(case)
    ids = torch.randint(V, (6, B), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:-1], ids[1:])
    shares = torch.rand(len(SPACE.edges), len(SPACE.ops)).requires_grad_()
    mixtures = {"recurrent": Mixture(shares, SKIPS if "skips" in case else None)}
    noise = net.noise(batch, torch.Generator().manual_seed(0))
    with Watch() as eigenvalue_stop:
        loss = net(batch, None, mixtures if net.space else {}, noise)
        torch.autograd.grad(loss.objective, [*net.parameters(), *([shares] if net.space else [])])
    assert not eigenvalue_stop.seen
    with Watch() as eigenvalue_stop:
        torch.tensor([1, 2])
    assert eigenvalue_stop.seen, "a copy to the device would show"


def test_a_capture_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "Stream", refuse)
    made = CudaGraphs(CPU, patience=0)
    made._capture = True
    with pytest.raises(RnnnasError, match="not permitted when stream is capturing") as caught:
        made.run("a", doubled, torch.ones(2))
    assert "capture=off" in caught.value.remedy and "more" not in caught.value.cause
