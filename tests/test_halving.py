"""Successive halving: plans and their cost, promotion, children, and where a race goes on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import RECURRENT, Gene, Genotype
from rnnnas.nas.halving import (
    Outcome,
    Proposal,
    Race,
    SelectConfig,
    Trial,
)
from rnnnas.nas.neighbours import fits, neighbours
from rnnnas.nas.race_plan import Plan, Round, Rung, plan_for, plan_of
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.strategies import uniform
from rnnnas.nas.structure import Structure, features, slowness
from rnnnas.nas.zoo import ZOO

SPACES = {RECURRENT: recurrent_space(8)}
Loss = Callable[[Trial], Outcome]


def worth(genotype: Genotype) -> float:
    """A loss that structure decides: sigmoids are bad, and so is depth."""
    counted = features(genotype)
    return 5.0 + 0.1 * counted.get("sigmoid", 0.0) + 0.02 * counted["depth"]


def honest(trial: Trial) -> Outcome:
    loss = worth(trial.genotype) + 1.0 / trial.stop
    return Outcome(loss, loss if trial.heldout else None)


def raced(race: Race, loss: Loss = honest) -> list[Trial]:
    """Carry a race out; all trials in order."""
    trials = []
    while not race.done:
        for trial in race.due():
            trials.append(trial)
            race.tell(trial, loss(trial))
    return trials


# Plans


@pytest.mark.parametrize("budget", [2, 3, 4, 6, 8, 10, 12, 16, 24, 40])
def test_a_plan_spends_its_budget_and_no_more(budget: float) -> None:
    plan = plan_of(budget, 500)
    assert budget - 0.7 <= plan.cost <= budget + 1e-9  # a cell more costs up to 1 T
    race = Race(SPACES, 1, plan)
    trials = raced(race)
    assert sum(t.stop - t.start for t in trials) == plan.total_steps == race.steps
    assert sum(t.heldout for t in trials) == plan.scorings


def test_the_plan_of_16_full_trainings_is_the_measured_one() -> None:
    start, again = plan_of(16, 500).rounds
    assert start.cells == 29
    assert [(r.stop, r.keep, r.by) for r in start.rungs] == [(150, 7, "train"), (500, 1, "heldout")]
    assert (again.what, again.cells, again.rungs[0].stop) == ("again", 2, 500)
    assert plan_of(16, 500).lines()[0] == "29 cells to step 150, 7 on to 500"


def test_children_come_into_larger_budgets() -> None:
    assert [each.what for each in plan_of(9, 500).rounds] == ["start"]
    start, children, again = plan_of(22, 500).rounds
    assert (start.cells, children.cells, again.cells) == (29, 12, 2)
    kept = [(r.stop, r.keep, r.by) for r in children.rungs]
    assert kept == [(150, 3, "train"), (500, 1, "heldout")]
    assert [each.what for each in plan_of(30, 500).rounds].count("children") == 2


@pytest.mark.parametrize("budget", [2, 4, 6, 9, 10, 11, 16, 30])
@pytest.mark.parametrize("steps", [150, 200, 500, 5000])
def test_no_rung_sends_one_cell_on_alone(budget: float, steps: int) -> None:
    for each in plan_of(budget, steps).rounds:
        assert each.rungs[0].stop >= min(100, steps) and each.rungs[-1].stop == steps
        for before, after in pairwise(each.rungs):
            assert before.keep >= 2 and before.stop < after.stop
        assert all(rung.by == "heldout" for rung in each.rungs[1:])


def test_a_short_training_is_one_rung() -> None:
    (each,) = plan_of(4, 80).rounds
    assert [(r.stop, r.by) for r in each.rungs] == [(80, "heldout")] and each.cells == 4


def test_a_small_space_limits_the_first_round() -> None:
    tiny = {RECURRENT: recurrent_space(1)}
    plan = plan_of(4, 500, cells=4)
    assert plan.cells == 4
    race = Race(tiny, 1, plan)
    assert len({repr(e.genotype) for e in race.entrants}) == 4
    # More are planned than there are: what there is takes part.
    assert len(Race(tiny, 1, plan_of(4, 500)).entrants) == 4
    raced(Race(tiny, 1, plan_of(22, 500)))  # and there are no children left


def test_a_plan_from_seconds_is_the_plan_of_its_budget() -> None:
    for seconds in range(60, 1400, 7):
        plan = plan_for(float(seconds), 0.05, 500, workers=2)
        assert plan_of(plan.budget, plan.steps) == plan, seconds


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="too small"):
        plan_of(1.9, 500)
    for name, value in {"budget": 1.0, "windows": -1, "rung": 0, "guards": -1}.items():
        with pytest.raises(UsageError, match=f"select.{name}"):
            SelectConfig(**{name: value})  # type: ignore[arg-type]


def test_a_plan_from_seconds_fits_them() -> None:
    for seconds in (30.0, 200.0, 600.0, 3600.0):
        plan = plan_for(seconds, 0.05, 500, workers=2)
        assert 0.9 * seconds <= plan.total_steps * 0.05 / 2 <= seconds * 1.001
    # An hour is spent on longer trainings, not on ever more cells.
    assert plan_for(3600, 0.05, 500, workers=2).steps > 3000
    # Half a minute holds fewer than two full trainings of one worker: they are shorter.
    short = plan_for(30.0, 0.05, 500)
    assert short.steps == 300 and short.cells == 2
    with pytest.raises(UsageError, match="too little"):
        plan_for(5.0, 0.05, 500)


# Promotion


def test_the_first_rung_promotes_by_train_loss_and_later_ones_by_heldout() -> None:
    rungs = (
        Rung(stop=10, keep=3, by="train"),
        Rung(stop=20, keep=2, by="heldout"),
        Rung(stop=40, keep=1, by="heldout"),
    )
    plan = Plan(steps=40, rounds=(Round(what="start", cells=5, rungs=rungs),))
    race = Race(SPACES, 1, plan)
    train = [5.0, 1.0, 4.0, 2.0, 3.0]
    held = [0.0, 9.0, 0.0, 8.0, 7.0]

    def loss(trial: Trial) -> Outcome:
        return Outcome(train[trial.number], held[trial.number] if trial.heldout else None)

    trials = raced(race, loss)
    spans = [(t.number, t.start, t.stop, t.heldout) for t in trials]
    assert spans[5:] == [
        (1, 10, 20, True), (3, 10, 20, True), (4, 10, 20, True), (3, 20, 40, True),
        (4, 20, 40, True),
    ]  # fmt: skip
    assert [(s.entrant.number, s.kept) for s in race.standings[:5]] == [
        (0, False), (1, True), (2, False), (3, True), (4, True),
    ]  # fmt: skip
    assert race.winner is not None and race.winner.number == 4
    assert race.finished() == [4, 3]


def test_a_diverged_cell_has_an_infinite_loss_and_goes_nowhere() -> None:
    plan = plan_of(4, 500)
    for bad in (math.inf, math.nan):
        race = Race(SPACES, 1, plan)
        best = min(range(plan.cells), key=lambda n: worth(race.entrants[n].genotype))

        def loss(trial: Trial, bad: float = bad, best: int = best) -> Outcome:
            fine = honest(trial)
            return Outcome(bad, fine.heldout and bad) if trial.number == best else fine

        raced(race, loss)
        assert race.winner is not None and race.winner.number != best
        assert [s.kept for s in race.standings if s.entrant.number == best] == [False]


@pytest.mark.parametrize("budget", [4, 16])
def test_where_every_cell_diverges_nobody_wins(budget: float) -> None:
    race = Race(SPACES, 1, plan_of(budget, 500))
    trials = raced(race, lambda trial: Outcome(math.inf, math.inf))
    assert race.winner is None and race.finished() == []
    assert len(trials) == race.plan.rounds[0].cells


def test_the_winner_is_chosen_by_the_mean_of_both_draws() -> None:
    plan = plan_of(16, 500)
    first: list[int] = []

    def loss(trial: Trial) -> Outcome:
        fine = honest(trial)
        # What was the best is bad with fresh weights, windows and masks.
        if trial.draw and trial.number == first[0]:
            return Outcome(9.0, 9.0)
        return fine

    race = Race(SPACES, 1, plan)
    while not race.done:
        for trial in race.due():
            if trial.draw and not first:
                first.append(race.finished()[0])
            race.tell(trial, loss(trial))
    assert race.winner is not None and race.winner.number != first[0]
    assert len(race.scores(race.winner.number)) == 2
    again = [s for s in race.standings if s.draw == 1]
    assert {s.entrant.number for s in again} == {race.winner.number, first[0]}


def test_a_race_that_time_ended_goes_by_the_first_draws() -> None:
    """A second training that not all have got to favours nobody."""
    race = Race(SPACES, 1, plan_of(16, 500))
    while not any(trial.draw for trial in race.due()):
        for trial in race.due():
            race.tell(trial, honest(trial))
    best, second = race.finished()[:2]
    (again,) = [trial for trial in race.due() if trial.number == second]
    race.tell(again, Outcome(0.1, 0.1))
    race.end()
    assert race.done and race.winner is not None and race.winner.number == best


def test_a_heldout_loss_that_is_no_number_is_infinite() -> None:
    race = Race(SPACES, 1, plan_of(4, 500))
    worthless: list[int] = []

    def loss(trial: Trial) -> Outcome:
        if trial.heldout and not worthless:
            worthless.append(trial.number)
            return Outcome(1.0, math.nan)
        return honest(trial)

    raced(race, loss)
    assert race.scores(worthless[0]) == [math.inf] and worthless[0] not in race.finished()
    assert race.winner is not None and race.winner.number != worthless[0]


# Children


def test_neighbours_are_all_cells_with_one_other_gene() -> None:
    spaces = {RECURRENT: recurrent_space(3)}
    cell = Genotype.from_text("tanh0 relu1 sigmoid0")
    found = neighbours(cell, spaces)
    assert len({repr(child.to_plain()) for child in found}) == len(found) == 3 * 3 + 0 + 1 + 2
    for child in found:
        pairs = zip(cell.recurrent.nodes, child.recurrent.nodes, strict=True)
        changed = [(a[0], b[0]) for a, b in pairs if a != b]
        assert len(changed) == 1
        (old, new), *_ = changed
        assert (old.op == new.op) != (old.source == new.source)
    assert neighbours(ZOO["ENAS"].genotype, SPACES) == []  # of eleven nodes


@pytest.mark.parametrize(
    "more", [{"output": "last"}, {"output": "loose_ends"}, {"edges_per_node": 2}]
)
def test_cells_of_other_spaces_have_neighbours_too(more: dict[str, Any]) -> None:
    space = recurrent_space(4, **more)
    spaces = {RECURRENT: space}
    cell = Genotype(cells={RECURRENT: space.sample(random.Random(3))})
    found = neighbours(cell, spaces)
    assert found and all(fits(child, spaces) for child in found)
    for child in found:
        for genes in child.recurrent.nodes:
            assert len({gene.source for gene in genes}) == len(genes)
    race = Race(spaces, 1, plan_of(24, 500))
    while not race.done:
        for trial in race.due():
            race.tell(trial, Outcome(float(trial.number), float(trial.number)))
    assert any(entrant.parent is not None for entrant in race.entrants)
    assert not fits(cell, SPACES)


def test_a_cell_of_two_edges_a_node_is_one_cell_in_any_order() -> None:
    spaces = {RECURRENT: recurrent_space(2, edges_per_node=2)}
    space = spaces[RECURRENT]
    genes = Gene("tanh", 0), Gene("relu", 1)
    orders = [(*genes,), genes[::-1]]
    cells = [Genotype(cells={RECURRENT: space.cell(((genes[0],), order))}) for order in orders]
    assert all(fits(cell, spaces) for cell in cells)
    race = Race(spaces, 1, plan_of(4, 500), [Proposal(cell, "here") for cell in cells])
    assert [entrant.origin for entrant in race.entrants].count("here") == 1
    one_edge = Genotype(cells={RECURRENT: space.cell(((genes[0],), (genes[1],)))})
    assert not fits(one_edge, spaces)


def test_a_small_space_with_a_proposal_is_raced_whole() -> None:
    spaces = {RECURRENT: recurrent_space(1)}
    proposed = [Proposal(Genotype.from_text("relu0"), "here")]
    race = Race(spaces, 1, plan_of(4, 500), proposed)
    assert {e.genotype.to_text() for e in race.entrants} == {
        "tanh0", "relu0", "sigmoid0", "identity0"
    }  # fmt: skip
    assert len(race.entrants) == 4


def test_children_are_new_and_of_the_three_best() -> None:
    race = Race(SPACES, 1, plan_of(22, 500))
    raced(race)
    children = [e for e in race.entrants if e.parent is not None]
    assert len(children) == 12
    assert len({repr(e.genotype) for e in race.entrants}) == 41
    before = [s for s in race.standings if s.stop == 500 and s.entrant.parent is None]
    best = sorted((s for s in before if not s.draw), key=lambda s: s.outcome.heldout or 0)[:3]
    parents = [child.parent for child in children]
    assert {n: parents.count(n) for n in parents} == {s.entrant.number: 4 for s in best}
    for child in children:
        assert child.parent is not None
        nodes = race.entrants[child.parent].genotype.recurrent.nodes
        pairs = zip(nodes, child.genotype.recurrent.nodes, strict=True)
        assert sum(a != b for a, b in pairs) == 1


def test_structure_puts_the_likelier_children_first() -> None:
    """Where sigmoids are what is bad, children with fewer of them are tried."""
    better = 0
    for seed in range(8):
        race = Race(SPACES, seed, plan_of(22, 500))
        raced(race)
        children = [e for e in race.entrants if e.parent is not None]
        gains = []
        for child in children:
            assert child.parent is not None
            parent = race.entrants[child.parent].genotype
            gains.append(worth(child.genotype) - worth(parent))
        drawn = [
            worth(other) - worth(race.entrants[child.parent or 0].genotype)
            for child in children
            for other in neighbours(race.entrants[child.parent or 0].genotype, SPACES)
        ]
        better += np.mean(gains) < np.mean(drawn)
        assert race.winner is not None
        assert worth(race.winner.genotype) <= min(worth(e.genotype) for e in race.entrants[:29])
    assert better == 8


def test_structure_is_a_ridge_regression() -> None:
    rng = random.Random(2)
    cells = [Genotype(cells={RECURRENT: SPACES[RECURRENT].sample(rng)}) for _ in range(30)]
    losses = [worth(cell) + rng.gauss(0, 0.01) for cell in cells]
    fitted = Structure(cells, losses)
    names = sorted({name for cell in cells for name in features(cell)})
    x = np.array([[features(cell).get(name, 0.0) for name in names] for cell in cells])
    z = (x - x.mean(0)) / x.std(0)
    y = np.array(losses)
    # The ridge as ordinary least squares on data with one more row a feature.
    rows = np.vstack([z, np.eye(len(names))])
    gradients, *_ = np.linalg.lstsq(rows, np.r_[y - y.mean(), np.zeros(len(names))], rcond=None)
    expected = y.mean() + z @ gradients
    assert [fitted(cell) for cell in cells] == pytest.approx(list(expected), rel=1e-9)


def test_features_of_a_cell_counted_by_hand() -> None:
    counted = features(Genotype.from_text("tanh0 relu1 sigmoid0 tanh2"))
    assert counted == {
        "tanh": 2, "relu": 1, "sigmoid": 1, "inputs": 2, "depth": 3,
        "mean depth": (0 + 1 + 2 + 1 + 3) / 4,
    }  # fmt: skip


def test_one_or_two_sigmoids_of_eight_and_short_ways_are_the_likeliest() -> None:
    def of(text: str) -> float:
        return slowness(Genotype.from_text(text).recurrent)

    cells = [
        " ".join(["sigmoid0"] * count + ["tanh0"] * (8 - count)) for count in (1, 2, 0, 3, 4, 8)
    ]
    slow = [of(cell) for cell in cells]
    assert slow == sorted(slow) and len(set(slow)) == 6
    assert of("tanh0 tanh1 sigmoid0") == pytest.approx(0.1 * (1 / 3 - 0.15) + 0.03 * 4 / 3)
    # Of two edges the shorter way counts.
    assert of("tanh0+sigmoid0 relu0+relu1") == pytest.approx(0.1 * (1 / 4 - 0.15) + 0.03)


def test_most_random_cells_are_the_best_by_structure_of_several_draws() -> None:
    plan = plan_of(16, 500)
    uniform = Race(SPACES, 1, plan).entrants
    race = Race(SPACES, 1, plan, draws=4).entrants
    assert len(race) == len(uniform) == plan.rounds[0].cells
    assert {entrant.origin for entrant in uniform} == {"random"}
    count = math.ceil(len(race) / 4)
    assert [entrant.origin for entrant in race] == [
        *["random"] * count, *["structure"] * (len(race) - count)
    ]  # fmt: skip
    # Those by chance are what they are without, so that they are a fair sample.
    assert race[:count] == uniform[:count]
    assert len({entrant.genotype.to_text() for entrant in race}) == len(race)
    drawn = [[slowness(e.genotype.recurrent) for e in part] for part in (uniform, race[count:])]
    assert np.mean(drawn[1]) < np.mean(drawn[0]) - 0.5 * np.std(drawn[0])
    # Guards are drawn by chance; all of a small space are in the race once.
    guarded = Race(SPACES, 1, plan_of(6, 500), guards=6, draws=4).entrants
    assert [e.origin for e in guarded] == [*["random"] * 6, *["structure"] * 7]
    tiny = {RECURRENT: recurrent_space(1)}
    few = Race(tiny, 1, plan_of(4, 500), draws=4).entrants
    assert len({e.genotype.to_text() for e in few}) == len(few) == 4


# Proposals


def test_proposals_race_beside_guards() -> None:
    rng = random.Random(5)
    space = SPACES[RECURRENT]
    cells = [Genotype(cells={RECURRENT: space.sample(rng)}) for _ in range(30)]
    proposed = [Proposal(cell, f"epoch {i}") for i, cell in enumerate([*cells, cells[0]])]
    race = Race(SPACES, 1, plan_of(6, 500), proposed, guards=6)
    origins = [entrant.origin for entrant in race.entrants]
    assert len(origins) == 13 and origins.count("random") == 6
    assert origins[0] == "epoch 0" and origins[6] == "epoch 29"
    few = Race(SPACES, 1, plan_of(6, 500), proposed[:2], guards=6)
    assert [e.origin for e in few.entrants] == ["epoch 0", "epoch 1", *["random"] * 11]
    # A published cell of other size races as well.
    odd = Race(SPACES, 1, plan_of(4, 500), [Proposal(ZOO["ENAS"].genotype, "ENAS")])
    assert len(odd.entrants) == 8 and odd.entrants[0].origin == "ENAS"


# State


def test_the_order_of_telling_changes_nothing() -> None:
    one, other = (Race(SPACES, 3, plan_of(12, 500)) for _ in range(2))
    raced(one)
    rng = random.Random(0)
    while not other.done:
        trial = rng.choice(other.due())
        other.tell(trial, honest(trial))
    assert one.state() == other.state() and one.standings == other.standings
    assert one.winner == other.winner


def test_a_race_goes_on_from_every_state() -> None:
    whole = Race(SPACES, 3, plan_of(12, 500))
    trials = raced(whole)
    race = Race(SPACES, 3, plan_of(12, 500))
    for trial in trials:
        race.tell(trial, honest(trial))
        again = Race(SPACES, 3, plan_of(12, 500))
        again.restore(race.state())
        assert again.due() == race.due() and again.standings == race.standings
    assert race.winner == whole.winner
    with pytest.raises(ValueError, match="another race"):
        Race(SPACES, 3, plan_of(4, 500)).restore(whole.state())


def test_a_seed_decides_the_cells() -> None:
    plan = plan_of(4, 500)
    cells = [[e.genotype for e in Race(SPACES, seed, plan).entrants] for seed in (1, 1, 2)]
    assert cells[0] == cells[1] != cells[2]
    assert all(isinstance(gene, Gene) for node in cells[0][0].recurrent.nodes for gene in node)


def test_chance_takes_part_in_the_smallest_race() -> None:
    spaces = {RECURRENT: recurrent_space(8)}
    rng = random.Random(1)
    proposed = [Proposal(uniform(spaces, rng), f"p{i}") for i in range(14)]
    for budget in (2.0, 2.5, 3.0, 6.0):
        race = Race(spaces, 1, plan_of(budget, 500), proposed=proposed, guards=6)
        origins = [entrant.origin for entrant in race.entrants]
        chance = [o for o in origins if o == "random"]
        assert len(chance) >= min(6, len(origins) // 2) and "p0" in origins
