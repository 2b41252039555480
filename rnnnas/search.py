"""A search: weights and alphas in turn, then the derived cell. Joins data, network and run."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
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
from rnnnas.errors import UsageError
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
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.optim import (
    alpha_optimizer,
    inner_step,
    restore_optimizer,
    scheduled,
    weight_optimizer,
)
from rnnnas.programs import programs_for
from rnnnas.ranks import ALONE, Ranks
from rnnnas.run import Run
from rnnnas.shared import AnyRun, open_run
from rnnnas.stages import progress_within, stage_at, strongest
from rnnnas.steps import Score, evaluate, generator, own_carry, weight_step, whole_carry
from rnnnas.types import Batch, Carry


class SearchJob:
    """The state of a search and its steps; see `loop.Job`."""

    def __init__(
        self, config: SearchConfig, corpus: Corpus, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        ranks.check(config.windows.streams)
        self.ranks = ranks
        self.config = config
        self.method = method_of(config.method)
        self.device = device
        self.epochs = config.epochs
        self.vocabulary = corpus.vocab.size
        self.relaxation = config.relaxation
        self.plan = config.plan
        self._build(0, recurrent_space(config.model.nodes))
        streams = config.windows.streams
        train, alpha = search_texts(config, corpus)
        part = ranks.part(streams)
        self.train = Streams(train, streams, device, part=part)
        self.alpha = Streams(alpha, streams, device, part=part)
        self.valid = Streams(corpus.splits["valid"], config.valid_streams, device, "valid_streams")
        self.scored: Streams | None = None  # what cells are tried on, where some are
        if self.method.derive != "scores":
            trained = self.epochs * sum(self.lengths(0))
            self.scored = scoring_streams(config, corpus, device, trained)
        self.drawn: Genotype | None = None  # the last cell that was drawn for TensorBoard
        self.chosen: Genotype | None = None  # of the cells that were tried

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
            ranks=self.ranks,
        ).to(device)
        fresh = self.relaxation.init(self.net.space, generator(config.seed, "alphas", stage, cpu))
        self.alphas = {name: a.detach().to(device).requires_grad_() for name, a in fresh.items()}
        self.programs = programs_for(config.capture, device)
        self.weight_optimizer = weight_optimizer(self.net, config.weights)
        self.alpha_optimizer = alpha_optimizer(self.alphas, config.alphas) if self.alphas else None
        self.architect = self._architect()
        self.train_carry: Carry = None
        self.alpha_carry: Carry = None
        self.alpha_start = 0

    def _architect(self) -> Architect | Reinforce | None:
        """What moves the alphas; None where there are none."""
        if self.alpha_optimizer is None:
            return None
        order = self.config.order
        if isinstance(self.relaxation, Policy):
            return Reinforce(self.net, self.alphas, self.relaxation, self.alpha_optimizer)
        # A finite difference needs more precision than a weight step.
        precise = self.net.in_float32() if order == "finite" else None
        return Architect(
            self.net, self.alphas, self.relaxation, self.alpha_optimizer, order,
            ranks=self.ranks, precise=precise,
            replay=None if self.programs is None else self.programs.run,
        )  # fmt: skip

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
        alpha_nats: Tensor | None = None
        if self.architect is not None and progress >= config.alphas.warmup:
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
            alpha_nats = loss.value
            if alpha_nats.device.type == "cpu" and not bool(torch.isfinite(alpha_nats)):
                return StepReport(float("nan"), 0, 0.0, lr)
        draws = generator(config.seed, "weight-step", at.step, self.device)
        with torch.no_grad():
            mixtures = self.relaxation.mix(self.alphas, self.net.space, progress, draws)
        noise = self.net.noise(batch, draws)

        def slopes(tried: Mixtures) -> tuple[Tensor, dict[str, Tensor]]:
            leaves = {n: m.weights.detach().requires_grad_() for n, m in tried.items()}
            spread = self.ranks.spread  # the slopes are those of the whole batch
            cut = {n: m._replace(weights=spread(leaves[n])) for n, m in tried.items()}
            value = self.net(batch, self.train_carry, cut, noise).objective
            grads = torch.autograd.grad(value, list(leaves.values()))
            # All ranks see the same loss, and decide the same by it.
            return self.ranks.mean(value.detach()), dict(zip(leaves, grads, strict=True))

        spaces = self.net.space
        mixtures = self.relaxation.perturb(mixtures, spaces, progress, draws, slopes)
        loss, norm = weight_step(
            self.net, self.weight_optimizer, batch, self.train_carry, mixtures, noise,
            lr=lr, clip=config.weights.clip, ranks=self.ranks, programs=self.programs,
        )  # fmt: skip
        self.train_carry = loss.carry
        nats = loss.value
        if alpha_nats is not None:  # a lost alpha step shows, though nobody waited for it
            nats = torch.where(torch.isfinite(alpha_nats), nats, torch.nan)
        return StepReport(nats, loss.count, norm, lr)

    def _alpha_window(self, steps: int) -> tuple[Batch, Carry]:
        """The next window of the alphas' text, and the state that enters it."""
        steps = min(steps, self.alpha.length - 1)
        if self.alpha_start + steps > self.alpha.length - 1:
            # Back to the start of the text: the state of its end does not belong there.
            self.alpha_start, self.alpha_carry = 0, None
        batch = self.alpha.window(self.alpha_start, steps)
        self.alpha_start += steps
        return batch, self.alpha_carry

    def end_epoch(self, at: Position, run: AnyRun) -> dict[str, float]:
        draws = generator(self.config.seed, "valid", at.epoch, self.device)
        with torch.no_grad():
            mixtures = self.relaxation.mix(self.alphas, self.net.space, self._progress(at), draws)
            scores = self.relaxation.scores(self.alphas, self.net.space)[RECURRENT]
        if isinstance(self.relaxation, Policy):  # not of one draw, but of its likeliest cell
            mixtures = self.mixtures_of(self.genotype())
        net = self.net.alone()
        score = Score(**self.ranks.led(lambda: asdict(evaluate(net, self.valid, mixtures))))
        self.valid_perplexity = score.perplexity
        if self.architect is None:  # that of a random cell
            return {"valid_perplexity": score.perplexity}
        entropy = float(-(scores * scores.clamp_min(1e-12).log()).sum(-1).mean())
        genotype = self.genotype()
        _draw(run, at.step, self.net.space[RECURRENT], scores, genotype, genotype != self.drawn)
        self.drawn = genotype
        values = {"valid_perplexity": score.perplexity, "alpha_entropy": entropy}
        return values if len(self.plan) == 1 else {**values, "stage": self.stage + 1.0}

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
            "stage": self.stage,
            "allowed": [list(row) for row in self.net.space[RECURRENT].allowed],
            "weights": {name: p.detach() for name, p in self.net.named_parameters()},
            "alphas": {name: a.detach() for name, a in self.alphas.items()},
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict() if self.alpha_optimizer else None,
            "architect": self.architect.state() if self.architect else None,
            "train_carry": whole_carry(self.train_carry, self.ranks),
            "alpha_carry": whole_carry(self.alpha_carry, self.ranks),
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
        restore_optimizer(self.weight_optimizer, state["weight_optimizer"])
        if self.alpha_optimizer is not None:
            restore_optimizer(self.alpha_optimizer, state["alpha_optimizer"])
        if self.architect is not None:
            self.architect.restore(state["architect"])
        self.train_carry = own_carry(state["train_carry"], self.device, self.ranks)
        self.alpha_carry = own_carry(state["alpha_carry"], self.device, self.ranks)
        self.alpha_start = state["alpha_start"]
        self.valid_perplexity = state["valid_perplexity"]
        drawn = state["drawn"]
        self.drawn = None if drawn is None else Genotype.from_plain(drawn)


