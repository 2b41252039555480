"""Training a cell to be reported: joins data, network, optimiser and run folder."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rnnnas.config.plain import to_plain
from rnnnas.config.presets import AnyTrain, with_budget
from rnnnas.config.text import TrainConfig
from rnnnas.data.corpus import AnyCorpus, Corpus, check_unchanged
from rnnnas.distributed import ALONE, Ranks
from rnnnas.draw import images as raster
from rnnnas.engine.budget import Course, Pace, Stopwatch, end_round, enter_plan, planned
from rnnnas.engine.computed_by import computed_by
from rnnnas.engine.device import exact_float32
from rnnnas.engine.job import Position, StepReport, ValidationDiverged
from rnnnas.engine.loop import drive, finished
from rnnnas.engine.metrics import Score, perplexity
from rnnnas.engine.pick_task import fitted, train_task
from rnnnas.engine.steps import evaluate, generator, own_state, weight_step, weights_of, whole_state
from rnnnas.engine.task import Net, arithmetic
from rnnnas.errors import CheckpointError, DivergedError, UsageError
from rnnnas.evaluation.run import evaluate_checkpoint
from rnnnas.nas.genotype import Genotype, cell_text
from rnnnas.optim import (
    Average,
    averaging_starts,
    restore_optimizer,
    scheduled,
    weight_optimizer,
)
from rnnnas.runs.checkpoint import content_digest, load_content
from rnnnas.runs.differences import differences
from rnnnas.runs.files import write_json
from rnnnas.runs.folder import AnyRun, open_run
from rnnnas.training.costs import training_costs
from rnnnas.training.published_curves import curve_for, published
from rnnnas.training.start import Start, check_start, read_start
from rnnnas.types import HiddenState

# What a test is held against, in a result.
BESIDE = (
    "unigram_perplexity", "bigram_perplexity", "bits_per_byte", "word_perplexity", "unknown_share",
)  # fmt: skip
GROWS = ("epochs", "seconds")  # settings by which a run is extended


class TrainJob:
    """The state of a training and its steps; see `job.Job`."""

    def __init__(
        self,
        config: AnyTrain,
        corpus: AnyCorpus,
        device: torch.device,
        ranks: Ranks = ALONE,
        pace: Pace | None = None,
        start: Start | None = None,
    ) -> None:
        self.ranks = ranks
        config = fitted(config, corpus)
        self.config = config
        self.corpus = corpus
        self.device = device
        self.pace = pace
        self.epochs = config.epochs + config.weights.finetune_epochs
        if pace is not None:
            self.epochs = pace.plan.rounds
        self.task = train_task(config, corpus, device, ranks)
        self.course = Course(self.task.lengths)
        draws = generator(config.seed, "weights", 0, torch.device("cpu"))
        self.net: Net = self.task.network(draws).to(device)
        if start is not None:
            self.net.load_state_dict(start.weights)
        self.start = start
        self.cuda_graphs = self.task.cuda_graphs()
        self.optimizer = weight_optimizer(self.net, config.weights)
        self.train, self.valid = self.task.train, self.task.valid
        self.hidden_state: HiddenState = None
        self.average: Average | None = None
        self.history: list[float] = []  # validation loss after each epoch
        self.best = math.inf  # the least `Score.regret` so far
        # What finetuning starts from; kept only while one is to come.
        self.best_weights: dict[str, Tensor] | None = None
        # The averaged weights' own statistics, and the steps that were averaged then.
        self._statistics: tuple[int, dict[str, Tensor]] = (0, {})

    @property
    def arithmetic(self) -> str:
        return arithmetic(self.net, self.device)

    def lengths(self, epoch: int) -> list[int]:
        if self.pace is None:
            return self.task.lengths(epoch)
        steps = self.pace.steps(epoch)
        return self.course.lengths(self.pace.first(epoch), steps)

    def begin_epoch(self, at: Position) -> None:
        if self.pace is not None:
            return  # a round goes on where the one before it ended
        self.hidden_state = None
        if at.epoch == self.config.epochs:
            self._begin_finetuning()

    def _begin_finetuning(self) -> None:
        """Go on from the best weights, with averaging from the first step."""
        if self.best_weights is not None:
            self.net.load_state_dict(self.best_weights)
            # Whoever comes here again, after a crash or a divergence, has restored them first.
            self.best_weights = None
        self.optimizer = weight_optimizer(self.net, self.config.weights)  # no old momentum
        self.average = Average(dict(self.net.named_parameters()))
        # Those of the former average may be of as many steps as this one will have.
        self._statistics = (0, {})

    def _learning_rate(self, at: Position) -> float:
        """The step size of a full window: the schedule spans the main epochs only."""
        config = self.config
        if self.pace is not None:
            return scheduled(config.weights, at.progress)
        if at.epoch >= config.epochs:
            return config.weights.lr
        if self.epochs == config.epochs:
            return scheduled(config.weights, at.progress)
        return scheduled(config.weights, min(1.0, at.progress * self.epochs / config.epochs))

    def step(self, at: Position, steps: int, lr_factor: float) -> StepReport:
        config = self.config
        lr = self.task.scaled(self._learning_rate(at), steps) * lr_factor
        place = at
        if self.pace is not None:
            place = self.course.place(at)
            if place.window == 0:
                self.hidden_state = None
        batch = self.task.batch(place, steps)
        draws = generator(config.seed, "weight-step", at.step, self.device)
        noise = self.task.noise(self.net, batch, draws, at.progress)
        loss, norm = weight_step(
            self.net, self.optimizer, batch, self.hidden_state, {}, noise, lr=lr,
            clip=config.weights.clip,
            ranks=self.ranks, cuda_graphs=self.cuda_graphs,
        )  # fmt: skip
        self.hidden_state = loss.hidden_state
        if self.average is not None:
            self.average.update(dict(self.net.named_parameters()))
        return StepReport(loss.value, loss.count, norm, lr, loss.correct)

    def weights(self) -> dict[str, Tensor]:
        """What is evaluated, saved and reported: the averaged weights once averaging is on."""
        average = self.average
        if average is None or not average.steps:
            return weights_of(self.net)
        if self._statistics[0] != average.steps:
            found = self.task.statistics(self.net, average.weights)
            self._statistics = (average.steps, found)
        return average.weights | self._statistics[1]

    def _score(self) -> Score:
        return evaluate(self.net, self.valid, {}, self.weights(), self.cuda_graphs)

    def end_epoch(self, at: Position, run: AnyRun) -> dict[str, float]:
        return end_round(self, at.epoch, lambda: self._validated(at, run))

    def _validated(self, at: Position, run: AnyRun) -> dict[str, float]:
        """What validation gives; the best weights so far are kept."""
        score = Score(**self.ranks.on_rank_zero(lambda: asdict(self._score())))
        if not math.isfinite(score.loss):
            raise ValidationDiverged
        averaged = self.average is not None
        if score.regret < self.best and math.isfinite(score.perplexity):
            self.best = score.regret
            run.save_best(self.checkpoint(at, score.measured[self.task.measure]))
            if self.pace is None and at.epoch < self.config.epochs < self.epochs:
                self.best_weights = {name: w.clone() for name, w in self.weights().items()}
        if not averaged and averaging_starts(self.history, score.loss, self.config.weights.nonmono):
            self.average = Average(dict(self.net.named_parameters()))
        self.history.append(score.loss)
        values = {f"valid_{name}": value for name, value in score.measured.items()}
        values |= {"averaged": float(averaged)}
        # A round of a budget is not an epoch.
        known = self.pace is None
        beside = published(self.corpus.sha256, self.config, at.epoch + 1) if known else None
        return values if beside is None else values | {"published_valid_perplexity": beside}

    def keep_start(self, run: AnyRun) -> None:
        """Take the weights that the training starts from as the best so far; every rank calls it.

        What does not improve on them reports them.
        """
        score = Score(**self.ranks.on_rank_zero(lambda: asdict(self._score())))
        if math.isfinite(score.perplexity):
            self.best = score.regret
            if self.pace is None and self.epochs > self.config.epochs:  # where finetuning begins
                self.best_weights = {n: w.clone() for n, w in self.weights().items()}
            start = Position(epoch=-1)
            run.save_best(self.checkpoint(start, score.measured[self.task.measure]))

    def enter(self, run: AnyRun, resumed: bool) -> None:
        """Before the first step: what the board shows from the start, and a look at best.pt."""
        if curve := curve_for(self.corpus.sha256, self.config):
            title = f"validation perplexity, published from epoch {curve.points[0][0]} on"
            run.chart(title, ["perplexity/valid", "perplexity/published_valid"])
        if resumed:
            if math.isfinite(self.best):
                self.check_best(run)
            return
        if curve:
            run.text("published", curve.source, 0)
        if self.config.genotype:
            genotype = Genotype.from_plain(self.config.genotype)
            run.image("cell", raster.cell_image(genotype), 0)
            run.text("genotype", cell_text(genotype), 0)

    def check_best(self, run: AnyRun) -> None:
        """Refuse a best.pt of another run, which would be reported as this one's.

        It holds no run's id, so that two runs of the same command write the same bytes: its
        settings and corpus are compared.

        Raises:
            CheckpointError: where it is missing, damaged or another's.
        """
        content = load_content(run.best_path)
        corpus, settings = content.get("corpus"), content.get("config")
        theirs = {
            **(settings if isinstance(settings, dict) else {}),
            "corpus_sha256": corpus.get("sha256") if isinstance(corpus, dict) else None,
        }
        ours = {**to_plain(self.config), "corpus_sha256": self.corpus.sha256}
        # An extended run may have found nothing better since.
        if changes := differences(theirs, ours, {*self.config.idle, *GROWS}):
            raise CheckpointError(
                f"{run.best_path} is not the best.pt of this run: {'; '.join(changes)}",
                "put this run's own best.pt back, or train anew with --fresh",
            )

    def check_result(self, run: AnyRun) -> None:
        """Hold the result of a finished run against its best.pt.

        Raises:
            CheckpointError: where best.pt is missing, damaged, another run's, or its digest or
                its validation figure is not the one that the result tells.
        """
        self.check_best(run)
        content, result = load_content(run.best_path), run.result or {}
        name = f"valid_{self.task.measure}"
        was, told = content.get("metrics", {}).get(name), result.get(name)
        same = (
            isinstance(was, float)
            and isinstance(told, float)
            and math.isclose(was, told, rel_tol=0.01)
        )
        if content_digest(content) != result.get("digest") or not same:
            raise CheckpointError(
                f"{run.folder / 'result.json'} does not tell of the best.pt beside it",
                "move result.json away, and the same command reports anew from the saved state",
            )

    def checkpoint(self, at: Position, measured: float) -> dict[str, Any]:
        """The content of best.pt: all that evaluation and sampling need, and nothing that differs
        between two runs of the same command. measured: perplexity or accuracy.
        """
        metrics = {"epoch": at.epoch + 1, "step": at.step, f"valid_{self.task.measure}": measured}
        return {
            "kind": self.task.kind,
            "config": to_plain(self.config),
            "genotype": self.config.genotype,
            **self.task.described(),
            "corpus": {"name": self.corpus.name, "sha256": self.corpus.sha256},
            "weights": self.weights(),
            "metrics": metrics,
        }

    def state(self) -> dict[str, Any]:
        average = self.average
        return {
            "weights": weights_of(self.net),
            "optimizer": self.optimizer.state_dict(),
            "average": None
            if average is None
            else {"steps": average.steps, "weights": average.weights},
            "carry": whole_state(self.hidden_state, self.ranks),
            "history": self.history,
            "best": self.best,
            "best_weights": self.best_weights,
            **({} if self.pace is None else {"pace": self.pace.state()}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["weights"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.average = None
        if state["average"] is not None:
            weights = {name: w.to(self.device) for name, w in state["average"]["weights"].items()}
            self.average = Average(weights)
            self.average.steps = state["average"]["steps"]
        self.hidden_state = own_state(state["carry"], self.device, self.ranks)
        self.history = list(state["history"])
        self.best = state["best"]
        if self.pace is not None:
            self.pace.restore(state["pace"])
            self.epochs = self.pace.total()
        best = state["best_weights"]
        self.best_weights, self._statistics = None, (0, {})
        if best is not None:
            self.best_weights = {name: w.to(self.device) for name, w in best.items()}


@exact_float32()
def train(
    config: AnyTrain,
    corpus: AnyCorpus,
    folder: Path,
    *,
    device: torch.device,
    fresh: bool = False,
    quiet: bool = False,
    ranks: Ranks = ALONE,
    minutes: float | None = None,
    stopwatch: Stopwatch | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train a cell, or go on with a training that was stopped; returns its result.

    A finished run that is given again with more epochs, or a larger budget, is extended.

    Args:
        minutes: a time budget, as 60 times as many `seconds` of `config`: it decides on the steps.
        stopwatch: of that budget, running since something that the budget is to cover.
        start: a best.pt, or the folder of a training: its weights are what this one begins with.

    With several ranks every one of them calls this, with its own device; the number may change
    when a training goes on.

    The result: run, checkpoint, parameters, seconds, valid_perplexity and test_perplexity of
    best.pt, of the same test tokens unigram_perplexity and bigram_perplexity, bits_per_byte,
    word_perplexity and unknown_share (of them that are `<unk>`); or of images valid_accuracy and
    test_accuracy in percent, arithmetic (what its
    products were computed in, and where), digest (its SHA-256).

    Raises:
        RnnnasError: as `loop.drive` and `Run.open` say.
    """
    stopwatch = stopwatch or Stopwatch()
    if minutes is not None:
        config = with_budget(config, minutes)
    check_unchanged(corpus)
    begins = None
    if start is not None:
        if not config.starts_from_weights:
            raise UsageError("a training on images starts from scratch", "leave out --from")
        begins = read_start(start)
        check_start(begins, cast(TrainConfig, config), cast(Corpus, corpus))
        config = replace(cast(TrainConfig, config), start=begins.digest)
    elif getattr(config, "start", ""):
        raise ranks.rank_zero_error(
            UsageError(
                f"start = {cast(TrainConfig, config).start!r} says only which weights the training "
                "goes on from",
                "give them: --from with the best.pt or run folder of that digest",
            )
        )
    config = fitted(config, corpus)
    plain = {**to_plain(config), "corpus_sha256": corpus.sha256}
    plan = None
    if config.seconds:
        plan = planned(
            config.seconds, folder, stopwatch, fresh=fresh, ranks=ranks,
            measure=lambda: training_costs(TrainJob(config, corpus, device, ranks), corpus),
        )  # fmt: skip
    pace = None if plan is None else Pace(plan, stopwatch, ranks)
    # First: what it refuses leaves no run folder behind.
    job = TrainJob(config, corpus, device, ranks, pace, begins)
    options: dict[str, Any] = {
        "fresh": fresh, "save_seconds": config.save_seconds, "idle": config.idle,
        "grows": () if config.weights.finetune_epochs else GROWS,
    }  # fmt: skip
    with open_run(ranks, folder, "train", plain, **options) as run:
        if run.result is not None:
            ranks.on_rank_zero(lambda: job.check_result(run))
            return finished(run, ranks, quiet=quiet)
        if plan is not None:
            enter_plan(plan, run.folder, job.course, quiet=quiet, ranks=ranks)
        if config.genotype:
            ranks.on_rank_zero(lambda: write_json(run.folder / "genotype.json", config.genotype))

        def ready(resumed: bool) -> None:
            ranks.on_rank_zero(lambda: job.enter(run, resumed))
            if begins is not None and not resumed:
                job.keep_start(run)

        title = f"train on {config.corpus}"
        seconds = drive(job, run, kind="train", title=title, quiet=quiet, ready=ready, ranks=ranks)
        if not math.isfinite(job.best):
            raise ranks.rank_zero_error(
                DivergedError(
                    "the validation loss was never finite: there is no model to report",
                    "lower the step size with --set weights.lr=... and start with --fresh",
                )
            )
        ranks.on_rank_zero(lambda: job.check_best(run))

        def evaluated(split: str) -> dict[str, Any]:
            return evaluate_checkpoint(run.best_path, split, corpus=corpus, device=device)

        measure = job.task.measure
        test = ranks.on_rank_zero(partial(evaluated, "test"))
        if pace is None:
            valid = ranks.on_rank_zero(partial(evaluated, "valid"))[measure]
        else:  # the same pass over the same weights, which a budget need not pay for twice
            valid = perplexity(job.best, 1)
        scores = {f"valid_{measure}": valid, f"test_{measure}": test[measure]}
        beside = {key: test[key] for key in BESIDE if key in test}
        result = {
            "run": str(run.folder),
            "checkpoint": str(run.best_path),
            "parameters": sum(p.numel() for p in job.net.parameters()),
            "seconds": round(seconds, 3),
            **scores,
            **beside,
            **({} if pace is None else pace.told()),
            "arithmetic": job.arithmetic,
            "digest": test["digest"],
        }
        genotype = config.genotype and Genotype.from_plain(config.genotype)
        run.hparams({**plain, **({"cell": cell_text(genotype)} if genotype else {})}, scores)
        result = ranks.broadcast(result)  # the seconds differ
        run.finish(result, computed_by(job, ranks.size))
        return result
