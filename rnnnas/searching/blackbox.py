"""Black-box search from scratch: each cell that a strategy proposes is trained for a while."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import torch

from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.data.text_streams import Streams, window_lengths
from rnnnas.distributed import ALONE
from rnnnas.engine.budget import Course, Pace
from rnnnas.engine.cuda_graphs import cuda_graphs_for
from rnnnas.engine.job import Position, StepReport
from rnnnas.engine.metrics import perplexity
from rnnnas.engine.steps import evaluate, generator, load_weights, own_state, weight_step
from rnnnas.engine.task import products_in
from rnnnas.engine.text_task import begin_output, scoring_streams, search_texts
from rnnnas.errors import CheckpointError, DivergedError
from rnnnas.lm.model import RecurrentLM, cell_path, low_precision
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.optim import restore_optimizer, scheduled, weight_optimizer
from rnnnas.runs.folder import AnyRun
from rnnnas.searching.derive_by_trying import log_candidate, strategy_of
from rnnnas.types import HiddenState


class CandidateJob:
    """The training of one cell after the other; see `job.Job`. An epoch of it is a cell.

    All cells start from the same weights and see the same windows under the same masks, those of
    a search with this seed: what differs is the cell. Together they get as many weight steps as
    such a search takes, unless `blackbox.windows` says how many each gets; a cell that gets more
    than one pass over the text starts again at its beginning. The schedule of the step size spans
    one cell.
    """

    def __init__(
        self, config: SearchConfig, corpus: Corpus, device: torch.device, pace: Pace | None = None
    ) -> None:
        self.config = config
        self.pace = pace
        self.device = device
        self.corpus = corpus
        self.vocabulary = corpus.vocab.size
        self.strategy = strategy_of(config, {RECURRENT: config.cell_space})
        self.epochs = self.strategy.total
        train, _ = search_texts(config, corpus)
        self.train = Streams(train, config.windows.streams, device)
        self.course = Course(self._pass)
        self.windows = self._windows()
        trained = config.epochs * sum(self._pass(0))
        if pace is not None or config.blackbox.windows:
            trained = self.epochs * sum(steps for _, steps in self.windows)
        self.scored = scoring_streams(config, corpus, device, trained)
        self.valid = Streams(corpus.splits["valid"], config.valid_streams, device, "valid_streams")
        self.valid_perplexity = math.nan  # of the best cell so far
        self._begin(self.strategy.ask())

    def _begin(self, genotype: Genotype) -> None:
        """A fresh network for the next cell."""
        config = self.config
        self.genotype_now = genotype
        net = RecurrentLM(
            replace(config.model, partial=1),  # all units go through a cell that is trained alone
            self.vocabulary,
            genotype.recurrent,
            noise=config.noise,
            penalty=config.penalty,
            generator=generator(config.seed, "weights", 0, torch.device("cpu")),
        )
        begin_output(net, config, self.corpus)
        self.net = net.to(self.device)
        path = cell_path(config.model, genotype.recurrent)
        self.cuda_graphs = cuda_graphs_for(config.capture, self.device, path=path)
        self.optimizer = weight_optimizer(self.net, config.weights)
        self.hidden_state: HiddenState = None
        self.diverged = False

    def _pass(self, number: int) -> list[int]:
        """T of the windows of one pass over the text, as a search has them in that epoch."""
        rng = random.Random(f"{self.config.seed}/windows/{number}")
        return window_lengths(self.config.windows, self.train.length, rng)

    def _windows(self) -> list[tuple[int, int]]:
        """(start, T) of the windows that the cell with the most gets, in order."""
        each = self.config.blackbox.windows
        steps = self.config.epochs * len(self._pass(0))
        if self.pace is not None:
            each = self.pace.plan.steps
        self.budget = each * self.epochs or max(steps, self.epochs)
        most = -(-self.budget // self.epochs)
        windows: list[tuple[int, int]] = []
        number = 0
        while len(windows) < most:
            start = 0
            for steps in self._pass(number):
                windows.append((start, steps))
                start += steps
            number += 1
        return windows[:most]

    measure = "perplexity"

    @property
    def arithmetic(self) -> str:
        return products_in(low_precision(self.config.model, self.device), self.device)

    def lengths(self, epoch: int) -> list[int]:
        """T of every window of cell `epoch`: the budget, shared out."""
        if self.pace is not None:
            self.pace.steps(epoch)  # the same for all, and their number follows
            return [steps for _, steps in self.windows]
        share, rest = divmod(self.budget, self.epochs)
        return [steps for _, steps in self.windows[: share + (epoch < rest)]]

    def begin_epoch(self, at: Position) -> None:
        self._begin(self.strategy.ask())

    def step(self, at: Position, steps: int, lr_factor: float) -> StepReport:
        """A weight step. A cell whose loss is no longer finite is lost, not the search.

        What a lost cell has left of its budget counts as a uniform guess of the next word.
        """
        config = self.config
        start, _ = self.windows[at.window]
        progress = at.window / len(self.lengths(at.epoch))
        lr = scheduled(config.weights, progress) * steps / config.windows.bptt * lr_factor
        batch = self.train.window(start, steps)
        if not self.diverged:
            noise = self.net.noise(
                batch, generator(config.seed, "weight-step", at.window, self.device)
            )
            hidden_state = self.hidden_state if start else None
            loss, norm = weight_step(
                self.net, self.optimizer, batch, hidden_state, {}, noise, lr=lr,
                clip=config.weights.clip,
                cuda_graphs=self.cuda_graphs,
            )  # fmt: skip
            self.hidden_state = loss.hidden_state
            self.diverged = not math.isfinite(perplexity(float(loss.value), 1) + float(norm))
        if self.diverged:
            return StepReport(math.log(self.vocabulary), batch.targets.numel(), 0.0, lr)
        return StepReport(float(loss.value), loss.count, float(norm), lr)

    def end_epoch(self, at: Position, run: AnyRun) -> dict[str, float]:
        """Score the cell; where it is the best so far, its validation perplexity is noted."""
        began = 0.0 if self.pace is None else self.pace.spent()
        over = self.pace is not None and self.pace.trained(at.epoch)
        loss = (
            math.inf
            if self.diverged
            else evaluate(self.net, self.scored, {}, cuda_graphs=self.cuda_graphs).loss
        )
        loss = loss if math.isfinite(loss) else math.inf
        better = not self.strategy.history or loss < self.strategy.best.loss
        self.strategy.tell(self.genotype_now, loss)
        if better:
            self.valid_perplexity = math.inf
            if math.isfinite(loss):
                score = evaluate(self.net, self.valid, {}, cuda_graphs=self.cuda_graphs)
                self.valid_perplexity = score.perplexity
        log_candidate(run, at.step, self.strategy)
        if self.pace is not None:
            self.pace.validated(self.pace.spent() - began)
            self.epochs = at.epoch + 1 if over else max(self.epochs, at.epoch + 2)
            self.epochs = min(self.epochs, self.strategy.most or self.epochs)
            self.strategy.total = self.epochs
        return {"best_perplexity": perplexity(self.strategy.best.loss, 1),
                "valid_perplexity": self.valid_perplexity}  # fmt: skip

    def genotype(self) -> Genotype:
        """The best cell.

        Raises:
            DivergedError: where the training of every cell was lost.
        """
        best = self.strategy.best
        if not math.isfinite(best.loss):
            raise DivergedError(
                f"the loss of all {len(self.strategy.history)} cells became non-finite",
                "lower the step size with --set weights.lr=... and start with --fresh",
            )
        return best.genotype

    def measured(self) -> dict[str, float]:
        """The validation result to report, by name."""
        return {"valid_perplexity": self.valid_perplexity}

    def outcome(self) -> dict[str, Any]:
        """What the result's digest covers beside the genotype."""
        return {"candidates": self.strategy.state()}

    def state(self) -> dict[str, Any]:
        return {
            "candidates": self.strategy.state(),
            "genotype_now": self.genotype_now.to_plain(),
            "weights": {name: p.detach() for name, p in self.net.named_parameters()},
            "optimizer": self.optimizer.state_dict(),
            "carry": self.hidden_state,
            "lost": self.diverged,
            "output_bias": self.config.output_bias,
            "scored": self.scored.length,
            "valid_perplexity": self.valid_perplexity,
            **({} if self.pace is None else {"pace": self.pace.state()}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            CheckpointError: where the cells so far were trained otherwise, by an earlier version.
        """
        if state.get("output_bias", "zeros") != self.config.output_bias:
            raise CheckpointError(
                "the cells that this search has tried were trained from an output bias of zeros, "
                "by an earlier version, whatever was set",
                "start anew with --fresh",
            )
        black = self.config.blackbox
        # Until 0.2 the targets did not follow `blackbox.windows`.
        kept = None if black.windows and not black.targets else self.scored.length
        if state.get("scored", kept) != self.scored.length:
            raise CheckpointError(
                "the cells that this search has tried were scored on another number of targets, by "
                "an earlier version",
                "start anew with --fresh",
            )
        self.strategy.restore(state["candidates"])
        self._begin(Genotype.from_plain(state["genotype_now"]))
        load_weights(self.net, state["weights"], "the saved state")
        restore_optimizer(self.optimizer, state["optimizer"])
        self.hidden_state = own_state(state["carry"], self.device, ALONE)
        self.diverged = state["lost"]
        self.valid_perplexity = state["valid_perplexity"]
        if self.pace is not None:
            self.pace.restore(state["pace"])
            total = self.pace.total()
            self.epochs = self.strategy.total = min(total, self.strategy.most or total)
