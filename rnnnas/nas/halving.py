"""Successive halving with one-gene children: which cell is trained how far, and which go on.

A `Race` says which trainings are due and is told what they gave. T: weight steps of a full one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Gene, Genotype
from rnnnas.nas.strategies import Spaces, uniform
from rnnnas.nas.structure import Structure

FIRST, MIDDLE = 0.2, 0.5  # of T: where the first two rungs end
LEAST = 2  # cells that a rung sends on: the best of a short training is too often not the best
PARENTS = 3
GENERATION = 5.8  # T that a round of children costs: 18 to 0.2 T, 4 on to 0.5 T, 2 on to T
START = 8.1  # T of the first round that stands before it: 24 to 0.2 T, 6 on to 0.5 T, 3 on to T
AGAIN = 2  # cells that are trained once more with fresh draws; each costs T
THREE = 6.0  # T: from here on there is a rung between the first and the last
CHILDREN_FROM = 10.0  # T: a smaller budget is spent on more cells instead
MOST = 22.0  # T: a larger budget is better spent on longer trainings
_ENOUGH = 8  # cells that must be known before structure says anything


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectConfig:
    """What decides which cell a search returns: the alphas alone, or short trainings.

    by: whether the search's own "alphas" decide, or a "race": short trainings by successive halving
        of cells that the search proposes, published ones and random ones; so that no search returns
        a cell that it can see to be worse than chance. The other settings are of the race
    budget: what all trainings of the race cost together; full trainings of `windows` weight steps
        each; 2 or more; two cells of a dozen then get a full one
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A height that cells are trained to.

    stop: weight steps from the beginning of the training. keep: cells that go on from here. by:
    what they are promoted by: the mean train loss over the second half of the rung, or the loss
    of averaged weights on held-out text.
    """

    stop: int
    keep: int
    by: Literal["train", "heldout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Cells that start together. what: those that were proposed and random ones; one-gene children
    of the best so far; or the best so far, again, with fresh weights, windows and masks.
    """

    what: Literal["start", "children", "again"]
    cells: int
    rungs: tuple[Rung, ...]

    @property
    def steps(self) -> int:
        """Weight steps of all its trainings together."""
        total, cells, begin = 0, self.cells, 0
        for rung in self.rungs:
            total += cells * (rung.stop - begin)
            cells, begin = min(cells, rung.keep), rung.stop
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rounds of a race over full trainings of T `steps`."""

    steps: int
    rounds: tuple[Round, ...]

    @property
    def total_steps(self) -> int:
        """Weight steps of all trainings together, at most."""
        return sum(each.steps for each in self.rounds)

    @property
    def cost(self) -> float:
        """The same in full trainings."""
        return self.total_steps / self.steps

    @property
    def cells(self) -> int:
        """How many different cells are trained, at most."""
        return sum(each.cells for each in self.rounds if each.what != "again")

    @property
    def scorings(self) -> int:
        """How often a cell is scored on held-out text, at most."""
        total = 0
        for each in self.rounds:
            cells = each.cells
            for rung in each.rungs:
                total += cells * (rung.by == "heldout")
                cells = min(cells, rung.keep)
        return total

    def lines(self) -> list[str]:
        """The plan in words, a line a round."""
        said = []
        for each in self.rounds:
            parts = [f"{each.cells} {_NOUNS[each.what]} to step {each.rungs[0].stop}"]
            parts += [
                f"{min(before.keep, each.cells)} on to {rung.stop}"
                for before, rung in zip(each.rungs, each.rungs[1:], strict=False)
            ]
            said.append(", ".join(parts))
        return said


_NOUNS = {"start": "cells", "children": "one-gene children", "again": "with fresh draws"}


def plan_of(budget: float, steps: int, *, least: int = 100, cells: int = 0) -> Plan:
    """The plan that spends `budget` full trainings of `steps` weight steps each.

    Up to 6 T: as many cells as fit are trained to 0.2 T, two of them on to T. Up to 10 T there is
    a rung at 0.5 T between. From then on about 0.6 of it goes to the first round, 0.4 to one-gene
    children of the best, and 2 T to training the best two again; from 20 T on there are more
    rounds of children instead of more first cells.

    Args:
        least: steps of the first rung, at least, as far as T has so many.
        cells: of the space; no more are trained in the first round. 0: no limit.

    Raises:
        UsageError: where the budget does not hold two full trainings.
    """
    if steps < 1 or not budget >= LEAST:
        raise UsageError(
            f"a budget of {budget:g} full trainings of {steps} steps is too small: "
            f"halving trains at least {LEAST} cells in full",
            "raise blackbox.budget, or lower blackbox.windows",
        )
    if budget < CHILDREN_FROM:
        return Plan(
            steps=steps, rounds=(_round("start", budget, steps, least, cells, budget >= THREE),)
        )
    left = budget - AGAIN
    generations = max(1, round((left - START) / GENERATION))
    share = min(GENERATION, left * GENERATION / (START + GENERATION))
    rounds = [_round("start", left - generations * share, steps, least, cells)]
    rounds += [_round("children", share, steps, least)] * generations
    final = Rung(stop=steps, keep=1, by="heldout")
    rounds.append(Round(what="again", cells=AGAIN, rungs=(final,)))
    return Plan(steps=steps, rounds=tuple(rounds))


def plan_for(
    seconds: float,
    seconds_per_step: float,
    steps: int,
    *,
    workers: int = 1,
    least: int = 100,
    cells: int = 0,
) -> Plan:
    """The plan that takes about `seconds`, given the measured time of a weight step.

    What is left over `MOST` full trainings of `steps` lengthens the trainings instead: a longer
    one says more about the end. Where two full trainings do not fit they are shortened to fit.

    Args:
        seconds_per_step: of one cell's training, while `workers` of them run side by side.

    Raises:
        UsageError: where not even two trainings of `least` steps fit.
    """
    there = seconds * workers / seconds_per_step  # weight steps
    if there < LEAST * least:
        raise UsageError(
            f"{seconds:.0f} s are too little: they hold {there:.0f} steps of {seconds_per_step:.2g}"
            f" s, and halving trains {LEAST} cells for {least} steps at least",
            "give more time, or a smaller network with --set model.hidden=...",
        )
    budget = there / steps
    if budget > MOST:
        steps, budget = int(there / MOST), MOST
    elif budget < LEAST:
        steps, budget = int(there / LEAST), float(LEAST)
    return plan_of(budget, steps, least=least, cells=cells)


def _round(
    what: Literal["start", "children"],
    budget: float,
    steps: int,
    least: int,
    limit: int = 0,
    three: bool = True,
) -> Round:
    """The round of the most cells that costs at most `budget`; of two where even they cost more.

    three: whether there is a rung at 0.5 T between the first and the last.
    """
    found = _with(what, LEAST, three, steps, least)
    count = LEAST + 1
    while not limit or count <= limit:
        wider = _with(what, count, three, steps, least)
        if wider.steps > budget * steps + 0.5:
            break
        found, count = wider, count + 1
    return found


def _with(
    what: Literal["start", "children"], cells: int, three: bool, steps: int, least: int
) -> Round:
    first = min(steps, max(math.ceil(FIRST * steps), least))
    middle = math.ceil(MIDDLE * steps)
    quarter, eighth = max(LEAST, round(cells / 4)), max(LEAST, round(cells / 8))
    if first == steps:  # so short that the first rung is all
        rungs = [Rung(stop=steps, keep=1, by="heldout")]
    else:
        rungs = [Rung(stop=first, keep=eighth, by="train"), Rung(stop=steps, keep=1, by="heldout")]
        if three and first < middle < steps and quarter > eighth:
            rungs[0] = Rung(stop=first, keep=quarter, by="train")
            rungs.insert(1, Rung(stop=middle, keep=eighth, by="heldout"))
        elif not three:
            rungs[0] = Rung(stop=first, keep=LEAST, by="train")
    return Round(what=what, cells=cells, rungs=tuple(rungs))


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
    """

    def __init__(
        self,
        spaces: Spaces,
        seed: int,
        plan: Plan,
        proposed: Sequence[Proposal] = (),
        *,
        guards: int = 0,
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
        self._start(proposed, guards)

    # The cells

    def _start(self, proposed: Sequence[Proposal], guards: int) -> None:
        wanted = self._rounds[0].cells
        distinct: dict[str, Proposal] = {}
        for proposal in proposed:
            distinct.setdefault(_key(proposal.genotype), proposal)
        kept = list(distinct.values())
        room = max(LEAST, wanted - guards)
        if len(kept) > room:  # the first and the last among them
            kept = [kept[round(i * (len(kept) - 1) / (room - 1))] for i in range(room)]
        for proposal in kept:
            self._enter(proposal.genotype, proposal.origin, None)
        draws = random.Random(f"{self.seed}/halving/start")
        there = math.prod(space.count() for space in self.spaces.values())
        seen = {_key(entrant.genotype) for entrant in self.entrants}
        fitting = sum(1 for entrant in self.entrants if _fits(entrant.genotype, self.spaces))
        for _ in range(min(wanted - len(kept), there - fitting)):
            while (key := _key(drawn := uniform(self.spaces, draws))) in seen:
                pass
            seen.add(key)
            self._enter(drawn, "random", None)
        self._now = [entrant.number for entrant in self.entrants]

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
        last = self._rung + 1 == len(each.rungs)
        kept = [n for n in ranked[: rung.keep] if math.isfinite(losses[n])]
        self.standings += [
            Standing(
                self._height, rung.stop, self.entrants[t.number], t.draw,
                self._told[self._key(t)], t.number in kept,
            )
            for t in trials
        ]  # fmt: skip
        self._height += 1
        self._now, self._rung = sorted(kept), self._rung + 1
        if last or not kept:
            self._rounds.pop(0)
            self._rung, self._now = 0, []
            while self._rounds and not self._now:
                self._now = self._entrants_of(self._rounds[0])
                if not self._now:  # every cell diverged, or the space has no other child
                    self._rounds.pop(0)

    def _entrants_of(self, each: Round) -> list[int]:
        if each.what == "again":
            return sorted(self.finished()[: each.cells])
        return self._children(each.cells)

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
        often = max(len(self.scores(n)) for n in there)
        able = [n for n in there if len(self.scores(n)) == often]
        means = {n: math.fsum(self.scores(n)) / often for n in able}
        finite = [n for n in able if math.isfinite(means[n])] or there
        return self.entrants[min(finite, key=lambda n: (means.get(n, math.inf), there.index(n)))]

    # State

    def state(self) -> list[list[Any]]:
        """What was told, as plain values, whatever the order it was told in."""
        return [[*key, *self._told[key]] for key in sorted(self._told)]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Take over what `state` gave, on a race that was told nothing yet.

        Raises:
            ValueError: where it is of another race.
        """
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


def _key(genotype: Genotype) -> str:
    return repr(genotype.to_plain())


def _fits(genotype: Genotype, spaces: Spaces) -> bool:
    """Whether the cell is one of the spaces' own; a published one may have more nodes."""
    return genotype.cells.keys() == spaces.keys() and all(
        len(cell.nodes) == spaces[name].nodes
        and cell.concat == spaces[name].concat
        and all(
            len(genes) == spaces[name].keep and all(g.op in spaces[name].ops for g in genes)
            for genes in cell.nodes
        )
        for name, cell in genotype.cells.items()
    )


def neighbours(genotype: Genotype, spaces: Spaces) -> list[Genotype]:
    """Every cell that differs in one gene, its operation or its predecessor; in a fixed order.

    A cell of another number of nodes than its space's, e.g. a published one, has none.
    """
    if not _fits(genotype, spaces):
        return []
    found = []
    for name, cell in genotype.cells.items():
        space = spaces[name]
        for node, genes in enumerate(cell.nodes):
            for slot, gene in enumerate(genes):
                used = {other.source for other in genes}
                rows = space.rows(node)
                options = [
                    Gene(space.ops[o], gene.source) for o in space.choices(rows[gene.source])
                ]
                options += [
                    Gene(gene.op, source)
                    for source, row in enumerate(rows)
                    if source not in used and space.ops.index(gene.op) in space.choices(row)
                ]
                for other in options:
                    if other != gene:
                        changed = (*genes[:slot], other, *genes[slot + 1 :])
                        nodes = (*cell.nodes[:node], changed, *cell.nodes[node + 1 :])
                        cells = {**genotype.cells, name: space.cell(nodes)}
                        found.append(Genotype(cells=cells))
    return found
