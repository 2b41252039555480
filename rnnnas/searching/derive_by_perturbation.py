"""Deriving a finished search's cell by perturbation: masks scored, weights tuned in between."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from rnnnas.config.text import SearchConfig
from rnnnas.data.text_corpus import Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.distributed import Ranks
from rnnnas.engine.metrics import perplexity
from rnnnas.engine.steps import evaluate, generator, weight_step
from rnnnas.engine.text_task import alpha_text
from rnnnas.errors import DivergedError, Interrupted
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.perturbation import Decided, Perturbation
from rnnnas.nas.relax.base import Mixtures, Relaxation, Spaces
from rnnnas.processes import orphaned
from rnnnas.runs.folder import AnyRun
from rnnnas.runs.progress import Progress
from rnnnas.runs.signals import StopRequest
from rnnnas.types import HiddenState


class Searched(Protocol):
    """What of a finished search is read and tuned."""

    config: SearchConfig
    ranks: Ranks
    device: torch.device
    relaxation: Relaxation
    alphas: dict[str, Tensor]
    net: RecurrentLM
    train: Streams
    train_state: HiddenState
    weight_optimizer: torch.optim.SGD

    @property
    def planned_time(self) -> int: ...
    def window_after(self, number: int) -> tuple[int, int]: ...
    def state(self) -> dict[str, Any]: ...


class Perturbed(Protocol):
    """What the decisions are made with."""

    ranks: Ranks

    def score(self, mixtures: Mixtures) -> float:
        """The loss, mean nats a target, under mixtures without gradient."""

    def tune(self, number: int, mixtures: Mixtures) -> float:
        """Weight step `number`, counted from 0; its loss."""

    def state(self) -> dict[str, Any]:
        """What of the job's saved state has changed since."""


