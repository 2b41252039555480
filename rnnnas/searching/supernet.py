"""The job of a search on shared weights: weights and alphas in turn, then the derived cell."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor

from rnnnas.config.presets import AnySearch
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import AnyCorpus, Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine.budget import Course, Pace, end_round
from rnnnas.engine.job import Position, StepReport, ValidationDiverged
from rnnnas.engine.metrics import Score
from rnnnas.engine.pick_task import search_task
from rnnnas.engine.steps import (
    Readable,
    evaluate,
    generator,
    own_state,
    weight_step,
    weights_of,
    whole_state,
)
from rnnnas.engine.task import Net, arithmetic
from rnnnas.lm.model import TIED, RecurrentLM
from rnnnas.nas.architect import Architect, order_for
from rnnnas.nas.genotype import Genotype, cell_text
from rnnnas.nas.latency_price import MICROSECOND, LatencyPrice, Price
from rnnnas.nas.methods import method_of
from rnnnas.nas.reinforce import Reinforce
from rnnnas.nas.relax.base import Mixture, Mixtures, Spaces
from rnnnas.nas.relax.policy import Policy, mixtures_of
from rnnnas.nas.space import CellSpace
from rnnnas.nas.stages import progress_within, stage_at, strongest
from rnnnas.nas.strategies import Scored, Strategy
from rnnnas.optim import (
    alpha_optimizer,
    inner_step,
    restore_optimizer,
    scheduled,
    weight_optimizer,
)
from rnnnas.runs.folder import AnyRun, Run
from rnnnas.searching.derive_by_perturbation import Searched, cell_of
from rnnnas.searching.derive_by_trying import PolicyCells, strategy_of, try_cells
from rnnnas.searching.eigenvalue_watch import EigenvalueStop
from rnnnas.types import Batch, HiddenState, InnerStep


class SearchJob:
    """The state of a search and its steps; see `job.Job`."""

    def __init__(
        self,
        config: AnySearch,
        corpus: AnyCorpus,
        device: torch.device,
        ranks: Ranks = ALONE,
        pace: Pace | None = None,
    ) -> None:
        self.ranks = ranks
        self.config = config
        self.method = method_of(config.method)
        self.device = device
        self.pace = pace
        self.epochs = config.epochs if pace is None else pace.plan.rounds
        self.relaxation = config.relaxation
        self.plan = config.plan
        self.task = search_task(config, corpus, device, ranks)
        self.course = Course(self.task.lengths)
        self.price: Price | None = None
        self._build(0, self.task.spaces)
        self.train, self.alpha = self.task.train, self.task.alpha
        self.valid: Readable = self.task.valid
        self.scored: Streams | None = None  # what cells are tried on, where some are
        if self.method.derive != "scores":
            self.scored = self.task.scored(self.planned_time)
        self.eigenvalue_stop: EigenvalueStop | None = None  # searches on images have none
        if config.stops_by_eigenvalue:
            self.eigenvalue_stop = EigenvalueStop(
                cast(SearchConfig, config), cast(Corpus, corpus), device
            )
        self.drawn: Genotype | None = None  # the last cell that was drawn for TensorBoard
        self.chosen: Genotype | None = None  # of the cells that were tried
        self.tried: list[Scored] = []  # those cells
        # What the alphas stood for on the way, for a race; None where they had not moved.
        self.passed: list[Genotype | None] = []
        self.points = 0  # how often that is noted
        if config.races and self.method.alphas != "none":
            self.points = cast(SearchConfig, config).select.points

    def _build(self, stage: int, spaces: Spaces) -> None:
        """A stage's network, alphas and optimisers, all fresh; those before it are let go."""
        config, device, cpu = self.config, self.device, torch.device("cpu")
        self.stage = stage
        draws = generator(config.seed, "weights", stage, cpu)
        self.net: Net = self.task.network(stage, spaces, draws).to(device)
        fresh = self.relaxation.init(self.net.space, generator(config.seed, "alphas", stage, cpu))
        self.alphas = {name: a.detach().to(device).requires_grad_() for name, a in fresh.items()}
        self.cuda_graphs = self.task.cuda_graphs()
        self.weight_optimizer = weight_optimizer(self.net, config.weights)
        self.alpha_optimizer = alpha_optimizer(self.alphas, config.alphas) if self.alphas else None
        self.architect = self._architect(self.net)
        self.train_state: HiddenState = None
        self.alpha_state: HiddenState = None
        self.alpha_start = 0

    def _architect(self, net: Net) -> Architect | Reinforce | None:
        """What moves the alphas by the losses of `net`; None where there are none."""
        if self.alpha_optimizer is None:
            return None
        # The published look-ahead is a finite difference.
        alphas = self.config.alphas
        asked = "finite" if alphas.published_lookahead else alphas.second_order
        order = order_for(net, self.config.order, asked)
        if isinstance(self.relaxation, Policy):
            factor = self.price.reward_factor if isinstance(self.price, LatencyPrice) else None
            return Reinforce(net, self.alphas, self.relaxation, self.alpha_optimizer, factor)
        return Architect(
            net, self.alphas, self.relaxation, self.alpha_optimizer, order, self.price,
            balanced=alphas.balanced,
            ranks=self.ranks,
            # A finite difference needs more precision than a weight step.
            precise=net.in_float32() if order == "finite" else None,
            replay=None if self.cuda_graphs is None else self.cuda_graphs.run,
        )  # fmt: skip

    def _architect_of(self, net: Net) -> Architect | Reinforce | None:
        """That of a step on `net`: this network, or its twin under the masks of the moment.

        An `Architect` has no state, so that a twin gets its own. REINFORCE has a baseline, and
        knows no masks.
        """
        if net is self.net or isinstance(self.architect, Reinforce):
            return self.architect
        return self._architect(net)

    def _inner_step(self, lr: float) -> InnerStep:
        """The weight step to come, of size `lr`, for the second order to look ahead by."""
        published = frozenset({TIED}) if self.config.alphas.published_lookahead else None
        clip = self.config.weights.clip
        return inner_step(self.net, self.weight_optimizer, clip, lr=lr, published=published)

    def set_price(self, price: Price) -> None:
        """Price latency in what the alphas minimise; before the first step."""
        self.price = price
        self.architect = self._architect(self.net)

    def _enter(self, stage: int) -> None:
        """Go on to the next stage, on what the scores leave of the space."""
        spaces = self.net.space
        with torch.no_grad():
            scores = self.relaxation.scores(self.alphas, spaces)
        now = self.plan[stage]
        self._build(stage, {n: strongest(s, scores[n].tolist(), now) for n, s in spaces.items()})

    def _progress(self, at: Position) -> float:
        """The share of the present stage that is done."""
        return progress_within(at.progress, self.stage, len(self.plan))

    @property
    def arithmetic(self) -> str:
        return arithmetic(self.net, self.device)

    def lengths(self, epoch: int) -> list[int]:
        if self.pace is None:
            return self.task.lengths(epoch)
        steps = self.pace.steps(epoch)
        return self.course.lengths(self.pace.first(epoch), steps)

    @property
    def planned_time(self) -> int:
        """Steps in time that the search trains on, T of all its windows together, as planned."""
        if self.pace is None:
            return self.epochs * sum(self.task.lengths(0))
        plan = self.pace.plan
        return sum(self.course.lengths(0, plan.rounds * plan.steps))

    def window_after(self, number: int) -> tuple[int, int]:
        """(start, T) of window `number` of those that would follow the search's own."""
        if self.pace is not None:
            number += sum(self.pace.rounds)
            (steps,) = self.course.lengths(number, 1)
            return self.course.place(Position(step=number)).start, steps
        epoch = self.config.epochs
        while number >= len(lengths := self.lengths(epoch)):
            number -= len(lengths)
            epoch += 1
        return sum(lengths[:number]), lengths[number]

    def begin_epoch(self, at: Position) -> None:
        if self.pace is None:  # else a round goes on where the one before it ended
            self._begin_pass()

    def _begin_pass(self) -> None:
        self.train_state = self.alpha_state = None
        self.alpha_start = 0

    def step(self, at: Position, steps: int, lr_factor: float) -> StepReport:
        """An alpha step on the next alpha window, then a weight step on the training window."""
        config = self.config
        while len(self.passed) + 1 <= int(at.progress * self.points):
            # Before the next stage begins with new alphas; None where they have not moved.
            moved = self._progress(at) > self.config.alphas.warmup
            self.passed.append(self.genotype() if moved else None)
        # Not only at the start of an epoch: a search may have fewer epochs than stages.
        while self.stage < stage_at(at.progress, len(self.plan)):
            self._enter(self.stage + 1)
        progress = self._progress(at)
        lr = self.task.scaled(scheduled(config.weights, progress), steps) * lr_factor
        place = at
        if self.pace is not None:
            place = self.course.place(at)
            if place.window == 0:
                self._begin_pass()
        batch = self.task.batch(place, steps)
        net = self.task.at(self.net, self.stage, progress)
        alpha_nats: Tensor | None = None
        architect = self._architect_of(net)
        if architect is not None and progress >= config.alphas.warmup:
            single = self.relaxation.level == "train"
            loss = architect.step(
                train=(batch, self.train_state),
                valid=(batch, self.train_state) if single else self._alpha_window(place),
                inner=self._inner_step(lr),
                progress=progress,
                generator=generator(config.seed, "alpha-step", at.step, self.device),
            )
            self.alpha_state = loss.hidden_state
            alpha_nats = loss.value
            if alpha_nats.device.type == "cpu" and not bool(torch.isfinite(alpha_nats)):
                return StepReport(float("nan"), 0, 0.0, lr)
        draws = generator(config.seed, "weight-step", at.step, self.device)
        with torch.no_grad():
            mixtures = self.relaxation.mix(self.alphas, self.net.space, progress, draws)
        noise = net.noise(batch, draws)

        def gradients(tried: Mixtures) -> tuple[Tensor, dict[str, Tensor]]:
            leaves = {n: m.weights.detach().requires_grad_() for n, m in tried.items()}
            mean_gradient = self.ranks.mean_gradient  # the gradients are those of the whole batch
            cut = {n: m._replace(weights=mean_gradient(leaves[n])) for n, m in tried.items()}
            value = net(batch, self.train_state, cut, noise).objective
            grads = torch.autograd.grad(value, list(leaves.values()))
            # All ranks see the same loss, and decide the same by it.
            return self.ranks.mean(value.detach()), dict(zip(leaves, grads, strict=True))

        spaces = self.net.space
        mixtures = self.relaxation.perturb(mixtures, spaces, progress, draws, gradients)
        loss, norm = weight_step(
            net, self.weight_optimizer, batch, self.train_state, mixtures, noise,
            lr=lr, clip=config.weights.clip, ranks=self.ranks, cuda_graphs=self.cuda_graphs,
        )  # fmt: skip
        self.train_state = loss.hidden_state
        nats = loss.value
        if alpha_nats is not None:  # a diverged alpha step shows, though nobody waited for it
            nats = torch.where(torch.isfinite(alpha_nats), nats, torch.nan)
        return StepReport(nats, loss.count, norm, lr, loss.correct)

    def _alpha_window(self, at: Position) -> tuple[Batch, HiddenState]:
        """The next batch for the alphas, and the state that enters it."""
        batch, self.alpha_start, fresh = self.task.alpha_batch(at, self.alpha_start)
        return batch, None if fresh else self.alpha_state

    def end_epoch(self, at: Position, run: AnyRun) -> dict[str, float]:
        return end_round(self, at.epoch, lambda: self._validated(at, run))

    def _validated(self, at: Position, run: AnyRun) -> dict[str, float]:
        """What validation gives, and what the alphas say by then."""
        draws = generator(self.config.seed, "valid", at.epoch, self.device)
        with torch.no_grad():
            mixtures = self.relaxation.mix(self.alphas, self.net.space, self._progress(at), draws)
            scores = self.relaxation.scores(self.alphas, self.net.space)
        if isinstance(self.relaxation, Policy) or self._draws_cells(mixtures):
            mixtures = self.mixtures_of(self.genotype())  # of the likeliest cell, not of one draw
        net = self.task.alone(self.net)
        score = Score(**self.ranks.on_rank_zero(lambda: asdict(self._score(net, mixtures))))
        if not math.isfinite(score.loss):
            raise ValidationDiverged
        self.valid_score = score.measured[self.task.measure]
        values = {f"valid_{name}": value for name, value in score.measured.items()}
        if self.architect is None:  # that of a random cell
            return values
        every = [(table * table.clamp_min(1e-12).log()).sum(-1) for table in scores.values()]
        entropy = float(-torch.cat(every).mean())
        genotype = self.genotype()
        shares = {n: [[round(v, 4) for v in row] for row in t.tolist()] for n, t in scores.items()}
        run.log("alphas", at.step, epoch=at.epoch + 1, cell=cell_text(genotype), **shares)
        _draw(run, at.step, self.net.space, scores, genotype, genotype != self.drawn)
        self.drawn = genotype
        values |= {"alpha_entropy": entropy}
        if self.price is not None:
            expected = float(self.price.expected({n: Mixture(s) for n, s in scores.items()}))
            values["expected_latency_us"] = expected / MICROSECOND
            values["cell_latency_us"] = self.price.of_cells(genotype.cells) / MICROSECOND
        if self.eigenvalue_stop is not None:
            values |= self.eigenvalue_stop.look(
                at.epoch + 1, cast(RecurrentLM, self.net), self.alphas, genotype, self.ranks
            )
            self.epochs = self.eigenvalue_stop.stopped_at or self.epochs
        return values if len(self.plan) == 1 else {**values, "stage": self.stage + 1.0}

    def _score(self, net: Net, mixtures: Mixtures) -> Score:
        """Of the validation text; net: this one, or its twin whose batches are whole."""
        return evaluate(net, self.valid, mixtures, cuda_graphs=self.cuda_graphs)

    def _draws_cells(self, mixtures: Mixtures) -> bool:
        """Whether the alphas' draws are cells as they are derived: one path a node."""
        if self.architect is None or not isinstance(self.net, RecurrentLM):
            return False
        return all(_is_a_cell(mixture, self.net.space[name]) for name, mixture in mixtures.items())

    def genotype(self) -> Genotype:
        """The cell that was chosen, or else the one that the alphas stand for now."""
        stopped = None if self.eigenvalue_stop is None else self.eigenvalue_stop.genotype
        found = self.chosen or stopped
        return found or self.task.derive(self.relaxation, self.alphas, self.net.space)

    def mixtures_of(self, genotype: Genotype) -> Mixtures:
        """The mixtures under which the network computes `genotype` and nothing else."""
        return mixtures_of(genotype, self.net.space, next(self.net.parameters()).detach())

    def choose(self, run: Run, quiet: bool) -> float:
        """Try cells with the weights as they are and keep the best; the run's seconds so far.

        The validation perplexity is then that of this cell, with the same weights.
        """
        if self.scored is None:
            raise TypeError(f"method {self.config.method!r} derives its cell without trying any")
        config = cast(SearchConfig, self.config)  # searches on images have no such methods
        strategy: Strategy = strategy_of(config, self.net.space)
        if isinstance(self.relaxation, Policy):
            strategy = PolicyCells(
                self.relaxation, self.alphas, self.net.space, config.seed, config.cells
            )
        title = f"try cells of {config.method} on {config.corpus}"
        tried = try_cells(strategy, self.net, self.scored, run, title=title, quiet=quiet)
        self.chosen = tried.best.genotype
        self.tried = list(strategy.history)
        score = self._score(self.net, self.mixtures_of(self.chosen))
        self.valid_score = score.perplexity
        return tried.seconds

    def perturb(self, corpus: Corpus, run: AnyRun, quiet: bool) -> float:
        """Choose the cell by perturbation; else as `choose`."""
        derived = cell_of(cast(Searched, self), corpus, run, quiet=quiet)
        self.chosen = derived.genotype
        net, mixtures = self.task.alone(self.net), self.mixtures_of(self.chosen)
        self.valid_score = self.ranks.on_rank_zero(lambda: self._score(net, mixtures).perplexity)
        return derived.seconds

    def measured(self) -> dict[str, float]:
        """The validation result to report, by name."""
        return {f"valid_{self.task.measure}": self.valid_score}

    def outcome(self) -> dict[str, Any]:
        """What the result's digest covers beside the genotype."""
        state = self.state()
        return {"alphas": state["alphas"], "weights": state["weights"]}

    valid_score: float = float("nan")

    @property
    def measure(self) -> str:
        """What is reported: "perplexity" or "accuracy"."""
        return self.task.measure

    def state(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "allowed": {n: [list(r) for r in s.allowed] for n, s in self.net.space.items()},
            "weights": weights_of(self.net),
            "alphas": {name: a.detach() for name, a in self.alphas.items()},
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict() if self.alpha_optimizer else None,
            "architect": self.architect.state() if self.architect else None,
            "train_carry": whole_state(self.train_state, self.ranks),
            "alpha_carry": whole_state(self.alpha_state, self.ranks),
            "alpha_start": self.alpha_start,
            "valid_score": self.valid_score,
            "drawn": None if self.drawn is None else self.drawn.to_plain(),
            "watch": None if self.eigenvalue_stop is None else self.eigenvalue_stop.rule.state(),
            **({} if self.pace is None else {"pace": self.pace.state()}),
            "passed": [None if cell is None else cell.to_plain() for cell in self.passed],
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["stage"] != self.stage:
            left = {n: s.prune(state["allowed"][n]) for n, s in self.task.spaces.items()}
            self._build(state["stage"], left)
        self.net.load_state_dict(state["weights"])
        with torch.no_grad():
            for name, alpha in self.alphas.items():
                alpha.copy_(state["alphas"][name])
        restore_optimizer(self.weight_optimizer, state["weight_optimizer"])
        if self.alpha_optimizer is not None:
            restore_optimizer(self.alpha_optimizer, state["alpha_optimizer"])
        if self.architect is not None:
            self.architect.restore(state["architect"])
        self.train_state = own_state(state["train_carry"], self.device, self.ranks)
        self.alpha_state = own_state(state["alpha_carry"], self.device, self.ranks)
        self.alpha_start = state["alpha_start"]
        self.valid_score = state["valid_score"]
        self.passed = [
            None if plain is None else Genotype.from_plain(plain)
            for plain in state.get("passed", [])
        ]
        drawn = state["drawn"]
        self.drawn = None if drawn is None else Genotype.from_plain(drawn)
        if self.pace is not None:
            self.pace.restore(state["pace"])
            self.epochs = self.pace.total()
        if self.eigenvalue_stop is not None:
            self.eigenvalue_stop.rule.restore(state["watch"])
            self.epochs = self.eigenvalue_stop.stopped_at or self.epochs


def _draw(
    run: AnyRun,
    step: int,
    spaces: Spaces,
    scores: dict[str, Tensor],
    genotype: Genotype,
    changed: bool,
) -> None:
    from rnnnas.draw import images as raster

    for name, space in spaces.items():
        title = "alphas" if len(spaces) == 1 else f"alphas/{name}"
        table = scores[name].tolist()
        run.image(title, raster.table_image(table, space.labels, space.ops), step)
    if changed:
        run.image("cell", raster.cell_image(genotype), step)


def _is_a_cell(mixture: Mixture, space: CellSpace) -> bool:
    """Whether what a mixture computes is drawn: one path a node, or where a node keeps several
    edges one an edge, and not all that a space has left.
    """
    if mixture.paths is None:
        return False
    if space.keep > 1:
        return len({edge for edge, _ in mixture.paths}) == len(mixture.paths)
    return len(mixture.paths) <= space.nodes
