"""Successive halving with one-gene children: which cell is trained how far, and which go on.

A `Race` says which trainings are due and is told what they gave. T: weight steps of a full one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, final

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.neighbours import fits, neighbours
from rnnnas.nas.race_plan import LEAST, Plan, Round, Rung
from rnnnas.nas.strategies import Spaces, uniform
from rnnnas.nas.structure import Structure, slowness

PARENTS = 3
_ENOUGH = 8  # cells that must be known before structure says anything
UNIFORM = 4  # one of so many random cells is drawn uniformly, whatever its structure


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectConfig:
    """What decides which cell a search returns: the alphas alone, or short trainings.

    by: whether the search's own "alphas" decide, or a "race": short trainings by successive halving
        of cells that the search proposes, published ones and random ones, so that no search returns
        a cell that it can see to be worse than chance, and all other settings are of the race; the
        alphas, as in papers
    budget: what all trainings of the race cost together; full trainings of `windows` weight steps
        each; 2 or more; three cells of a dozen then get a full one
    windows: weight steps of a full training; steps; 0 or more, 0 for as many as the search's own;
        500 tell cells of 100 units apart
    rung: weight steps of the race's first rung, at least; steps; 1 or more; below, the train loss
        says little of a cell
    guards: random cells that take part, at least; cells; 0 or more; enough to see chance
    points: how often the cell of the alphas is noted on the way, evenly; times; 0 or more; a search
        that collapses is at its best before
    samples: cells drawn from the alphas' distribution, or the best of those that were tried with
        shared weights; cells; 0 or more; a few, beside those of `points`
    published: whether published cells take part; they cost as little as random ones
    schedule: schedule of the step size over a full training of the race; cosine, as trainings have
    """

    by: Literal["alphas", "race"] = "alphas"
    budget: float = 6.0
    windows: int = 500
    rung: int = 100
    guards: int = 6
    points: int = 8
    samples: int = 4
    published: bool = True
    schedule: Literal["constant", "cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        lows = {"budget": 2, "windows": 0, "rung": 1, "guards": 0, "points": 0, "samples": 0}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise UsageError(f"select.{name} = {getattr(self, name)} must be at least {low}")


class Proposal(NamedTuple):
    """A cell to race, and where it comes from: "epoch 3 of darts-1st", "DARTS_V2", "random"."""

    genotype: Genotype
    origin: str


class Trial(NamedTuple):
    """A stretch of one cell's training that is due: from weight step `start` to `stop`.

    number: of the cell in the race. draw: 0, or 1 for fresh weights, windows and masks. heldout:
    whether the loss on held-out text is wanted at its end.
    """

    number: int
    genotype: Genotype
    draw: int
    start: int
    stop: int
    heldout: bool


class Outcome(NamedTuple):
    """What a trial gave, in nats a target; infinite where the training diverged.

    train: mean over the second half of the stretch. heldout: of averaged weights on held-out text;
    None where it was not asked for.
    """

    train: float
    heldout: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A cell of the race. parent: the number of the cell it is a child of."""

    number: int
    genotype: Genotype
    origin: str
    parent: int | None = None


class Decision(NamedTuple):
    """What was changed of a plan before a rung began.

    cells: that go on; rungs: those that are left of the present round, none where it is over;
    rounds: those that follow.
    """

    cells: int
    rungs: tuple[Rung, ...]
    rounds: tuple[Round, ...]


class Prospect(NamedTuple):
    """What is left of a race: `Decision`'s fields by its plan, and where the `rungs` begin.

    done: weight steps of one training that the rungs begin at. finished: cells trained in full.
    """

    cells: int
    rungs: tuple[Rung, ...]
    rounds: tuple[Round, ...]
    done: int
    finished: int


class Standing(NamedTuple):
    """How one cell stood at the end of a rung. kept: whether it went on, or has won."""

    rung: int
    stop: int
    entrant: Entrant
    draw: int
    outcome: Outcome
    kept: bool


