"""A step queues work on a device and does not wait for it; the loop looks at logging points only.

Without a device of that kind, what would wait is found by its operation: reading a scalar
(`_local_scalar_dense`), and indices made of Python lists, which are copied to the device.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_work
import torch
from plain_torch import without_kernels
from tiny_home import home as home
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rnnnas import optim
from rnnnas.data.text_streams import Streams
from rnnnas.distributed import ALONE
from rnnnas.engine import loop
from rnnnas.engine.steps import weight_step
from rnnnas.nas.architect import Architect
from rnnnas.nas.relax.darts import Darts
from rnnnas.optim import (
    AlphaConfig,
    WeightConfig,
    alpha_optimizer,
    guarded_step,
    restore_optimizer,
    weight_optimizer,
)
from rnnnas.runs.checkpoint import load_content
from rnnnas.training.run import TrainJob
from rnnnas.types import InnerStep

CPU = torch.device("cpu")
WAITS = (
    "_local_scalar_dense", "nonzero", "index.Tensor", "index_put_", "masked_select", "lift_fresh",
)  # fmt: skip


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernels(monkeypatch)
    monkeypatch.setattr(optim, "_at_hand", lambda scalar: False)


class Watch(TorchDispatchMode):
    """Notes every operation that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(op)
        if any(f"aten.{wait}" in name for wait in WAITS):
            self.seen.append(name)
        return op(*args, **(kwargs or {}))


def fused_sgd(net: torch.nn.Module) -> torch.optim.SGD:
    """As on a CUDA device."""
    return torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01, fused=True)


@pytest.mark.parametrize("cell", ["derived", "lstm"])
def test_a_weight_step_does_not_wait(cell: str) -> None:
    net = rank_work.network(ALONE, "fast", rank_work.CELLS[cell], torch.float32)
    batch = rank_work.window(ALONE, 0)
    noise = net.noise(batch, torch.Generator().manual_seed(0))
    sgd = fused_sgd(net)
    with Watch() as eigenvalue_stop:
        loss, norm = weight_step(net, sgd, batch, None, {}, noise, lr=0.1, clip=0.25)
    assert not eigenvalue_stop.seen
    with Watch() as eigenvalue_stop:
        float(norm), net.bias[[0, 1]]
    assert len(eigenvalue_stop.seen) == 3, "what waits would show"


@pytest.mark.parametrize("order", ["first", "finite"])
def test_an_alpha_step_does_not_wait_for_a_number(order: Any) -> None:
    net = rank_work.network(ALONE, "fast", rank_work.CELLS["searched"], torch.float32)
    method = Darts()
    alphas = method.init(net.space, torch.Generator().manual_seed(1))
    alphas = {n: a.detach().requires_grad_() for n, a in alphas.items()}
    adam = torch.optim.Adam(alphas.values(), lr=0.1, fused=True)
    before = {n: a.detach().clone() for n, a in alphas.items()}
    architect = Architect(net, alphas, method, adam, order)
    with Watch() as eigenvalue_stop:
        architect.step(
            train=(rank_work.window(ALONE, 0), None), valid=(rank_work.window(ALONE, 1), None),
            inner=InnerStep(lr=0.1, clip=0.25), progress=0.5,
            generator=torch.Generator().manual_seed(2),
        )  # fmt: skip
    assert not eigenvalue_stop.seen
    assert all(not torch.equal(alphas[n], before[n]) for n in alphas)


# Optimisers that heed a flag on the device