def job_of(
    config: SearchConfig, corpus: Corpus, device: torch.device, ranks: Ranks = ALONE
) -> SearchJob | CandidateJob:
    """The job that the method asks for: shared weights, or one cell after the other.

    Raises:
        UsageError: where several processes share a search that only one can make, or cannot be
            captured because they talk within a window, for its batch statistics.
    """
    if ranks.size > 1 and config.capture == "on":
        raise ranks.hushed(
            UsageError(
                "capture = 'on' is for searches in one process",
                "leave it out, or start the search without torchrun or --processes",
            )
        )
    if ranks.size > 1 and method_of(config.method).alphas != "gradient":
        raise ranks.hushed(
            UsageError(
                f"a search by {config.method!r} runs in one process",
                "start it without torchrun or --processes; `rnnnas study --jobs N` runs several",
            )
        )
    if config.from_scratch:
        return CandidateJob(config, corpus, device)
    return SearchJob(config, corpus, device, ranks)


def _draw(
    run: AnyRun, step: int, space: Any, scores: Tensor, genotype: Genotype, changed: bool
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
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Search a cell, or go on with a search that was stopped; returns its result.

    With several ranks every one of them calls this, with its own device; the number may change
    when a search goes on.

    The result: run, genotype, cell (its short text), seconds, valid_perplexity (of the network
    under search; where cells were tried, of the best of them), digest (SHA-256 of genotype, alphas
    and weights, or of all cells that were trained from scratch with their losses).

    Raises:
        RnnnasError: as `loop.drive` and `Run.open` say.
    """
    check_unchanged(corpus)
    plain = {**configs.to_plain(config), "corpus_sha256": corpus.sha256}
    # First: what it refuses leaves no run folder behind.
    job = job_of(config, corpus, device, ranks)
    options: dict[str, Any] = {
        "fresh": fresh, "save_seconds": config.save_seconds, "idle": config.idle,
    }  # fmt: skip
    with open_run(ranks, folder, "search", plain, **options) as run:
        if run.result is not None:
            return finished(run, ranks)
        title = f"search {config.method} on {config.corpus}"
        seconds = drive(job, run, kind="search", title=title, quiet=quiet, ranks=ranks)
        if isinstance(job, SearchJob) and job.scored is not None:
            assert isinstance(run, Run)  # one process: see `job_of`
            seconds = job.choose(run, quiet)
        genotype = job.genotype()
        digest = content_digest({"genotype": genotype.to_plain(), **job.outcome()})
        ranks.led(lambda: write_json(run.folder / "genotype.json", genotype.to_plain()))
        result = {
            "run": str(run.folder),
            "genotype": genotype.to_plain(),
            "cell": genotype.to_text(),
            "seconds": round(seconds, 3),
            "valid_perplexity": job.valid_perplexity,
            "digest": digest,
        }
        run.hparams(plain, {"valid_perplexity": job.valid_perplexity})
        result = ranks.tell(result)  # the seconds differ
        run.finish(result)
        return result
