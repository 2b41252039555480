"""A search: weights and alphas in turn, then the derived cell. Joins data, network and run."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnnas import config as configs
from rnnnas.config import SearchConfig
from rnnnas.data.corpus import Corpus, check_unchanged
from rnnnas.data.streams import Streams, window_lengths
from rnnnas.files import content_digest, write_json
from rnnnas.lm.model import RecurrentLM
from rnnnas.loop import Position, StepReport, drive, finished
from rnnnas.nas.architect import Architect
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.methods import derive
from rnnnas.nas.relax.base import Mixtures
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.optim import alpha_optimizer, inner_step, scheduled, weight_optimizer
from rnnnas.run import Run
from rnnnas.stages import progress_within, stage_at, strongest
from rnnnas.steps import carry_to, evaluate, generator, weight_step
from rnnnas.types import Batch, Carry


class SearchJob:
    """The state of a search and its steps; see `loop.Job`."""

    def __init__(self, config: SearchConfig, corpus: Corpus, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.epochs = config.epochs
        self.vocabulary = corpus.vocab.size
        self.relaxation = config.relaxation
        self.plan = config.plan
        self._build(0, recurrent_space(config.model.nodes))
        streams = config.windows.streams
        train, alpha = corpus.splits["train"], corpus.splits["valid"]
        # A single-level method has no use for a text of the alphas' own.
        if config.alphas.text == "held-out" and self.relaxation.level == "valid":
            kept = int(len(train) * (1 - config.alphas.held_out))
            train, alpha = train[:kept], train[kept:]
        self.train = Streams(train, streams, device)
        self.alpha = Streams(alpha, streams, device)
        self.valid = Streams(corpus.splits["valid"], config.valid_streams, device, "valid_streams")
        self.drawn: Genotype | None = None  # the last cell that was drawn for TensorBoard

    def _build(self, stage: int, space: CellSpace) -> None:
        """A stage's network, alphas and optimisers, all fresh; those before it are let go."""
        config, device, cpu = self.config, self.device, torch.device("cpu")
        self.stage = stage
        self.net = RecurrentLM(
            replace(config.model, hidden=self.plan[stage].hidden),
            self.vocabulary,
            space,
            noise=replace(config.noise, dropouth=self.plan[stage].dropouth),
            penalty=config.penalty,
            generator=generator(config.seed, "weights", stage, cpu),
        ).to(device)
        fresh = self.relaxation.init(self.net.space, generator(config.seed, "alphas", stage, cpu))
        self.alphas = {name: a.detach().to(device).requires_grad_() for name, a in fresh.items()}
        self.weight_optimizer = weight_optimizer(self.net, config.weights)
        self.alpha_optimizer = alpha_optimizer(self.alphas, config.alphas)
        # First order needs no more precision than the weight step; the others do.
        net = self.net if config.order == "first" else self.net.in_float32()
        self.architect = Architect(
            net, self.alphas, self.relaxation, self.alpha_optimizer, config.order
        )
        self.train_carry: Carry = None
        self.alpha_carry: Carry = None
        self.alpha_start = 0

    def _enter(self, stage: int) -> None:
        """Go on to the next stage, on what the scores leave of the space."""
        space = self.net.space[RECURRENT]
        with torch.no_grad():
            scores = self.relaxation.scores(self.alphas, self.net.space)[RECURRENT]
        self._build(stage, strongest(space, scores.tolist(), self.plan[stage]))

    def _progress(self, at: Position) -> float:
        """The share of the present stage that is done."""
        return progress_within(at.progress, self.stage, len(self.plan))

    def lengths(self, epoch: int) -> list[int]:
        rng = random.Random(f"{self.config.seed}/windows/{epoch}")
        return window_lengths(self.config.windows, self.train.length, rng)

    def begin_epoch(self, at: Position) -> None:
        self.train_carry = self.alpha_carry = None
        self.alpha_start = 0

    def step(self, at: Position, steps: int, lr_factor: float) -> StepReport:
        """An alpha step on the next alpha window, then a weight step on the training window."""
        config = self.config
        # Not only at the start of an epoch: a search may have fewer epochs than stages.
        while self.stage < stage_at(at.progress, len(self.plan)):
            self._enter(self.stage + 1)
        progress = self._progress(at)
        lr = scheduled(config.weights, progress) * steps / config.windows.bptt * lr_factor
        batch = self.train.window(at.start, steps)
        if progress >= config.alphas.warmup:
            self.weight_optimizer.param_groups[0]["lr"] = lr
            single = self.relaxation.level == "train"
            loss = self.architect.step(
                train=(batch, self.train_carry),
                valid=(batch, self.train_carry) if single else self._alpha_window(steps),
                inner=inner_step(self.net, self.weight_optimizer, config.weights.clip),
                progress=progress,
                generator=generator(config.seed, "alpha-step", at.step, self.device),
            )
            self.alpha_carry = loss.carry
            if not bool(torch.isfinite(loss.value)):
                return StepReport(float("nan"), 0, 0.0, lr)
        draws = generator(config.seed, "weight-step", at.step, self.device)
        with torch.no_grad():
            mixtures = self.relaxation.mix(self.alphas, self.net.space, progress, draws)
        noise = self.net.noise(batch, draws)

        def slopes(tried: Mixtures) -> tuple[Tensor, dict[str, Tensor]]:
            leaves = {n: m.weights.detach().requires_grad_() for n, m in tried.items()}
            cut = {n: m._replace(weights=leaves[n]) for n, m in tried.items()}
            value = self.net(batch, self.train_carry, cut, noise).objective
            grads = torch.autograd.grad(value, list(leaves.values()))
            return value.detach(), dict(zip(leaves, grads, strict=True))

        spaces = self.net.space
        mixtures = self.relaxation.perturb(mixtures, spaces, progress, draws, slopes)
        loss, norm = weight_step(
            self.net, self.weight_optimizer, batch, self.train_carry, mixtures, noise,
            lr=lr, clip=config.weights.clip,
        )  # fmt: skip
        self.train_carry = loss.carry
        return StepReport(float(loss.value), loss.count, norm, lr)

    def _alpha_window(self, steps: int) -> tuple[Batch, Carry]:
        """The next window of the alphas' text, and the state that enters it."""
        steps = min(steps, self.alpha.length - 1)
        if self.alpha_start + steps > self.alpha.length - 1:
            # Back to the start of the text: the state of its end does not belong there.
            self.alpha_start, self.alpha_carry = 0, None
        batch = self.alpha.window(self.alpha_start, steps)
        self.alpha_start += steps
        return batch, self.alpha_carry

    def end_epoch(self, at: Position, run: Run) -> dict[str, float]:
        draws = generator(self.config.seed, "valid", at.epoch, self.device)
        with torch.no_grad():
            mixtures = self.relaxation.mix(self.alphas, self.net.space, self._progress(at), draws)
            scores = self.relaxation.scores(self.alphas, self.net.space)[RECURRENT]
        score = evaluate(self.net, self.valid, mixtures)
        self.valid_perplexity = score.perplexity
        entropy = float(-(scores * scores.clamp_min(1e-12).log()).sum(-1).mean())
        genotype = self.genotype()
        _draw(run, at.step, self.net.space[RECURRENT], scores, genotype, genotype != self.drawn)
        self.drawn = genotype
        values = {"valid_perplexity": score.perplexity, "alpha_entropy": entropy}
        return values if len(self.plan) == 1 else {**values, "stage": self.stage + 1.0}

    def genotype(self) -> Genotype:
        """The cell that the alphas stand for now."""
        return derive(self.relaxation, self.alphas, self.net.space)

    valid_perplexity: float = float("nan")

    def state(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "allowed": [list(row) for row in self.net.space[RECURRENT].allowed],
            "weights": {name: p.detach() for name, p in self.net.named_parameters()},
            "alphas": {name: a.detach() for name, a in self.alphas.items()},
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "train_carry": self.train_carry,
            "alpha_carry": self.alpha_carry,
            "alpha_start": self.alpha_start,
            "valid_perplexity": self.valid_perplexity,
            "drawn": None if self.drawn is None else self.drawn.to_plain(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["stage"] != self.stage:
            whole = recurrent_space(self.config.model.nodes)
            self._build(state["stage"], whole.prune(state["allowed"]))
        self.net.load_state_dict(state["weights"])
        with torch.no_grad():
            for name, alpha in self.alphas.items():
                alpha.copy_(state["alphas"][name])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.train_carry = carry_to(state["train_carry"], self.device)
        self.alpha_carry = carry_to(state["alpha_carry"], self.device)
        self.alpha_start = state["alpha_start"]
        self.valid_perplexity = state["valid_perplexity"]
        drawn = state["drawn"]
        self.drawn = None if drawn is None else Genotype.from_plain(drawn)


def _draw(
    run: Run, step: int, space: Any, scores: Tensor, genotype: Genotype, changed: bool
) -> None:
    from rnnnas import raster

    rows = [f"s{source} > s{target}" for source, target in space.edges]
    run.image("alphas", raster.table_image(scores.tolist(), rows, space.ops, "alphas"), step)
    if changed:
        run.image("cell", raster.cell_image(genotype), step)


def search(
    config: SearchConfig,
    corpus: Corpus,
    folder: Path,
    *,
    device: torch.device,
    fresh: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Search a cell, or go on with a search that was stopped; returns its result.

    The result: run, genotype, seconds, valid_perplexity (of the network under search), digest
    (SHA-256 of genotype, alphas and weights).

    Raises:
        RnnnasError: as `loop.drive` and `Run.open` say.
    """
    check_unchanged(corpus)
    plain = {**configs.to_plain(config), "corpus_sha256": corpus.sha256}
    job = SearchJob(config, corpus, device)  # first: what it refuses leaves no run folder behind
    with Run.open(folder, "search", plain, fresh=fresh, save_seconds=config.save_seconds) as run:
        if run.result is not None:
            return finished(run)
        title = f"search {config.method} on {config.corpus}"
        seconds = drive(job, run, kind="search", title=title, quiet=quiet)
        genotype = job.genotype()
        state = job.state()
        digest = content_digest(
            {
                "genotype": genotype.to_plain(),
                "alphas": state["alphas"],
                "weights": state["weights"],
            }
        )
        write_json(run.folder / "genotype.json", genotype.to_plain())
        result = {
            "run": str(run.folder),
            "genotype": genotype.to_plain(),
            "cell": genotype.to_text(),
            "seconds": round(seconds, 3),
            "valid_perplexity": job.valid_perplexity,
            "digest": digest,
        }
        run.hparams(plain, {"valid_perplexity": job.valid_perplexity})
        run.finish(result)
        return result
