"""Training a cell to be reported: joins data, network, optimiser and run folder."""

from __future__ import annotations

import math
import random
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnnas import config as configs
from rnnnas import raster
from rnnnas.config import TrainConfig
from rnnnas.data.corpus import Corpus, check_unchanged
from rnnnas.data.streams import Streams, window_lengths
from rnnnas.errors import CheckpointError, DivergedError
from rnnnas.evaluate import evaluate_checkpoint
from rnnnas.files import load_content, write_json
from rnnnas.lm.model import RecurrentLM
from rnnnas.loop import Position, StepReport, drive, finished
from rnnnas.nas.genotype import Genotype
from rnnnas.optim import (
    Average,
    averaging_starts,
    restore_optimizer,
    scheduled,
    weight_optimizer,
)
from rnnnas.programs import programs_for
from rnnnas.published import curve_for, published
from rnnnas.ranks import ALONE, Ranks
from rnnnas.run import differences
from rnnnas.shared import AnyRun, open_run
from rnnnas.steps import Score, evaluate, generator, own_carry, weight_step, whole_carry
from rnnnas.types import Carry


class TrainJob:
    """The state of a training and its steps; see `loop.Job`."""

    def __init__(
        self, config: TrainConfig, corpus: Corpus, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        ranks.check(config.windows.streams)
        self.ranks = ranks
        self.config = config
        self.corpus = corpus
        self.device = device
        self.epochs = config.epochs + config.weights.finetune_epochs
        self.net = RecurrentLM(
            config.model,
            corpus.vocab.size,
            config.network,
            noise=config.noise,
            penalty=config.penalty,
            generator=generator(config.seed, "weights", 0, torch.device("cpu")),
            ranks=ranks,
        ).to(device)
        self.programs = programs_for(config.capture, device)
        self.optimizer = weight_optimizer(self.net, config.weights)
        streams = config.windows.streams
        self.train = Streams(corpus.splits["train"], streams, device, part=ranks.part(streams))
        self.valid = Streams(corpus.splits["valid"], config.valid_streams, device, "valid_streams")
        # Not used before the end, but a text too short for it is better refused now.
        Streams(corpus.splits["test"], config.test_streams, device, "test_streams")
        self.carry: Carry = None
        self.average: Average | None = None
        self.history: list[float] = []  # validation loss after each epoch
        self.best = math.inf
        # What finetuning starts from; kept only while one is to come.
        self.best_weights: dict[str, Tensor] | None = None

    def lengths(self, epoch: int) -> list[int]:
        rng = random.Random(f"{self.config.seed}/windows/{epoch}")
        return window_lengths(self.config.windows, self.train.length, rng)

    def begin_epoch(self, at: Position) -> None:
        self.carry = None
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

    def _learning_rate(self, at: Position) -> float:
        """The step size of a full window: the schedule spans the main epochs only."""
        config = self.config
        if at.epoch >= config.epochs:
            return config.weights.lr
        if self.epochs == config.epochs:
            return scheduled(config.weights, at.progress)
        return scheduled(config.weights, min(1.0, at.progress * self.epochs / config.epochs))

    def step(self, at: Position, steps: int, lr_factor: float) -> StepReport:
        config = self.config
        lr = self._learning_rate(at) * steps / config.windows.bptt * lr_factor
        batch = self.train.window(at.start, steps)
        noise = self.net.noise(batch, generator(config.seed, "weight-step", at.step, self.device))
        loss, norm = weight_step(
            self.net, self.optimizer, batch, self.carry, {}, noise, lr=lr, clip=config.weights.clip,
            ranks=self.ranks, programs=self.programs,
        )  # fmt: skip
        self.carry = loss.carry
        if self.average is not None:
            self.average.update(dict(self.net.named_parameters()))
        return StepReport(loss.value, loss.count, norm, lr)

    def weights(self) -> dict[str, Tensor]:
        """What is evaluated, saved and reported: the averaged weights once averaging is on."""
        if self.average is not None and self.average.steps:
            return self.average.weights
        return {name: p.detach() for name, p in self.net.named_parameters()}

    def end_epoch(self, at: Position, run: AnyRun) -> dict[str, float]:
        score = Score(
            **self.ranks.led(lambda: asdict(evaluate(self.net, self.valid, {}, self.weights())))
        )
        averaged = self.average is not None
        if score.loss < self.best and math.isfinite(score.perplexity):
            self.best = score.loss
            run.save_best(self.checkpoint(at, score.perplexity))
            if at.epoch < self.config.epochs < self.epochs:
                self.best_weights = {name: w.clone() for name, w in self.weights().items()}
        if not averaged and averaging_starts(self.history, score.loss, self.config.weights.nonmono):
            self.average = Average(dict(self.net.named_parameters()))
        self.history.append(score.loss)
        values = {"valid_perplexity": score.perplexity, "averaged": float(averaged)}
        beside = published(self.corpus.sha256, self.config, at.epoch + 1)
        return values if beside is None else values | {"published_valid_perplexity": beside}

    def enter(self, run: AnyRun, resumed: bool) -> None:
        """Before the first step: what the board shows from the start, and a look at best.pt."""
        if curve := curve_for(self.corpus.sha256, self.config):
            title = f"validation perplexity, published from epoch {curve.points[0][0]} on"
            run.chart(title, ["epoch/valid_perplexity", "epoch/published_valid_perplexity"])
        if resumed:
            if math.isfinite(self.best):
                self.check_best(run)
            return
        if curve:
            run.text("published", curve.source, 0)
        if self.config.genotype:
            genotype = Genotype.from_plain(self.config.genotype)
            run.image("cell", raster.cell_image(genotype), 0)
            run.text("genotype", genotype.to_text(), 0)

    def check_best(self, run: AnyRun) -> None:
        """Refuse a best.pt of another run, which would be reported as this one's.

        It holds no run's id, so that two runs of the same command write the same bytes: its
        settings and corpus are compared.

        Raises:
            CheckpointError: where it is missing, damaged or another's.
        """
        content = load_content(run.best_path)
        corpus, config = content.get("corpus"), content.get("config")
        theirs = {
            **(config if isinstance(config, dict) else {}),
            "corpus_sha256": corpus.get("sha256") if isinstance(corpus, dict) else None,
        }
        ours = {**configs.to_plain(self.config), "corpus_sha256": self.corpus.sha256}
        if changes := differences(theirs, ours, self.config.idle):
            raise CheckpointError(
                f"{run.best_path} is not the best.pt of this run: {'; '.join(changes)}",
                "put this run's own best.pt back, or train anew with --fresh",
            )

    def checkpoint(self, at: Position, perplexity: float) -> dict[str, Any]:
        """The content of best.pt: all that evaluation and sampling need, and nothing that differs
        between two runs of the same command.
        """
        return {
            "kind": "recurrent",
            "config": configs.to_plain(self.config),
            "genotype": self.config.genotype,
            "vocabulary": self.corpus.vocab.to_plain(),
            "corpus": {"name": self.corpus.name, "sha256": self.corpus.sha256},
            "weights": self.weights(),
            "metrics": {"epoch": at.epoch + 1, "step": at.step, "valid_perplexity": perplexity},
        }

    def state(self) -> dict[str, Any]:
        average = self.average
        return {
            "weights": {name: p.detach() for name, p in self.net.named_parameters()},
            "optimizer": self.optimizer.state_dict(),
            "average": None
            if average is None
            else {"steps": average.steps, "weights": average.weights},
            "carry": whole_carry(self.carry, self.ranks),
            "history": self.history,
            "best": self.best,
            "best_weights": self.best_weights,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["weights"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.average = None
        if state["average"] is not None:
            weights = {name: w.to(self.device) for name, w in state["average"]["weights"].items()}
            self.average = Average(weights)
            self.average.steps = state["average"]["steps"]
        self.carry = own_carry(state["carry"], self.device, self.ranks)
        self.history = list(state["history"])
        self.best = state["best"]
        best = state["best_weights"]
        self.best_weights = None
        if best is not None:
            self.best_weights = {name: w.to(self.device) for name, w in best.items()}


def train(
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    *,
    device: torch.device,
    fresh: bool = False,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train a cell, or go on with a training that was stopped; returns its result.

    With several ranks every one of them calls this, with its own device; the number may change
    when a training goes on.

    The result: run, checkpoint, parameters, seconds, valid_perplexity and test_perplexity of
    best.pt, digest (its SHA-256).

    Raises:
        RnnnasError: as `loop.drive` and `Run.open` say.
    """
    check_unchanged(corpus)
    plain = {**configs.to_plain(config), "corpus_sha256": corpus.sha256}
    # First: what it refuses leaves no run folder behind.
    job = TrainJob(config, corpus, device, ranks)
    options: dict[str, Any] = {
        "fresh": fresh, "save_seconds": config.save_seconds, "idle": config.idle,
    }  # fmt: skip
    with open_run(ranks, folder, "train", plain, **options) as run:
        if run.result is not None:
            return finished(run, ranks)
        if config.genotype:
            ranks.led(lambda: write_json(run.folder / "genotype.json", config.genotype))
        seconds = drive(
            job, run, kind="train", title=f"train on {config.corpus}", quiet=quiet, ranks=ranks,
            ready=lambda resumed: ranks.led(lambda: job.enter(run, resumed)),
        )  # fmt: skip
        if not math.isfinite(job.best):
            raise ranks.hushed(
                DivergedError(
                    "the validation perplexity was never finite: there is no model to report",
                    "lower the step size with --set weights.lr=... and start with --fresh",
                )
            )
        ranks.led(lambda: job.check_best(run))

        def evaluated(split: str) -> dict[str, Any]:
            return evaluate_checkpoint(run.best_path, split, corpus=corpus, device=device)

        valid, test = (ranks.led(partial(evaluated, split)) for split in ("valid", "test"))
        result = {
            "run": str(run.folder),
            "checkpoint": str(run.best_path),
            "parameters": sum(p.numel() for p in job.net.parameters()),
            "seconds": round(seconds, 3),
            "valid_perplexity": valid["perplexity"],
            "test_perplexity": test["perplexity"],
            "digest": valid["digest"],
        }
        scores = {name: result[name] for name in ("valid_perplexity", "test_perplexity")}
        run.hparams(plain, scores)
        result = ranks.tell(result)  # the seconds differ
        run.finish(result)
        return result
