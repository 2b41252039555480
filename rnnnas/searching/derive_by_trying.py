"""Deriving a cell by trying some: each is scored with the shared weights of a finished search."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from rnnnas.config.text import SearchConfig
from rnnnas.data.text_streams import Streams
from rnnnas.engine.metrics import perplexity
from rnnnas.engine.steps import evaluate, generator
from rnnnas.nas.genotype import Genotype, cell_text
from rnnnas.nas.methods import method_of
from rnnnas.nas.relax.policy import Policy, mixtures_of
from rnnnas.nas.strategies import Evolution, RandomCells, Scored, Spaces, Strategy
from rnnnas.runs.folder import AnyRun, Run
from rnnnas.runs.progress import Progress
from rnnnas.runs.signals import StopRequest


def strategy_of(config: SearchConfig, spaces: Spaces) -> Strategy:
    """What proposes cells where no policy does."""
    if method_of(config.method).derive == "evolution":
        black = config.blackbox
        return Evolution(
            spaces, config.seed, config.cells, population=black.population, sample=black.sample
        )
    return RandomCells(spaces, config.seed, config.cells)


@final
class PolicyCells(Strategy):
    """Cells drawn from a policy; one may come twice."""

    def __init__(
        self, policy: Policy, alphas: Mapping[str, Tensor], spaces: Spaces, seed: int, total: int
    ) -> None:
        super().__init__(spaces, seed, total)
        self.policy = policy
        self.alphas = alphas

    def ask(self) -> Genotype:
        device = next(iter(self.alphas.values())).device
        draws = generator(self.seed, "derive", len(self.history), device)
        mixtures = self.policy.mix(self.alphas, self.spaces, 1.0, draws)
        cells = {}
        for name, space in self.spaces.items():
            drawn = mixtures[name].weights
            # Where more edges are drawn than a node keeps, chance chooses among them.
            order = 1 + torch.rand(len(drawn), 1, generator=draws, device=device)
            cells[name] = space.discretise((drawn * order).tolist())
        return Genotype(cells=cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """What came of trying cells. seconds: of the whole run so far."""

    best: Scored
    seconds: float


def try_cells(
    strategy: Strategy, net: nn.Module, text: Streams, run: Run, *, title: str, quiet: bool
) -> Derivation:
    """Score cells on `text` with the weights of `net` until the strategy is done.

    Call it when `loop.drive` has returned. What was scored is kept beside the job in the run's
    state; the same call goes on from there. Every cell is one line of kind `candidate` in the
    metrics. A cell that comes again is not computed again.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after the state is saved.
    """
    saved = run.load_state()
    assert saved is not None  # `drive` saves before it returns
    began = time.perf_counter()
    strategy.restore(saved.get("tried", []))
    known = {cell_text(scored.genotype): scored.loss for scored in strategy.history}
    like = next(net.parameters()).detach()

    def seconds() -> float:
        return float(saved["seconds"]) + time.perf_counter() - began

    def save() -> None:
        run.save_state({**saved, "seconds": seconds(), "tried": strategy.state()})

    done = len(strategy.history)
    with (
        StopRequest() as stop,
        Progress(title, strategy.total, done=done, unit="cells", quiet=quiet) as bar,
    ):
        while not strategy.done:
            genotype = strategy.ask()
            text_form = cell_text(genotype)
            if text_form not in known:
                mixtures = mixtures_of(genotype, strategy.spaces, like)
                known[text_form] = evaluate(net, text, mixtures).loss
            strategy.tell(genotype, known[text_form])
            step = saved["position"]["step"] + len(strategy.history)
            log_candidate(run, step, strategy)
            bar.update(
                len(strategy.history),
                perplexity=perplexity(known[text_form], 1),
                best=perplexity(strategy.best.loss, 1),
            )
            if run.due() or strategy.done:
                save()
            stop.check(save, run.folder)
    return Derivation(best=strategy.best, seconds=seconds())


def log_candidate(run: AnyRun, step: int, strategy: Strategy) -> None:
    """One line for the cell that was told last: number, cell, its perplexity, the best so far."""
    last = strategy.history[-1]
    run.log(
        "candidate",
        step,
        number=len(strategy.history),
        cell=cell_text(last.genotype),
        perplexity=perplexity(last.loss, 1),
        best_perplexity=perplexity(strategy.best.loss, 1),
    )
