"""One cell's training in stretches: it stops anywhere, is kept in a file, and goes on exactly."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from rnnnas.config.plain import to_plain
from rnnnas.config.text import WITHOUT_RESULT, SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.data.text_streams import Streams, window_lengths
from rnnnas.distributed import ALONE
from rnnnas.engine.cuda_graphs import CudaGraphs, cuda_graphs_for
from rnnnas.engine.metrics import perplexity
from rnnnas.engine.steps import (
    evaluate,
    generator,
    load_weights,
    own_state,
    state_of,
    weight_step,
)
from rnnnas.engine.task import products_in
from rnnnas.engine.text_task import begin_output
from rnnnas.errors import CheckpointError
from rnnnas.lm.model import RecurrentLM, cell_path, low_precision
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.halving import Outcome, Trial
from rnnnas.optim import restore_optimizer, scheduled, weight_optimizer
from rnnnas.runs.checkpoint import load_content, save_content
from rnnnas.runs.differences import differences
from rnnnas.types import HiddenState

DECAY = 0.98  # of the averaged weights
HELD = 0.1  # targets that a cell is scored on, of those that its full training sees
_FRESH = 1_000_003  # between the seeds of two draws of weights, windows and masks


@final
class Course:
    """What all cells of a race share: the texts, and by draw the windows, masks and first weights.

    Cells are scored on the last `alphas.held_out` share of the training text, whatever
    `alphas.text` says: the validation text stays unseen.

    Args:
        device: trainings on it; a cell is scored there too.
    """

    def __init__(self, config: SearchConfig, corpus: Corpus, device: torch.device) -> None:
        self.config, self.device = config, device
        self.corpus = corpus
        tokens, streams = corpus.splits["train"], config.windows.streams
        kept = int(len(tokens) * (1 - config.alphas.held_out))
        self.train = Streams(tokens[:kept], streams, device)
        self.steps = config.blackbox.windows or config.epochs * len(self._pass(0, 0))
        self._windows: dict[int, list[tuple[int, int]]] = {}
        trained = sum(steps for _, steps in self.windows(0)) * streams
        least = config.windows.bptt * streams
        targets = config.blackbox.targets or max(int(HELD * trained), least)
        self.held_out = Streams(tokens[kept:][: targets + streams], streams, device)
        self.valid = Streams(corpus.splits["valid"], config.valid_streams, device, "valid_streams")

    @property
    def arithmetic(self) -> str:
        """What the products of trainings are computed in, and where."""
        return products_in(low_precision(self.config.model, self.device), self.device)

    def seed(self, draw: int) -> int:
        """What every random number of the trainings of a draw depends on."""
        return self.config.seed + _FRESH * draw

    def _pass(self, draw: int, number: int) -> list[int]:
        """T of the windows of one pass over the text."""
        rng = random.Random(f"{self.seed(draw)}/windows/{number}")
        return window_lengths(self.config.windows, self.train.length, rng)

    def windows(self, draw: int) -> list[tuple[int, int]]:
        """(start, T) of the windows of a full training, in order; the text may come again."""
        if draw not in self._windows:
            windows: list[tuple[int, int]] = []
            number = 0
            while len(windows) < self.steps:
                start = 0
                for steps in self._pass(draw, number):
                    windows.append((start, steps))
                    start += steps
                number += 1
            self._windows[draw] = windows[: self.steps]
        return self._windows[draw]

    def network(self, genotype: Genotype, draw: int) -> RecurrentLM:
        """The network of a cell with its first weights."""
        config = self.config
        net = RecurrentLM(
            # All units go through a cell that is trained alone.
            replace(config.model, nodes=len(genotype.recurrent.nodes), partial=1),
            self.corpus.vocab.size,
            genotype.recurrent,
            noise=config.noise,
            penalty=config.penalty,
            generator=generator(self.seed(draw), "weights", 0, torch.device("cpu")),
        )
        begin_output(net, config, self.corpus)
        return net.to(self.device)


@final
class CellTraining:
    """A cell's training on a course, from its beginning or from where its file says.

    nats: the train loss of every step so far. heldout: loss on held-out text by the step at which
    it was measured. A step whose loss or gradient is not finite ends the training: it has diverged.

    Args:
        path: of its file; what is there is taken up. None: it is not kept.

    Raises:
        CheckpointError: where the file is damaged, or that of another training.
    """

    def __init__(self, course: Course, genotype: Genotype, draw: int, path: Path | None) -> None:
        self.course, self.genotype, self.draw, self.path = course, genotype, draw, path
        self.nats: list[float] = []
        self.heldout: dict[int, float] = {}
        self.diverged = False
        self.hidden_state: HiddenState = None
        self.average: dict[str, Tensor] = {}
        self._net: RecurrentLM | None = None
        self.cuda_graphs: CudaGraphs | None = None
        self._saved: dict[str, Any] | None = None  # tensors of the file, until they are needed
        if path is not None and path.exists():
            self._restore(load_content(path))

    @property
    def step(self) -> int:
        """Weight steps that are done."""
        return len(self.nats)

    @property
    def net(self) -> RecurrentLM:
        """The network, made when it is asked for: a training that only is read off needs none."""
        if self._net is None:
            self._net = self.course.network(self.genotype, self.draw)
            config = self.course.config
            self.cuda_graphs = cuda_graphs_for(
                config.capture,
                self.course.device,
                path=cell_path(config.model, self.genotype.recurrent),
            )
            self.optimizer = weight_optimizer(self._net, config.weights)
            if self._saved is not None:
                load_weights(self._net, self._saved["weights"], self.path)
                restore_optimizer(self.optimizer, self._saved["optimizer"])
                self._saved = None
        return self._net

    def advance(self) -> None:
        """One weight step on the next window."""
        course, config, net = self.course, self.course.config, self.net
        number = self.step
        start, steps = course.windows(self.draw)[number]
        lr = scheduled(config.weights, number / course.steps) * steps / config.windows.bptt
        batch = course.train.window(start, steps)
        draws = generator(course.seed(self.draw), "weight-step", number, course.device)
        hidden_state = self.hidden_state if start else None
        loss, norm = weight_step(
            net, self.optimizer, batch, hidden_state, {}, net.noise(batch, draws),
            lr=lr, clip=config.weights.clip, cuda_graphs=self.cuda_graphs,
        )  # fmt: skip
        value = float(loss.value)
        if not math.isfinite(perplexity(value, 1) + float(norm)):
            self.diverged = True
            self.nats.append(math.inf)
            return
        self.nats.append(value)
        self.hidden_state = loss.hidden_state
        own = {name: p.detach() for name, p in net.named_parameters()}
        if not self.average:
            self.average = {name: p.clone() for name, p in own.items()}
            return
        # A uniform average until the decay sees as many steps: no trace of the first weights.
        share = max(1.0 - DECAY, 1.0 / (number + 1))
        torch._foreach_lerp_(list(self.average.values()), list(own.values()), share)

    def stretch(self, trial: Trial, save_seconds: float) -> Generator[int, None, None]:
        """Train to the end of a trial and score the cell there; yields the number of steps done
        before every step. Left early, it saves where it is.

        Args:
            save_seconds: how often the file is written on the way; it is at the end, too.
        """
        if self.done(trial):
            return
        saved = time.monotonic()
        try:
            while self.step < trial.stop and not self.diverged:
                yield self.step
                self.advance()
                if time.monotonic() - saved >= save_seconds:
                    self.save()
                    saved = time.monotonic()
        except GeneratorExit:
            self.save()
            raise
        self._score(trial)
        self.save()

    def _score(self, trial: Trial) -> None:
        if trial.heldout and not self.diverged and trial.stop not in self.heldout:
            held_out, average = self.course.held_out, self.average
            score = evaluate(self.net, held_out, {}, average, cuda_graphs=self.cuda_graphs)
            self.heldout[trial.stop] = score.loss

    def done(self, trial: Trial) -> bool:
        """Whether all that a trial asks for is known already."""
        reached = self.diverged or self.step >= trial.stop
        return reached and (not trial.heldout or self.diverged or trial.stop in self.heldout)

    def outcome(self, trial: Trial) -> Outcome:
        """What a trial gave that is `done`."""
        half = self.nats[trial.start + (trial.stop - trial.start) // 2 : trial.stop]
        if self.diverged and self.step <= trial.stop:
            return Outcome(math.inf, math.inf if trial.heldout else None)
        heldout = self.heldout[trial.stop] if trial.heldout else None
        return Outcome(math.fsum(half) / len(half), heldout)

    def validate(self) -> float:
        """The validation perplexity of the averaged weights.

        Raises:
            CheckpointError: where the training's file is gone, so that they would be untrained.
        """
        if self.step < self.course.steps:
            raise CheckpointError(
                f"{self.path} is missing, or of a training that is not over",
                "put the folder of the race's trainings back, or start anew with --fresh",
            )
        net = self.net
        score = evaluate(net, self.course.valid, {}, self.average, cuda_graphs=self.cuda_graphs)
        return score.perplexity

    def _identity(self) -> dict[str, Any]:
        """What its result depends on, as plain values."""
        course = self.course
        plain = to_plain(course.config)
        for key in (*WITHOUT_RESULT, "blackbox"):
            del plain[key]
        return {
            "config": plain,
            "steps": course.steps,
            "corpus_sha256": course.corpus.sha256,
            "genotype": self.genotype.to_plain(),
            "draw": self.draw,
        }

    def save(self) -> None:
        """Write the file. Of a training that is over it holds the averaged weights alone.

        Raises:
            DiskError: where it cannot be written; the older one stays.
        """
        if self.path is None:
            return
        state: dict[str, Any] = {
            "identity": self._identity(),
            "nats": self.nats,
            "heldout": [[step, loss] for step, loss in self.heldout.items()],
            "diverged": self.diverged,
            "average": {} if self.diverged else self.average,
            "training": None,
        }
        if not self.diverged and self.step < self.course.steps:
            state["training"] = {
                "weights": {name: p.detach() for name, p in self.net.named_parameters()},
                "optimizer": self.optimizer.state_dict(),
                "carry": state_of(self.hidden_state, torch.clone),
            }
        save_content(self.path, state)

    def _restore(self, state: dict[str, Any]) -> None:
        own, there = self._identity(), dict(state.get("identity") or {})
        changed = differences(there.pop("config", {}), own.pop("config"), self.course.config.idle)
        if changed or there != own:
            raise CheckpointError(
                f"{self.path} is not of this race" + (f": {'; '.join(changed)}" if changed else ""),
                "start anew with --fresh",
            )
        self.nats = list(state["nats"])
        self.heldout = {int(step): float(loss) for step, loss in state["heldout"]}
        self.diverged = state["diverged"]
        device = self.course.device
        self.average = {name: w.to(device) for name, w in state["average"].items()}
        if state["training"] is not None:
            self._saved = state["training"]
            self.hidden_state = own_state(state["training"]["carry"], device, ALONE)
