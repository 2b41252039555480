"""Searches that train every cell from scratch, replayed on a table instead of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

from rnnnas.errors import DivergedError, UsageError
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.halving import Outcome, Race, Trial
from rnnnas.nas.race_plan import FIRST, plan_of
from rnnnas.nas.strategies import BlackboxConfig, Evolution, RandomCells, Strategy
from rnnnas.tabular.rows import Row
from rnnnas.tabular.table import Table

REPLAYED = ("random", "evolution", "halving")  # methods that train cells from scratch
POPULATION, SAMPLE = 8, 3  # of regularised evolution, as a search's defaults
_FINE = 1000  # parts of a training that a plan of rungs is made in


class Found(NamedTuple):
    """What a search came to. scores: by cell, what it thought of those it looked at, less is
    better; cost: in full trainings; seconds: that it took.
    """

    cell: str
    scores: Mapping[str, float]
    cost: float
    seconds: float = 0.0


@final
@dataclass(frozen=True)
class Replay:
    """One search on a table: its first trainings are those of one seed of the table, trainings with
    fresh draws those of the next.

    Args:
        seed: of the search; decides its draws, and which of the table's seeds it sees.
        budget: full trainings that it may spend.
    """

    table: Table
    seed: int
    budget: float

    def find(self, method: str) -> Found:
        """The cell that a method of `REPLAYED` returns.

        Raises:
            UsageError: for another method.
            DivergedError: where every training that it saw diverged.
        """
        if method == "halving":
            return self._halving()
        total = max(1, round(self.budget))
        spaces = {RECURRENT: self.table.space}
        strategy: Strategy
        if method == "evolution":
            strategy = Evolution(spaces, self.seed, total, population=POPULATION, sample=SAMPLE)
        elif method == "random":
            strategy = RandomCells(spaces, self.seed, total)
        else:
            raise UsageError(f"method {method!r} cannot be replayed on a table")
        while not strategy.done:
            genotype = strategy.ask()
            strategy.tell(genotype, _loss(self._row(genotype, 0)))
        scores = {s.genotype.to_text(): s.loss for s in strategy.history}
        best = strategy.best
        if not math.isfinite(best.loss):
            raise DivergedError("every training that the search saw diverged in this table")
        return Found(best.genotype.to_text(), scores, float(strategy.total))

    def _row(self, genotype: Genotype, draw: int) -> Row:
        """The training of a cell that this search sees; draw: 0, or 1 for fresh draws."""
        own = self._rows[genotype.to_text()]
        return own[(self.seed + draw) % len(own)]

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        return self.table.by_cell()

    def _halving(self) -> Found:
        """A race by its own plan. Its rungs are read off the curve: the mean train loss of the
        parts in a rung's second half, in place of held-out loss on the way, too; at the end, the
        validation loss.
        """
        space = self.table.space
        plan = plan_of(self.budget, _FINE, least=math.ceil(FIRST * _FINE), cells=space.count())
        race = Race({RECURRENT: space}, self.seed, plan, draws=BlackboxConfig().draws)
        scores: dict[str, float] = {}
        while not race.done:
            for trial in race.due():
                race.tell(trial, self._outcome(trial))
        for number in race.finished():
            values = race.scores(number)
            scores[race.entrants[number].genotype.to_text()] = math.fsum(values) / len(values)
        winner = race.winner
        if winner is None:
            raise DivergedError("every training that the search saw diverged in this table")
        return Found(winner.genotype.to_text(), scores, race.steps / _FINE)

    def _outcome(self, trial: Trial) -> Outcome:
        row = self._row(trial.genotype, trial.draw)
        parts = self.table.about["stretches"]
        if trial.stop * parts < _FINE:
            raise UsageError(
                f"the table's curves have {parts} parts, of which none ends by the first rung of "
                f"halving, at {trial.stop / _FINE:g} of a training",
                "make it with more: rnnnas study --preset table --set stretches=10",
            )
        # Every part tells of its own second half, which has to lie in that of the rung.
        over = trial.stop * parts // _FINE
        middle = (trial.start + trial.stop) / 2 / _FINE
        own = [part for part in range(1, over + 1) if (part - 0.5) / parts >= middle - 1e-9]
        own = own or [over]
        whole = own[-1] <= len(row.curve)
        train = math.fsum(row.curve[k - 1] for k in own) / len(own) if whole else math.inf
        heldout = _loss(row) if trial.stop == _FINE else train
        if row.diverged and trial.stop == _FINE:
            train = heldout = math.inf
        return Outcome(train, heldout if trial.heldout else None)


def _loss(row: Row) -> float:
    return math.inf if row.valid is None else math.log(row.valid)