@final
class LanguageSearch:
    """`Perturbed` for a search of recurrent cells.

    Masks are scored on the alphas' text from its beginning, by one process alone, in as many
    streams as in training: the batch statistics are then of the same kind. Weights are tuned on
    the windows that the search would have taken next, state and masks likewise.

    Args:
        masks: how many are scored. lr_factor: what divergence has left of the step size.
    """

    def __init__(self, job: Searched, corpus: Corpus, masks: int, lr_factor: float) -> None:
        self.job, self.ranks, self.lr_factor = job, job.ranks, lr_factor
        config = job.config
        streams = config.windows.streams
        steps = max(job.planned_time // max(masks, 1), config.windows.bptt)
        targets = config.derive.targets or steps * streams
        text = alpha_text(config, corpus)[: targets + streams]
        self.scored = Streams(text, streams, job.device)

    def score(self, mixtures: Mixtures) -> float:
        net = self.job.net.alone()
        return self.ranks.on_rank_zero(lambda: evaluate(net, self.scored, mixtures).loss)

    def tune(self, number: int, mixtures: Mixtures) -> float:
        job, config = self.job, self.job.config
        start, steps = job.window_after(number)  # passes go on where the search ended
        if start == 0:
            job.train_state = None
        batch = job.train.window(start, steps)
        noise = job.net.noise(batch, generator(config.seed, "tune", number, job.device))
        lr = config.derive.lr * config.weights.lr * steps / config.windows.bptt * self.lr_factor
        loss, norm = weight_step(
            job.net, job.weight_optimizer, batch, job.train_state, mixtures, noise,
            lr=lr, clip=config.weights.clip, ranks=self.ranks,
        )  # fmt: skip
        job.train_state = loss.hidden_state
        return float(loss.value) if math.isfinite(float(norm)) else math.nan

    def state(self) -> dict[str, Any]:
        return self.job.state()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """genotype: the cell; seconds: of the whole run so far."""

    genotype: Genotype
    seconds: float


def cell_of(job: Searched, corpus: Corpus, run: AnyRun, *, quiet: bool = False) -> Outcome:
    """The cell of a finished search by perturbation; see `decide_all`."""
    config = job.config
    with torch.no_grad():
        scores = job.relaxation.scores(job.alphas, job.net.space)
    plan = Perturbation(job.net.space, scores, config.derive.order, config.seed)
    saved = run.load_state()
    assert saved is not None  # `drive` saves before it returns
    work = LanguageSearch(job, corpus, plan.total, saved["lr_factor"])
    title = f"derive a cell of {config.method} on {config.corpus}"
    return decide_all(
        plan, work, run, saved, tune_windows=config.derive.tune_windows, title=title, quiet=quiet
    )


def decide_all(
    plan: Perturbation,
    work: Perturbed,
    run: AnyRun,
    saved: dict[str, Any],
    *,
    tune_windows: int,
    title: str,
    quiet: bool,
) -> Outcome:
    """Make every decision of `plan`, with `tune_windows` weight steps between any two.

    Call it when `loop.drive` has returned, which has restored what `work` changes. How far it is
    is kept beside the job in the run's state; the same call goes on from there. Every decision is
    one line of kind `decision` in the metrics. Every rank calls it.

    Args:
        saved: the run's state as `run.load_state` gave it.

    Raises:
        DivergedError: where a loss is not finite in a weight step, or whatever is masked.
        Interrupted: on SIGINT or SIGTERM, after the state is saved.
    """
    began, ranks = time.perf_counter(), work.ranks
    tuned = 0
    if "perturbed" in saved:
        tuned = saved["perturbed"]["tuned"]
        plan.restore(saved["perturbed"]["plan"])

    def seconds() -> float:
        return float(saved["seconds"]) + time.perf_counter() - began

    def save() -> None:
        own = {"tuned": tuned, "plan": plan.state()}
        run.save_state({**saved, "seconds": seconds(), "job": work.state(), "perturbed": own})

    def done() -> int:
        return plan.tried + tuned

    total = plan.total + tune_windows * max(len(plan.plan) - 1, 0)
    quiet = quiet or not ranks.leads
    with StopRequest() as stop, Progress(title, total, done=done(), quiet=quiet) as bar:
        while not plan.done:
            if tuned < tune_windows * len(plan.kept):
                loss = work.tune(tuned, plan.mixtures())
                if not math.isfinite(perplexity(loss, 1)):
                    raise ranks.rank_zero_error(
                        DivergedError(
                            f"the loss was not finite in tuning step {tuned}",
                            "lower the step size with --set derive.lr=... and start with --fresh",
                        )
                    )
                tuned += 1
            elif plan.open:
                loss = work.score(plan.ask())
                plan.tell(loss)
            else:
                step = saved["position"]["step"] + len(plan.kept) + 1
                _log(run, step, plan.decide(), len(plan.kept), plan.spaces)
                loss = math.nan
            if not math.isnan(loss):
                made = f"{len(plan.kept)}/{len(plan.plan)}"
                bar.update(done(), perplexity=perplexity(loss, 1), decisions=made)
            if orphaned() and stop.signum is None:
                stop.signum = signal.SIGTERM
            signum, due = ranks.max_reduce(stop.signum or 0, int(run.due()))
            if due or plan.done:
                save()
            try:
                stop.check(save, run.folder, signum)
            except Interrupted as error:
                ranks.rank_zero_error(error)
                raise
    return Outcome(genotype=plan.genotype(), seconds=seconds())


def _log(run: AnyRun, step: int, decided: Decided, number: int, spaces: Spaces) -> None:
    """One line: the place, what it keeps, and the perplexity without each candidate in turn:
    the highest, which is that without what is kept, and the lowest.
    """
    (cell, kind, place), _, losses, kept = decided
    space = spaces[cell]
    names = [f"s{source} > s{target}" for source, target in space.edges]
    values: dict[str, float | str] = {}
    if losses:
        values = {
            "perplexity": perplexity(max(losses), 1), "lowest": perplexity(min(losses), 1),
        }  # fmt: skip
    run.log(
        "decision",
        step,
        number=number,
        cell=cell,
        place=names[place] if kind == "operation" else f"s{place + space.inputs}",
        kept=", ".join(space.ops[k] if kind == "operation" else names[k] for k in kept),
        **values,
    )