class Weights(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("fused", [True, None])
def test_an_unsound_step_moves_nothing(kind: str, fused: bool | None) -> None:
    net, plain = Weights(), Weights()
    made: list[torch.optim.Optimizer] = []
    for which, flag in ((net, fused), (plain, None)):
        if kind == "sgd":
            made.append(
                torch.optim.SGD(
                    which.parameters(), lr=0.1, momentum=0.5, weight_decay=0.1, fused=flag
                )
            )
        else:
            made.append(torch.optim.Adam(which.parameters(), lr=0.1, fused=flag))
    gradients = [[1.0, 2.0, 3.0], [math.nan, 1.0, 1.0], [-1.0, 0.5, 2.0]]
    for gradient in gradients:
        sound = math.isfinite(sum(gradient))
        before = net.w.detach().clone()
        net.w.grad = torch.tensor(gradient)
        guarded_step(made[0], torch.tensor(sound))
        assert torch.equal(net.w.detach(), before) is not sound
        if sound:
            plain.w.grad = torch.tensor(gradient)
            made[1].step()
        torch.testing.assert_close(net.w, plain.w, rtol=1e-6, atol=1e-7)


def test_a_state_moves_between_devices() -> None:
    """How a step is computed is not part of what is restored."""
    cpu, cuda = Weights(), Weights()
    sgd, fused = weight_optimizer(cpu, WeightConfig(momentum=0.9)), fused_sgd(cuda)
    assert sgd.param_groups[0]["fused"] is None
    for net, optimizer in ((cpu, sgd), (cuda, fused)):
        net.w.grad = torch.ones(3)
        optimizer.step()
    saved = (sgd.state_dict(), fused.state_dict())
    restore_optimizer(fused, saved[0])
    restore_optimizer(sgd, saved[1])
    assert fused.param_groups[0]["fused"] is True and sgd.param_groups[0]["fused"] is None
    assert fused.param_groups[0]["weight_decay"] == 0.0
    assert sgd.param_groups[0]["weight_decay"] == 0.01
    adam = alpha_optimizer(dict(cpu.named_parameters()), AlphaConfig())
    assert adam.param_groups[0]["fused"] is None


# The loop


def test_looking_seldom_changes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("epochs=2", "windows.limit=45", "windows.bptt=4", "save_seconds=1000")
    often = rank_work.a_run(ALONE, str(home), "train", str(tmp_path / "often"), settings, "")
    looked: list[int] = []
    original = loop._values
    monkeypatch.setattr(loop, "_at_hand", lambda report: False)
    monkeypatch.setattr(loop, "_values", lambda r: [looked.append(len(r)), original(r)][1])
    seldom = rank_work.a_run(ALONE, str(home), "train", str(tmp_path / "seldom"), settings, "")
    assert seldom["digest"] == often["digest"]
    # 45 windows an epoch: every second one is logged, and the last.
    assert looked == [*[2] * 22, 1, *[2] * 22, 1]

    def lines(out: str) -> list[Any]:
        text = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        keys = ("kind", "step", "perplexity", "gradient_norm", "valid_perplexity")
        return [[json.loads(line).get(key) for key in keys] for line in text]

    assert lines("seldom") == lines("often")


def test_a_loss_seen_late_still_takes_the_run_back(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, left = TrainJob.step, [25]

    def step(self: Any, at: Any, *args: Any) -> Any:
        report = original(self, at, *args)
        if left and at.step == left[0]:
            left.pop()
            return report._replace(norm=torch.tensor(math.inf))
        return report

    monkeypatch.setattr(TrainJob, "step", step)
    monkeypatch.setattr(loop, "_at_hand", lambda report: False)
    settings = ("epochs=1", "windows.limit=60", "windows.bptt=4", "save_seconds=1000")
    rank_work.a_run(ALONE, str(home), "train", str(tmp_path / "run"), settings, "")
    state = load_content(tmp_path / "run/state.pt")["state"]
    assert not left and state["rollbacks"] == 1 and state["lr_factor"] == 0.5
    assert state["position"]["step"] == 60


def test_a_report_on_a_device_waits() -> None:
    there = torch.empty((), device="meta")
    assert loop._at_hand(loop.StepReport(1.0, 1, torch.ones(()), 1.0))
    assert not loop._at_hand(loop.StepReport(there, 1, torch.ones(()), 1.0))
    mixed = [loop.StepReport(1.5, 1, torch.tensor(2.5), 1.0), loop.StepReport(3.5, 1, 4.5, 1.0)]
    assert loop._values(mixed) == [(1.5, 2.5, None), (3.5, 4.5, None)]
    right = loop.StepReport(1.5, 8, torch.tensor(2.5), 1.0, torch.tensor([3, 7]))
    assert loop._values([right, *mixed])[:2] == [(1.5, 2.5, 3), (1.5, 2.5, None)]
    held = torch.empty(2, device="meta", dtype=torch.int64)
    assert not loop._at_hand(loop.StepReport(1.0, 1, 1.0, 1.0, held))


def test_a_text_held_on_the_device_gives_the_same_windows() -> None:
    tokens = np.arange(103, dtype=np.uint16)
    mapped, held = Streams(tokens, 5, CPU), Streams(tokens, 5, CPU, held=True)
    for part in (slice(None), slice(1, 3)):
        mapped = Streams(tokens, 5, CPU, part=part)
        held = Streams(tokens, 5, CPU, part=part, held=True)
        assert mapped.length == held.length == 20
        for start, steps in mapped.windows(7):
            for a, b in zip(mapped.window(start, steps), held.window(start, steps), strict=True):
                assert torch.equal(a, b) and a.dtype == b.dtype and a.is_contiguous()
                assert b.is_contiguous()
    assert mapped.window(0, 1).inputs.tolist() == [[20, 40]]


@contextmanager
def no_waits() -> Iterator[None]:
    """Within it, an operation that waits for the card is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it may not notice all of them
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_epoch_does_not_wait_for_a_real_device(home: Path) -> None:
    from rnnnas.data.corpus import open_corpus

    corpus = open_corpus("tiny")
    job = TrainJob(rank_work.configuration("train"), corpus, torch.device("cuda"))
    at = loop.Position()
    job.begin_epoch(at)
    job.step(at, 10, 1.0)  # libraries are set up in the first
    with no_waits():
        reports: list[Tensor | float] = [job.step(at, 10, 1.0).nats for _ in range(5)]
    assert all(math.isfinite(float(nats)) for nats in reports)
