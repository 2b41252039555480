"""What the processes of test_ranks do, and how they are started."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import arithmetic
import pytest
import torch
from torch import Tensor

from rnnnas.config.presets import resolve
from rnnnas.data.corpus import open_corpus
from rnnnas.distributed import STORE, Ranks, joined
from rnnnas.engine.job import Position
from rnnnas.engine.steps import generator, own_state, weight_step, whole_state
from rnnnas.errors import RnnnasError
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.architect import hypergradient
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.space import recurrent_space
from rnnnas.searching.run import search
from rnnnas.searching.supernet import SearchJob
from rnnnas.training.run import TrainJob, train
from rnnnas.types import Batch, InnerStep

CPU = torch.device("cpu")
V, H, B, T = 11, 4, 6, 3
DERIVED = Genotype.from_text("sigmoid0 relu1 tanh1").recurrent
Work = Callable[..., Any]

arithmetic.pin()  # a new process imports this file, and not conftest.py


def _rank(work: Work, rank: int, size: int, folder: Path, args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ[STORE] = str(folder / "store")
    with joined(CPU) as ranks:
        torch.save(work(ranks, *args), folder / f"result{rank}")


def together(work: Work, folder: Path, *args: Any, size: int = 2) -> list[Any]:
    """What `work(ranks, *args)` returns in each of `size` processes."""
    folder.mkdir()
    context = multiprocessing.get_context("forkserver")  # imports this file once for all
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:  # by which the server finds it
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    processes = [
        context.Process(target=_rank, args=(work, rank, size, folder, args)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * size
    return [torch.load(folder / f"result{rank}", weights_only=True) for rank in range(size)]


def messages(ranks: Ranks, folder: str) -> dict[str, Any]:
    """Every way to talk."""
    whole = torch.arange(12.0).view(2, 6)
    own = ranks.own(whole, 1)
    means = [torch.full((2,), float(ranks.rank)), torch.tensor(10.0 * ranks.rank)]
    ranks.mean_(means)
    caught = {}
    for name, fails in (("fine", False), ("failed", True)):

        def work(fails: bool = fails) -> str:
            (Path(folder) / f"by{ranks.rank}").touch()
            if fails:
                raise RnnnasError("a cause", "a remedy")
            return "done"

        try:
            caught[name] = [ranks.on_rank_zero(work)]
        except RnnnasError as error:
            caught[name] = [error.cause, error.remedy, error.quiet]
    value = {"a": [1, None, 2.5], "b": torch.ones(3)} if ranks.leads else {"wrong": True}
    return {
        "own": own, "gathered": ranks.gather(own, 1), "means": means, "by_rank_zero": caught,
        "most": list(ranks.max_reduce(ranks.rank, -ranks.rank)), "told": ranks.broadcast(value),
    }  # fmt: skip


def network(ranks: Ranks, path: Any, cell: Any, dtype: torch.dtype) -> RecurrentLM:
    share = NoiseConfig(dropout=0.3, dropouti=0.2, dropoute=0.2, dropoutx=0.3, dropouth=0.2)
    if isinstance(cell, str):
        share = replace(share, dropoutx=0.0, weightdrop=0.3)
    layers = 1 if cell not in ("lstm", DERIVED) else 2
    net = RecurrentLM(
        ModelConfig(hidden=H, nodes=2, path=path, precision="float32", layers=layers), V, cell,
        noise=share, penalty=PenaltyConfig(ar=0.5, tar=0.9),
        generator=torch.Generator().manual_seed(0), ranks=ranks,
    ).to(dtype)  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(12).add_(0.1)
    return net


def window(ranks: Ranks, seed: int) -> Batch:
    ids = torch.randint(V, (T + 1, B), generator=torch.Generator().manual_seed(seed))
    mine = ranks.own(ids, 1)
    return Batch(mine[:-1], mine[1:])


CELLS = {"derived": DERIVED, "searched": recurrent_space(2), "lstm": "lstm"}


def steps_of(ranks: Ranks, cell: str, path: str, double: bool) -> dict[str, Any]:
    """Two weight steps with a hidden state between them: gradients, weights, reports."""
    dtype = torch.float64 if double else torch.float32
    net = network(ranks, path, CELLS[cell], dtype)
    sgd = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.5, weight_decay=0.01)
    mixtures: Any = {}
    if cell == "searched":
        method = Darts()
        alphas = method.init(net.space, torch.Generator().manual_seed(1))
        alphas = {n: a.detach().to(dtype) for n, a in alphas.items()}
        mixtures = method.mix(alphas, net.space, 0.0, torch.Generator())
    hidden_state, found = None, {}
    for step in range(2):
        batch = window(ranks, step)
        noise = net.noise(batch, generator(1, "step", step, CPU))
        loss, norm = weight_step(
            net, sgd, batch, hidden_state, mixtures, noise, lr=0.3, clip=0.25 * step, ranks=ranks
        )
        hidden_state = loss.hidden_state
        found |= {
            f"loss{step}": loss.value, f"penalty{step}": loss.penalty, f"norm{step}": norm,
            f"count{step}": torch.tensor(loss.count),
        }  # fmt: skip
        if step == 0:  # not clipped
            found |= {f"grad {n}": p.grad.clone() for n, p in net.named_parameters()}
    found |= {f"weight {n}": p.detach() for n, p in net.named_parameters()}
    whole = whole_state(hidden_state, ranks)
    assert whole is not None
    again = own_state(whole, CPU, ranks)
    for state, there, back in zip(*map(_states, (whole, hidden_state, again)), strict=True):
        assert state.shape[0] == B and torch.equal(there, back)
    found |= {f"carry{i}": state for i, state in enumerate(_states(whole))}
    return found


def _states(hidden_state: Any) -> tuple[Tensor, ...]:
    return (hidden_state,) if isinstance(hidden_state, Tensor) else hidden_state


def hypergradients(ranks: Ranks, path: str, order: Any, clip: float) -> dict[str, Any]:
    net = network(ranks, path, CELLS["searched"], torch.float64)
    method = Darts()
    alphas = method.init(net.space, torch.Generator().manual_seed(1))
    alphas = {n: (a.detach().double() * 300).requires_grad_() for n, a in alphas.items()}
    hidden_state = torch.randn(
        B, H, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    mine = ranks.own(hidden_state, 0)
    grads, loss = hypergradient(
        net, alphas, method, train=(window(ranks, 0), mine), valid=(window(ranks, 1), mine),
        inner=InnerStep(lr=0.4, clip=clip, weight_decay=0.01), order=order, progress=0.5,
        generator=torch.Generator().manual_seed(3), through_clip=order == "exact", ranks=ranks,
    )  # fmt: skip
    return {**grads, "loss": loss.value, "count": torch.tensor(loss.count)}


def many(ranks: Ranks, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
    """Several of the above in one start."""
    return [globals()[name](ranks, *args) for name, args in calls]


def configuration(kind: str, *settings: str) -> Any:
    own = ["model.hidden=8", "windows.streams=6", "valid_streams=6", "model.precision=float32"]
    if kind == "train":
        own += ["test_streams=4"]
    flags = {"corpus": "tiny", "seed": 3}
    if kind == "train":
        flags["genotype"] = "sigmoid0 relu1 tanh1"
    return resolve(kind, preset="smoke", file=None, settings=[*own, *settings], flags=flags)


def a_run(
    ranks: Ranks, home: str, kind: str, folder: str, settings: tuple[str, ...], event: str
) -> Any:
    """A search or training; `event` befalls rank 1 alone: a signal, or a loss that is no number.

    Returns its result, or the exit code and whether it is said quietly.
    """
    os.environ["RNNNAS_HOME"] = home
    job: Any = {"train": TrainJob, "search": SearchJob}[kind]
    original, left = job.step, [13]

    def step(self: Any, at: Position, *args: Any) -> Any:
        if ranks.rank == 1 and left and at.step == left[0]:
            left.pop()
            if event == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            elif event == "nan":
                hidden_state = "hidden_state" if kind == "train" else "train_state"
                setattr(self, hidden_state, torch.full_like(getattr(self, hidden_state), torch.nan))
        return original(self, at, *args)

    job.step = step
    run: Any = {"train": train, "search": search}[kind]
    try:
        corpus = open_corpus("tiny")
        config = configuration(kind, *settings)
        result: Any = run(config, corpus, Path(folder), device=CPU, quiet=True, ranks=ranks)
        return result
    except RnnnasError as error:
        return {"code": error.exit_code, "quiet": error.quiet, "cause": error.cause}
    finally:
        job.step = original


def zipf_text(words: int, lines: int) -> str:
    """Lines of 3 to 12 words w0, w1, ...; the n-th most frequent is drawn 1 / n as often."""
    rng = random.Random(0)
    known = [f"w{i}" for i in range(words)]
    shares = [1 / (i + 1) for i in range(words)]
    drawn = [" ".join(rng.choices(known, shares, k=rng.randint(3, 12))) for _ in range(lines)]
    return "\n".join(drawn) + "\n"


def even_text(words: int, lines: int) -> str:
    """Lines of 3 to 9 words that are equally frequent."""
    rng = random.Random(0)
    known = [f"w{i}" for i in range(words)]
    drawn = [" ".join(rng.choices(known, k=rng.randint(3, 9))) for _ in range(lines)]
    return "\n".join(drawn) + "\n"


def tiny_text() -> str:
    return zipf_text(40, 600)
