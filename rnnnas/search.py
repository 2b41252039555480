"""A search: weights and alphas in turn, then the derived cell. Joins data, network and run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnnas import config as configs
from rnnnas.blackbox import CandidateJob
from rnnnas.config import SearchConfig
from rnnnas.data.corpus import Corpus, check_unchanged
from rnnnas.data.streams import Streams, window_lengths
from rnnnas.derive import (
    PolicyCells,
    mixtures_of,
    scoring_streams,
    search_texts,
    strategy_of,
    try_cells,
)
from rnnnas.files import content_digest, write_json
from rnnnas.lm.model import RecurrentLM
from rnnnas.loop import Position, StepReport, drive, finished
from rnnnas.nas.architect import Architect
from rnnnas.nas.evolution import Strategy
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.methods import derive, method_of
from rnnnas.nas.policy import Reinforce
from rnnnas.nas.relax.base import Mixtures
from rnnnas.nas.relax.sampling import Policy
from rnnnas.nas.space import recurrent_space
from rnnnas.optim import alpha_optimizer, inner_step, scheduled, weight_optimizer
from rnnnas.run import Run
from rnnnas.steps import carry_to, evaluate, generator, weight_step
from rnnnas.types import Batch, Carry


class SearchJob:
    """The state of a search and its steps; see `loop.Job`."""

    def __init__(self, config: SearchConfig, corpus: Corpus, device: torch.device) -> None:
        self.config = config
        self.method = method_of(config.method)
        self.device = device
        self.epochs = config.epochs
        self.net = RecurrentLM(
            config.model,
            corpus.vocab.size,
            recurrent_space(config.model.nodes),
            noise=config.noise,
            penalty=config.penalty,
            generator=generator(config.seed, "weights", 0, torch.device("cpu")),
        ).to(device)
        self.relaxation = config.relaxation
        fresh = self.relaxation.init(
            self.net.space, generator(config.seed, "alphas", 0, torch.device("cpu"))
        )
        self.alphas = {name: a.detach().to(device).requires_grad_() for name, a in fresh.items()}
        self.weight_optimizer = weight_optimizer(self.net, config.weights)
        self.alpha_optimizer = alpha_optimizer(self.alphas, config.alphas) if self.alphas else None
        self.architect = self._architect()
        streams = config.windows.streams
        train, alpha = search_texts(config, corpus)
        self.train = Streams(train, streams, device)
        self.alpha = Streams(alpha, streams, device)
        self.valid = Streams(corpus.splits["valid"], config.valid_streams, device, "valid_streams")
        self.train_carry: Carry = None
        self.alpha_carry: Carry = None
        self.alpha_start = 0
        self.scored: Streams | None = None  # what cells are tried on, where some are
        if self.method.derive != "scores":
            trained = self.epochs * sum(self.lengths(0))
            self.scored = scoring_streams(config, corpus, device, trained)
        self.drawn: Genotype | None = None  # the last cell that was drawn for TensorBoard
        self.chosen: Genotype | None = None  # of the cells that were tried

    def _architect(self) -> Architect | Reinforce | None:
        """What moves the alphas; None where there are none."""
        if self.alpha_optimizer is None:
            return None
        order = self.config.order
        # First order needs no more precision than the weight step; the others do.
        net = self.net if order == "first" else self.net.in_float32()
        if isinstance(self.relaxation, Policy):
            return Reinforce(net, self.alphas, self.relaxation, self.alpha_optimizer)
        return Architect(net, self.alphas, self.relaxation, self.alpha_optimizer, order)

    def lengths(self, epoch: int) -> list[int]:
        rng = random.Random(f"{self.config.seed}/windows/{epoch}")
        return window_lengths(self.config.windows, self.train.length, rng)

    def begin_epoch(self, at: Position) -> None:
        self.train_carry = self.alpha_carry = None
        self.alpha_start = 0

    def step(self, at: Position, steps: int, lr_factor: float) -> StepReport:
        """An alpha step on the next alpha window, then a weight step on the training window."""
        config = self.config
        lr = scheduled(config.weights, at.progress) * steps / config.windows.bptt * lr_factor
        batch = self.train.window(at.start, steps)
        if self.architect is not None and at.progress >= config.alphas.warmup:
            self.weight_optimizer.param_groups[0]["lr"] = lr
            single = self.relaxation.level == "train"
            loss = self.architect.step(
                train=(batch, self.train_carry),
                valid=(batch, self.train_carry) if single else self._alpha_window(steps),
                inner=inner_step(self.net, self.weight_optimizer, config.weights.clip),
                progress=at.progress,
                generator=generator(config.seed, "alpha-step", at.step, self.device),
            )
            self.alpha_carry = loss.carry
            if not bool(torch.isfinite(loss.value)):
                return StepReport(float("nan"), 0, 0.0, lr)
        draws = generator(config.seed, "weight-step", at.step, self.device)
        with torch.no_grad():
            mixtures = self.relaxation.mix(self.alphas, self.net.space, at.progress, draws)
        noise = self.net.noise(batch, draws)

        def slopes(tried: Mixtures) -> dict[str, Tensor]:
            leaves = {n: m.weights.detach().requires_grad_() for n, m in tried.items()}
            cut = {n: m._replace(weights=leaves[n]) for n, m in tried.items()}
            value = self.net(batch, self.train_carry, cut, noise).objective
            return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

        spaces = self.net.space
        mixtures = self.relaxation.perturb(mixtures, spaces, at.progress, draws, slopes)
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
            mixtures = self.relaxation.mix(self.alphas, self.net.space, at.progress, draws)
            scores = self.relaxation.scores(self.alphas, self.net.space)[RECURRENT]
        if isinstance(self.relaxation, Policy):  # not of one draw, but of its likeliest cell
            mixtures = self.mixtures_of(self.genotype())
        score = evaluate(self.net, self.valid, mixtures)
        self.valid_perplexity = score.perplexity
        if self.architect is None:  # that of a random cell
            return {"valid_perplexity": score.perplexity}
        entropy = float(-(scores * scores.clamp_min(1e-12).log()).sum(-1).mean())
        genotype = self.genotype()
        _draw(run, at.step, self.net.space[RECURRENT], scores, genotype, genotype != self.drawn)
        self.drawn = genotype
        return {"valid_perplexity": score.perplexity, "alpha_entropy": entropy}

    def genotype(self) -> Genotype:
        """The cell that was chosen, or else the one that the alphas stand for now."""
        return self.chosen or derive(self.relaxation, self.alphas, self.net.space)

    def mixtures_of(self, genotype: Genotype) -> Mixtures:
        """The mixtures under which the network computes `genotype` and nothing else."""
        return mixtures_of(genotype, self.net.space, next(self.net.parameters()).detach())

    def choose(self, run: Run, quiet: bool) -> float:
        """Try cells with the weights as they are and keep the best; the run's seconds so far.

        The validation perplexity is then that of this cell, with the same weights.
        """
        assert self.scored is not None
        strategy: Strategy = strategy_of(self.config, self.net.space)
        if isinstance(self.relaxation, Policy):
            strategy = PolicyCells(
                self.relaxation, self.alphas, self.net.space, self.config.seed, self.config.cells
            )
        title = f"try cells of {self.config.method} on {self.config.corpus}"
        tried = try_cells(strategy, self.net, self.scored, run, title=title, quiet=quiet)
        self.chosen = tried.best.genotype
        score = evaluate(self.net, self.valid, self.mixtures_of(self.chosen))
        self.valid_perplexity = score.perplexity
        return tried.seconds

    def outcome(self) -> dict[str, Any]:
        """What the result's digest covers beside the genotype."""
        state = self.state()
        return {"alphas": state["alphas"], "weights": state["weights"]}

    valid_perplexity: float = float("nan")

    def state(self) -> dict[str, Any]:
        return {
            "weights": {name: p.detach() for name, p in self.net.named_parameters()},
            "alphas": {name: a.detach() for name, a in self.alphas.items()},
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict() if self.alpha_optimizer else None,
            "architect": self.architect.state() if self.architect else None,
            "train_carry": self.train_carry,
            "alpha_carry": self.alpha_carry,
            "alpha_start": self.alpha_start,
            "valid_perplexity": self.valid_perplexity,
            "drawn": None if self.drawn is None else self.drawn.to_plain(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["weights"])
        with torch.no_grad():
            for name, alpha in self.alphas.items():
                alpha.copy_(state["alphas"][name])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        if self.alpha_optimizer is not None:
            self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        if self.architect is not None:
            self.architect.restore(state["architect"])
        self.train_carry = carry_to(state["train_carry"], self.device)
        self.alpha_carry = carry_to(state["alpha_carry"], self.device)
        self.alpha_start = state["alpha_start"]
        self.valid_perplexity = state["valid_perplexity"]
        drawn = state["drawn"]
        self.drawn = None if drawn is None else Genotype.from_plain(drawn)


def job_of(config: SearchConfig, corpus: Corpus, device: torch.device) -> SearchJob | CandidateJob:
    """The job that the method asks for: shared weights, or one cell after the other."""
    kind = CandidateJob if config.from_scratch else SearchJob
    return kind(config, corpus, device)


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

    The result: run, genotype, cell (its short text), seconds, valid_perplexity (of the network
    under search; where cells were tried, of the best of them), digest (SHA-256 of genotype, alphas
    and weights, or of all cells that were trained from scratch with their losses).

    Raises:
        RnnnasError: as `loop.drive` and `Run.open` say.
    """
    check_unchanged(corpus)
    plain = {**configs.to_plain(config), "corpus_sha256": corpus.sha256}
    job = job_of(config, corpus, device)  # first: what it refuses leaves no run folder behind
    with Run.open(folder, "search", plain, fresh=fresh, save_seconds=config.save_seconds) as run:
        if run.result is not None:
            return finished(run)
        title = f"search {config.method} on {config.corpus}"
        seconds = drive(job, run, kind="search", title=title, quiet=quiet)
        if isinstance(job, SearchJob) and job.scored is not None:
            seconds = job.choose(run, quiet)
        genotype = job.genotype()
        digest = content_digest({"genotype": genotype.to_plain(), **job.outcome()})
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