@final
class Race:
    """A race by a plan: `due` trainings are carried out and told until it is `done`.

    Every draw depends on the seed and on what was told alone; the order in which the trials of a
    rung are told changes nothing.

    Args:
        proposed: cells that are in the first round, beside random ones that fill it. More of them
            than the round takes beside `guards` random ones are thinned out evenly.
        guards: random cells that the first round holds at least.
        draws: one of `UNIFORM` random cells is drawn uniformly, of origin "random"; the others, of
            origin "structure", are each the least slow of so many (`structure.slowness`).

    decide: asked before every rung but the first whether the plan is to be changed, e.g. as time
    runs out; None: the plan stands. decided: what it said, by the number of rungs that were over.
    """

    def __init__(
        self,
        spaces: Spaces,
        seed: int,
        plan: Plan,
        proposed: Sequence[Proposal] = (),
        *,
        guards: int = 0,
        draws: int = 1,
    ) -> None:
        self.spaces = spaces
        self.seed = seed
        self.plan = plan
        self.entrants: list[Entrant] = []
        self.standings: list[Standing] = []  # of rungs that are over, in order
        self._told: dict[tuple[int, int, int], Outcome] = {}  # by (number, draw, stop)
        self._rounds = list(plan.rounds)
        self._now: list[int] = []  # the numbers that are on the present rung
        self._rung = 0  # of the present round
        self._height = 0  # rungs that are over, all rounds
        self.decide: Callable[[Prospect], Decision | None] | None = None
        self.decided: dict[int, Decision] = {}
        self.ended = False  # by `end`
        self._start(proposed, guards, draws)

    # The cells

    def _start(self, proposed: Sequence[Proposal], guards: int, draws: int) -> None:
        wanted = self._rounds[0].cells
        distinct: dict[str, Proposal] = {}
        for proposal in proposed:
            distinct.setdefault(_key(proposal.genotype), proposal)
        kept = list(distinct.values())
        # Where few cells race, half of them at most are proposed: chance is to be seen.
        room = max(wanted - guards, min(LEAST, wanted // 2))
        if len(kept) > room:  # the first and the last among them
            kept = [kept[round(i * (len(kept) - 1) / max(1, room - 1))] for i in range(room)]
        for proposal in kept:
            self._enter(proposal.genotype, proposal.origin, None)
        rng = random.Random(f"{self.seed}/halving/start")
        there = math.prod(space.count() for space in self.spaces.values())
        seen = {_key(entrant.genotype) for entrant in self.entrants}
        fitting = sum(1 for entrant in self.entrants if fits(entrant.genotype, self.spaces))
        wanted = min(wanted - len(kept), there - fitting)
        uniformly = max(min(guards, wanted), math.ceil(wanted / UNIFORM))
        if draws == 1 or set(self.spaces) != {RECURRENT}:
            uniformly = wanted
        for number in range(wanted):
            several = [self._unseen(rng, seen) for _ in range(1 if number < uniformly else draws)]
            drawn = several[0] if number < uniformly else min(several, key=_slowness)
            seen.add(_key(drawn))
            self._enter(drawn, "random" if number < uniformly else "structure", None)
        self._now = [entrant.number for entrant in self.entrants]

    def _unseen(self, rng: random.Random, seen: Set[str]) -> Genotype:
        """A cell drawn uniformly from those that were not seen."""
        while _key(drawn := uniform(self.spaces, rng)) in seen:
            pass
        return drawn

    def _enter(self, genotype: Genotype, origin: str, parent: int | None) -> None:
        number = len(self.entrants)
        entrant = Entrant(number=number, genotype=genotype, origin=origin, parent=parent)
        self.entrants.append(entrant)

    def _children(self, count: int) -> list[int]:
        """Enter children of the best cells so far: in turn of each the one that structure says is
        the likeliest. How good a parent is, its own full training says better than structure.
        """
        known = {_key(entrant.genotype) for entrant in self.entrants}
        fitted = self._structure()
        queues: list[list[tuple[Genotype, int]]] = []
        for place, parent in enumerate(self.finished()[:PARENTS]):
            children = neighbours(self.entrants[parent].genotype, self.spaces)
            random.Random(f"{self.seed}/halving/children/{self._height}/{place}").shuffle(children)
            if fitted is not None:
                children.sort(key=fitted)
            queues.append([(child, parent) for child in reversed(children)])
        first = len(self.entrants)
        while any(queues) and len(self.entrants) - first < count:
            for queue in queues:
                while queue:
                    child, parent = queue.pop()
                    if _key(child) not in known:
                        known.add(_key(child))
                        self._enter(child, "child", parent)
                        break
                if len(self.entrants) - first == count:
                    break
        return list(range(first, len(self.entrants)))

    def _structure(self) -> Structure | None:
        """What structure says of the train loss at the first rung; None with too few cells."""
        stop = self.plan.rounds[0].rungs[0].stop
        losses = {
            entrant.number: outcome.train
            for entrant in self.entrants
            if (outcome := self._told.get((entrant.number, 0, stop))) is not None
            and math.isfinite(outcome.train)
        }
        if len(losses) < _ENOUGH:
            return None
        return Structure([self.entrants[n].genotype for n in losses], list(losses.values()))

    # The course of the race

    @property
    def done(self) -> bool:
        """Whether no training is due any more."""
        return not self._rounds

    @property
    def steps(self) -> int:
        """Weight steps that all trials which are told took together."""
        heights: dict[tuple[int, int], int] = {}
        for number, draw, stop in self._told:
            heights[number, draw] = max(stop, heights.get((number, draw), 0))
        return sum(heights.values())

    def due(self) -> list[Trial]:
        """The trials of the present rung that were not told yet, in order of their numbers."""
        if self.done:
            return []
        return [t for t in self._trials_now() if self._key(t) not in self._told]

    def _trials_now(self) -> list[Trial]:
        each = self._rounds[0]
        rung = each.rungs[self._rung]
        start = each.rungs[self._rung - 1].stop if self._rung else 0
        draw = self._draw(each)
        return [
            Trial(
                number, self.entrants[number].genotype, draw, start, rung.stop, rung.by == "heldout"
            )
            for number in self._now
        ]

    def _draw(self, each: Round) -> int:
        return 1 if each.what == "again" else 0

    @staticmethod
    def _key(trial: Trial) -> tuple[int, int, int]:
        return trial.number, trial.draw, trial.stop

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Note what a trial gave; a loss that is no number counts as infinite."""
        train, heldout = outcome
        train = math.inf if math.isnan(train) else train
        if heldout is not None and (math.isnan(heldout) or train == math.inf):
            heldout = math.inf
        self._told[self._key(trial)] = Outcome(train, heldout)
        while not self.done and not self.due():
            self._promote()

    def _promote(self) -> None:
        """End the present rung: note who goes on, and begin what comes next."""
        each = self._rounds[0]
        rung = each.rungs[self._rung]
        trials = self._trials_now()
        losses = {t.number: _loss(self._told[self._key(t)], rung) for t in trials}
        ranked = sorted(self._now, key=lambda number: (losses[number], number))
        kept = [n for n in ranked[: rung.keep] if math.isfinite(losses[n])]
        self._height, self._rung = self._height + 1, self._rung + 1
        over = self._rung == len(each.rungs) or not kept
        if over:
            self._rounds.pop(0)
            self._rung = 0
        kept = kept[: self._decided(0 if over else len(kept)) or None]
        self.standings += [
            Standing(
                self._height - 1, rung.stop, self.entrants[t.number], t.draw,
                self._told[self._key(t)], t.number in kept,
            )
            for t in trials
        ]  # fmt: skip
        self._now = [] if over else sorted(kept)
        while self._rounds and not self._now:
            self._now = self._entrants_of(self._rounds[0])
            if not self._now:  # every cell diverged, or the space has no other child
                self._rounds.pop(0)

    def _entrants_of(self, each: Round) -> list[int]:
        if each.what == "again":
            return sorted(self.finished()[: each.cells])
        return self._children(each.cells)

    def _decided(self, cells: int) -> int:
        """Cells of the `cells` on the next rung that go on; what is left of the plan may change.

        cells: 0 where a round is over.
        """
        rungs: tuple[Rung, ...] = ()
        done, present = 0, self._rounds[:1] if cells else []
        if present:
            rungs, done = present[0].rungs[self._rung :], present[0].rungs[self._rung - 1].stop
        rounds = tuple(self._rounds[len(present) :])
        if self._height not in self.decided:
            there = Prospect(cells, rungs, rounds, done, len(self.finished()))
            decision = None if self.decide is None else self.decide(there)
            if decision is None:
                return cells
            self.decided[self._height] = decision
        cells, rungs, rounds = self.decided[self._height]
        if present:
            present = [replace(present[0], rungs=present[0].rungs[: self._rung] + rungs)]
        self._rounds = [*present, *rounds]
        return cells

    def end(self) -> None:
        """End the race where it is: the first trainings of its cells decide."""
        self.ended = True
        self._rounds, self._now = [], []

    @property
    def steps_left(self) -> int:
        """Weight steps that are to come at most, those of the present rung's trials included."""
        if self.done:
            return 0
        each = self._rounds[0]
        due, cells, total = self.due(), len(self._now), 0
        for number, rung in enumerate(each.rungs[self._rung :], self._rung):
            begin = each.rungs[number - 1].stop if number else 0
            total += (len(due) if number == self._rung else cells) * (rung.stop - begin)
            cells = min(cells, rung.keep)
        return total + sum(each.steps for each in self._rounds[1:])

    def finished(self) -> list[int]:
        """The cells whose full training was scored, the best first."""
        losses = {
            number: outcome.heldout
            for (number, draw, stop), outcome in self._told.items()
            if draw == 0 and stop == self.plan.steps and outcome.heldout is not None
        }
        there = [number for number in losses if math.isfinite(losses[number])]
        return sorted(there, key=lambda number: (losses[number], number))

    def scores(self, number: int) -> list[float]:
        """Held-out losses of a cell's full trainings, the first draw first."""
        found = (self._told.get((number, draw, self.plan.steps)) for draw in (0, 1))
        return [outcome.heldout for outcome in found if outcome and outcome.heldout is not None]

    @property
    def winner(self) -> Entrant | None:
        """The cell of the least mean held-out loss among those that were trained the most often;
        None where every training diverged.
        """
        there = self.finished()
        if not there:
            return None
        # Second trainings that are not all there would favour whoever has one.
        often = 1 if self.ended else max(len(self.scores(n)) for n in there)
        able = [n for n in there if len(self.scores(n)) >= often]
        means = {n: math.fsum(self.scores(n)[:often]) / often for n in able}
        finite = [n for n in able if math.isfinite(means[n])] or there
        return self.entrants[min(finite, key=lambda n: (means.get(n, math.inf), there.index(n)))]

    # State

    def state(self) -> list[list[Any]]:
        """What was told, as plain values, whatever the order it was told in."""
        return [[*key, *self._told[key]] for key in sorted(self._told)]

    def restore(
        self, state: Sequence[Sequence[Any]], decided: Mapping[int, Decision] | None = None
    ) -> None:
        """Take over what `state` gave, on a race that was told nothing yet and has no `decide`.

        Args:
            decided: what was decided on the way.

        Raises:
            ValueError: where it is of another race.
        """
        self.decided = dict(decided or {})
        left = {(n, draw, stop): Outcome(train, heldout) for n, draw, stop, train, heldout in state}
        while left:
            able = [trial for trial in self.due() if self._key(trial) in left]
            if not able:
                raise ValueError("the state is that of another race")
            for trial in able:
                self.tell(trial, left.pop(self._key(trial)))


def _loss(outcome: Outcome, rung: Rung) -> float:
    value = outcome.train if rung.by == "train" else outcome.heldout
    return math.inf if value is None else value


def _slowness(genotype: Genotype) -> float:
    return slowness(genotype.recurrent)


def _key(genotype: Genotype) -> str:
    """The same for all cells whose nodes have the same edges, in whatever order they stand."""
    nodes = {name: [sorted(genes) for genes in cell.nodes] for name, cell in genotype.cells.items()}
    return repr((nodes, {name: cell.concat for name, cell in genotype.cells.items()}))
