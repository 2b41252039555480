"""Time budgets: what is planned, how a run keeps to it as the machine's speed changes, resuming."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_home import corpus, home  # noqa: F401  (fixtures)

from rnnnas.cli import runs
from rnnnas.config.plain import to_plain
from rnnnas.config.presets import resolve
from rnnnas.config.recipes import LEAN_RECIPES, RECIPES, Reading, Recipe, recipe
from rnnnas.data.corpus import Corpus, VocabOptions, add_corpus
from rnnnas.distributed import ALONE
from rnnnas.engine import budget
from rnnnas.engine.budget import (
    Costs,
    Course,
    Pace,
    Plan,
    Stopwatch,
    make_plan,
    read_plan,
)
from rnnnas.engine.job import Position
from rnnnas.engine.text_task import alpha_text
from rnnnas.errors import CheckpointError, DataError, UsageError
from rnnnas.nas.perturbation import Perturbation
from rnnnas.runs.checkpoint import load_content
from rnnnas.runs.files import write_json
from rnnnas.searching import costs as search_costs
from rnnnas.searching import run as searching
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.run import job_of, search
from rnnnas.searching.supernet import SearchJob
from rnnnas.training import reading
from rnnnas.training import run as training
from rnnnas.training.run import TrainJob, train

pytestmark = pytest.mark.usefixtures("undrawn")  # test_alphas_log looks at images

CPU = torch.device("cpu")


class FakeClock:
    """A clock that goes where it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run_by(
    pace: Pace, clock: FakeClock, plan: Plan, step_seconds: Callable[[float], float]
) -> float:
    """Go through a run whose steps take `step_seconds(share of the budget gone)`; its time."""
    began = clock.now
    rounds, number = plan.rounds, 0
    while number < rounds:
        for _ in range(pace.steps(number)):
            clock.now += step_seconds((clock.now - began) / plan.seconds)
        over = pace.trained(number)
        if over:
            rounds = number + 1
        elif pace.validates(number):
            before = clock.now
            clock.now += plan.costs.validation
            pace.validated(clock.now - before)
        number += 1
    clock.now += plan.costs.end * step_seconds(1.0) / plan.costs.step
    return clock.now - began


PLANS = [
    (120.0, Costs(step=0.05, validation=3.0, end=8.0)),
    (20.0, Costs(step=0.02, validation=0.2, end=1.0)),
    (600.0, Costs(step=0.4, validation=20.0, end=40.0)),
    (36_000.0, Costs(step=0.1, validation=30.0, end=60.0)),
]


@pytest.mark.parametrize(("seconds", "costs"), PLANS)
@pytest.mark.parametrize(
    "speed",
    [
        lambda share: 1.0,
        lambda share: 2.0,
        lambda share: 0.5,
        lambda share: 1.0 if share < 0.5 else 2.0,
        lambda share: 2.0 if share < 0.5 else 1.0,
        lambda share: 1.0 + share,
        lambda share: 1.0 + 0.3 * math.sin(40 * share),
    ],
)
def test_a_budget_is_kept_though_the_speed_changes(
    seconds: float, costs: Costs, speed: Callable[[float], float]
) -> None:
    clock = FakeClock()
    plan = make_plan(seconds, 0.0, costs)
    pace = Pace(plan, Stopwatch(clock=clock))
    took = run_by(pace, clock, plan, lambda share: costs.step * speed(share))
    assert abs(took - seconds) < 0.1 * seconds


def test_a_steady_machine_keeps_every_planned_step() -> None:
    for seconds, costs in PLANS:
        clock = FakeClock()
        plan = make_plan(seconds, 0.0, costs)
        pace = Pace(plan, Stopwatch(clock=clock))
        run_by(pace, clock, plan, lambda share, costs=costs: costs.step)
        assert pace.rounds == [plan.steps] * plan.rounds


def test_a_plan_spends_little_on_validation_and_saves_often() -> None:
    for seconds, costs in PLANS:
        plan = make_plan(seconds, 5.0, costs)
        validations = math.ceil(plan.rounds / plan.every) - 1
        assert validations * costs.validation <= budget.VALIDATION_SHARE * seconds
        assert plan.rounds >= 5 and seconds / plan.rounds <= 600
        whole = plan.rounds * plan.steps * costs.step + validations * costs.validation
        assert whole + 5 + costs.end == pytest.approx(seconds, rel=0.03)


def test_a_budget_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="10 s are too few") as error:
        make_plan(10.0, 6.0, Costs(step=0.1, validation=4.0, end=9.0))
    assert "seconds or more" in error.value.remedy


def test_a_pace_goes_on_where_it_was_saved() -> None:
    costs = Costs(step=0.1, validation=1.0, end=3.0)
    plan = make_plan(100.0, 0.0, costs)
    clock = FakeClock()
    pace = Pace(plan, Stopwatch(clock=clock))
    for number in range(3):
        clock.now += 0.13 * pace.steps(number)
        pace.trained(number)
    pace.steps(3)
    saved = pace.state()
    assert saved["rounds"] == pace.rounds and len(pace.rounds) == 4
    clock.now += 10_000  # the machine was off
    again = Pace(plan, Stopwatch(clock=clock))
    clock.now += 4  # it starts
    again.restore(saved)
    assert again.rounds == pace.rounds
    assert again.spent() == pytest.approx(saved["spent"] + 4)
    # A return to the last good state undoes steps, not time.
    clock.now += 20
    again.restore(saved)
    assert again.spent() == pytest.approx(saved["spent"] + 24)


def test_a_plan_is_kept_in_the_run_folder(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    plan = make_plan(100.0, 2.0, Costs(step=0.1, validation=1.0, end=3.0))
    budget.write_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan
    (tmp_path / budget.PLAN).write_text('{"seconds": 3}')
    with pytest.raises(CheckpointError, match=r"plan\.json is damaged"):
        read_plan(tmp_path)


def test_a_course_reads_every_window_of_every_pass_once() -> None:
    passes = {0: [3, 4, 5], 1: [6, 6], 2: [2, 2, 2]}
    course = Course(lambda number: passes[number])
    assert course.lengths(0, 8) == [3, 4, 5, 6, 6, 2, 2, 2]
    assert course.lengths(2, 3) == [5, 6, 6]
    places = [course.place(Position(epoch=7, step=k, progress=0.5)) for k in range(8)]
    assert [(p.epoch, p.window, p.start) for p in places] == [
        (0, 0, 0), (0, 1, 3), (0, 2, 7), (1, 0, 0), (1, 1, 6), (2, 0, 0), (2, 1, 2), (2, 2, 4),
    ]  # fmt: skip
    assert {(p.step, p.progress) for p in places} == {(k, 0.5) for k in range(8)}


def test_a_measurement_that_would_refuse_is_taken_again(tmp_path: Path) -> None:
    bad, good = (Costs(step=0.1, validation=1.0, end=end) for end in (90.0, 3.0))
    measured = [good, bad]
    clock = FakeClock()
    plan = budget.planned(
        100.0, tmp_path, Stopwatch(clock=clock), fresh=False, ranks=ALONE, measure=measured.pop
    )
    assert plan.costs == good and not measured


# Trainings


TRAIN = ["model.hidden=8", "windows.streams=6", "valid_streams=4", "test_streams=4"]
CELL = {"recurrent": {"nodes": [[["tanh", 0]], [["relu", 1]], [["sigmoid", 1]]], "concat": [1, 3]}}


def train_config(*settings: str, **flags: Any) -> Any:
    flags = {"corpus": "tiny", "seed": 3, "genotype": CELL, **flags}
    return resolve("train", preset="smoke", file=None, settings=[*TRAIN, *settings], flags=flags)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """A clock that a training's step moves on by 0.1 s and a validation by 0.5 s."""
    clock = FakeClock()
    step, validated = TrainJob.step, TrainJob._validated

    def slow_step(self: TrainJob, *args: Any) -> Any:
        clock.now += 0.1
        return step(self, *args)

    def slow_validated(self: TrainJob, *args: Any) -> Any:
        clock.now += 0.5
        return validated(self, *args)

    monkeypatch.setattr(TrainJob, "step", slow_step)
    monkeypatch.setattr(TrainJob, "_validated", slow_validated)
    costs = Costs(step=0.1, validation=0.5, end=1.0)
    monkeypatch.setattr(training, "training_costs", lambda *_: costs)
    return clock


def test_a_training_ends_in_its_budget_and_says_so(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
    ticking: FakeClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watch = Stopwatch(clock=ticking)
    result = train(
        train_config(), corpus, tmp_path / "run", device=CPU, minutes=0.2, stopwatch=watch
    )
    assert result["budget_seconds"] == 12.0
    assert 10.5 < result["spent_seconds"] < 12.5
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("12 s")]
    assert len(said) == 1 and "a step takes 100 ms" in said[0]
    state = load_content(tmp_path / "run" / "state.pt")["state"]
    assert sum(state["job"]["pace"]["rounds"]) == result["steps"] == state["position"]["step"]
    assert state["position"]["progress"] == 1.0  # the schedule came to its end
    plan = read_plan(tmp_path / "run")
    assert plan is not None and plan.seconds == 12.0


class Crash(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize("save", ["0", "1000"])
def test_a_budgeted_training_resumes_exactly(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
    ticking: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    save: str,
) -> None:
    config = train_config(f"save_seconds={save}", "weights.schedule=cosine", seconds=12.0)

    def run(name: str) -> dict[str, Any]:
        watch = Stopwatch(clock=ticking)
        return train(config, corpus, tmp_path / name, device=CPU, quiet=True, stopwatch=watch)

    whole = run("whole")
    left = [3, 20, 21, 57, whole["steps"] - 1]
    step = TrainJob.step

    def dying(self: TrainJob, at: Position, *args: Any) -> Any:
        if left and at.step == left[0]:
            left.pop(0)
            raise Crash
        return step(self, at, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainJob, "step", dying)
        crashes = 0
        while True:
            try:
                resumed = run("cut")
                break
            except Crash:
                crashes += 1
                # Steps that died with their process took none of the budget.
                patch.setattr(training, "training_costs", None)  # the plan is not made anew
    assert crashes == 5 and not left
    assert resumed["digest"] == whole["digest"]
    assert resumed["steps"] == whole["steps"]


def test_a_time_and_epochs_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="how many epochs"):
        train_config("epochs=3", seconds=10.0)
    with pytest.raises(UsageError, match="finetune"):
        train_config("weights.finetune_epochs=1", seconds=10.0)
    assert train_config(seconds=10.0).windows.limit == 0
    assert train_config("windows.limit=7", seconds=10.0).windows.limit == 7


# Searches


def search_config(*settings: str, **flags: Any) -> Any:
    small = ["model.hidden=8", "model.nodes=3", "windows.streams=6", "valid_streams=6"]
    flags = {"corpus": "tiny", "seed": 3, **flags}
    return resolve("search", preset="smoke", file=None, settings=[*small, *settings], flags=flags)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("darts-1st", ("derive.by=perturbation", "derive.tune_windows=1")), ("random", ()),
     pytest.param("darts-1st", (), marks=pytest.mark.slow),
     pytest.param("random-ws", ("blackbox.cells=3",), marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_search_keeps_its_budget_and_resumes_exactly(
    method: str,
    settings: tuple[str, ...],
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    costs = Costs(step=0.3, validation=0.2, end=0.5)
    monkeypatch.setattr(searching, "search_costs", lambda *_: costs)
    kinds = (SearchJob, CandidateJob)
    left: list[int] = []
    for kind in kinds:
        step = kind.step

        def slow(self: Any, at: Position, *args: Any, step: Any = step) -> Any:
            if left and at.step == left[0]:
                left.pop(0)
                raise Crash
            clock.now += 0.3
            return step(self, at, *args)

        monkeypatch.setattr(kind, "step", slow)
    config = search_config("save_seconds=1000", *settings, method=method, seconds=6.0)

    def run(name: str) -> dict[str, Any]:
        watch = Stopwatch(clock=clock)
        return search(config, corpus, tmp_path / name, device=CPU, quiet=True, stopwatch=watch)

    whole = run("whole")
    assert 5.0 < whole["spent_seconds"] < 6.6
    left += [2, 7, whole["steps"] - 1]
    for _ in range(3):
        with pytest.raises(Crash):
            run("cut")
    resumed = run("cut")
    assert (resumed["digest"], resumed["steps"]) == (whole["digest"], whole["steps"])


def test_a_small_space_ends_a_resumed_search_by_trials(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two cells are all there are, however many the time would hold."""
    costs = Costs(step=0.1, validation=0.1, end=0.1)
    monkeypatch.setattr(searching, "search_costs", lambda *_: costs)
    step, left = CandidateJob.step, [3]

    def dying(self: CandidateJob, at: Position, *args: Any) -> Any:
        if left and at.step == left[0]:
            left.pop(0)
            raise Crash
        return step(self, at, *args)

    monkeypatch.setattr(CandidateJob, "step", dying)
    small = ("save_seconds=0", "space.nodes=1", 'space.ops=["tanh","relu"]')
    config = search_config(*small, method="random", seconds=30.0)
    clock = FakeClock()

    def go() -> dict[str, Any]:
        watch = Stopwatch(clock=clock)
        return search(config, corpus, tmp_path / "r", device=CPU, quiet=True, stopwatch=watch)

    with pytest.raises(Crash):
        go()
    assert go()["cell"] in ("tanh0", "relu0")


@pytest.mark.parametrize(
    ("words", "count"),
    [(("method=random-ws", "blackbox.cells=7", "blackbox.targets=120"), 7),
     (("method=darts-1st", "derive.by=perturbation", "derive.tune_windows=0",
       "derive.targets=120"), None)],
)  # fmt: skip
def test_a_time_counts_the_targets_that_are_scored(
    corpus: Corpus,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    count: int | None,
) -> None:
    monkeypatch.setattr(search_costs, "measure_pass", lambda *_: 0.5)
    monkeypatch.setattr(search_costs, "measure_step", lambda *_: 1.0)
    config = search_config("windows.bptt=5", *words)
    job: Any = job_of(config, corpus, CPU)
    found = search_costs.search_costs(job, corpus, left=100.0)
    if count is None:  # every operation of every edge but the last one of each, and the edges
        assert job.alphas is not None
        count = Perturbation(job.net.space, {n: t.softmax(-1) for n, t in job.alphas.items()},
                             config.derive.order, config.seed).total  # fmt: skip
    windows = min(120, len(alpha_text(config, corpus))) / (5 * 6)
    assert found.end == pytest.approx(
        search_costs.FILES_SECONDS + 0.5 + 0.5 + 0.5 * count * windows
    )


def test_cells_that_are_compared_get_the_same_steps_and_as_many_cells_as_fit() -> None:
    plan = make_plan(100.0, 0.0, Costs(step=0.1, validation=1.0, end=2.0), equal=8)
    for speed, most in ((0.5, 20), (1.0, 9), (2.0, 5)):
        clock = FakeClock()
        pace = Pace(plan, Stopwatch(clock=clock))
        number = 0
        while True:
            assert pace.steps(number) == plan.steps
            clock.now += 0.1 * speed * plan.steps
            over = pace.trained(number)
            clock.now += 1.0 * speed
            pace.validated(1.0 * speed)
            number += 1
            if over:
                break
        assert number <= most and pace.total() == number
        assert clock.now - 1000.0 < 108.0


# The length of a run that has no budget


def test_a_small_text_is_read_more_often(corpus: Corpus) -> None:  # noqa: F811
    flags = {"corpus": "tiny", "genotype": "GRU", "seed": 1}

    def job(kind: str, *settings: str, preset: str = "quick") -> Any:
        sets = ["model.hidden=4", "windows.streams=4", "valid_streams=4", *settings]
        sets += [] if kind == "train" else ["method=darts-1st"]  # a race has its steps by itself
        own = dict(flags) if kind == "train" else {"corpus": "tiny", "seed": 1}
        sets += ["test_streams=4"] if kind == "train" else []
        config = resolve(kind, preset=preset, file=None, settings=sets, flags=own)
        if kind == "train":
            return TrainJob(config, corpus, CPU)
        return job_of(config, corpus, CPU)

    for kind, least in (("train", 6640), ("search", 900)):
        longer = job(kind)
        counts = [len(longer.lengths(epoch)) for epoch in range(longer.epochs)]
        assert sum(counts[:-1]) < least <= sum(counts)
        assert job(kind, "epochs=2").epochs == 2  # what is said is done
        assert longer.config.least_steps == 0  # and what is done is said
    assert job("train", preset="ptb-medium").epochs == 6


def test_a_text_that_is_too_small_is_refused(
    home: Path,  # noqa: F811
) -> None:
    (home / "small").mkdir()
    for split, lines in (("train", 100), ("valid", 20), ("test", 20)):
        text = "\n".join(f"some words {k % 9} of {k % 7} lines" for k in range(lines)) + "\n"
        (home / "small" / f"{split}.txt").write_text(text, encoding="utf-8")
    small = add_corpus("small", home / "small", VocabOptions())
    assert isinstance(small, Corpus)
    with pytest.raises(DataError, match="too few to learn from"):
        TrainJob(train_config(corpus="small"), small, CPU)
    with pytest.raises(DataError, match="too few to learn from"):
        job_of(search_config(corpus="small"), small, CPU)


def test_a_recipe_gives_way_to_what_is_said() -> None:
    def config(*settings: str, **more: Any) -> Any:
        flags = {"corpus": "book", "genotype": "LSTM", "seconds": 120.0}
        options = {"preset": None, "file": None, "reading": Reading(20.0), **more}
        return resolve("train", settings=settings, flags=flags, **options)

    assert config().model.hidden == recipe("train", Reading(20.0), 120.0)["model"]["hidden"]
    assert config("model.hidden=50").model.hidden == 50
    assert config(preset="ptb-medium").model.hidden == 256
    assert config(reading=Reading(2.0)) != config()


@pytest.mark.slow
def test_a_budget_by_the_real_clock(corpus: Corpus, tmp_path: Path) -> None:  # noqa: F811
    """Loosely: other work may share the machine."""
    config = train_config(seconds=20.0)
    result = train(config, corpus, tmp_path / "run", device=CPU, quiet=True)
    assert 14.0 < result["spent_seconds"] < 30.0


@pytest.mark.parametrize(("recipes", "weights"), [(RECIPES, 1.0), (LEAN_RECIPES, 0.99)])
def test_a_text_that_is_read_oftener_gets_more_units_and_more_dropout(
    recipes: tuple[Recipe, ...], weights: float
) -> None:
    borders = [one.passes for one in recipes]
    assert borders == sorted(set(borders), reverse=True) and borders[-1] == 0.0
    at = [recipe("train", Reading(border, weights), 300.0) for border in reversed(borders)]
    below = [recipe("train", Reading(0.99 * b, weights), 300.0) for b in reversed(borders)]
    assert below[1:] == at[:-1]
    for group, key in (("model", "hidden"), ("noise", "dropout"), ("noise", "dropouti")):
        values = [one[group][key] for one in at]
        assert values == sorted(values)
    assert at[0]["model"]["hidden"] < at[-1]["model"]["hidden"]


def test_a_reading_is_that_of_timed_steps(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    seen: list[TrainJob] = []

    def timed(job: Any, most: float) -> float:
        seen.append(job)
        return 0.05

    monkeypatch.setattr(reading, "measure_step", timed)
    for cell, genotype in (("lstm", "LSTM"), ("derived", CELL)):
        config = train_config("model.hidden=7", seconds=60.0, genotype=genotype)
        found = reading.reading_of(config, corpus, CPU)
        job = seen.pop()
        assert (job.config.cell, job.config.model.hidden) == (cell, 200)
        assert sum(job.task.lengths(0)) == (len(corpus.splits["train"]) - 16) // 16  # a whole pass
        assert found.passes == pytest.approx(60.0 / 0.05 / len(job.task.lengths(0)))
        of_cell = 4 * (2 * 200 + 2) * 200 if cell == "lstm" else (2 + 3) * 2 * 200 * 200
        words = len(corpus.vocab) * (200 + 1)
        assert found.weights == (words + of_cell) / len(corpus.splits["train"])


def test_a_run_that_goes_on_keeps_the_sizes_it_began_with(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = {"corpus": corpus.name, "genotype": "LSTM", "seconds": 300.0}

    def units(often: float, before: Any = None) -> int:
        options: Any = {"preset": None, "file": None, "settings": [], "kept": before}
        return resolve("train", flags=flags, reading=Reading(often), **options).model.hidden  # type: ignore[no-any-return]

    few, many = units(1.0), units(100.0)
    assert few < many
    options: Any = {"preset": None, "file": None, "settings": [], "reading": Reading(1.0)}
    first = resolve("train", flags=flags, **options)
    monkeypatch.setattr(reading, "read_plan", lambda folder: folder == tmp_path or None)
    write_json(tmp_path / "config.json", {"config": to_plain(first)})
    before = reading.kept(tmp_path)
    assert before == recipe("train", Reading(1.0), 300.0)
    assert units(100.0, before) == few
    assert reading.kept(tmp_path / "nowhere") is None


def test_processes_take_the_recipe_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has timed its own steps, on a machine where they disturb each other."""

    class Second:
        leads, size = False, 2

        def broadcast(self, value: Any) -> Any:
            return recipe("train", Reading(100.0), 300.0)

    @contextlib.contextmanager
    def joined(name: str) -> Iterator[Any]:
        yield CPU, Second()

    got: list[Any] = []
    monkeypatch.setattr(runs, "joined", joined)
    flags = {"corpus": "book", "genotype": "LSTM", "seconds": 300.0}
    options: Any = {"preset": None, "file": None, "settings": [], "reading": Reading(1.0)}
    own = resolve("train", flags=flags, **options)
    options = {"device": "cpu", "out": Path("run"), "fresh": False}
    runs._run(lambda config, *more, **rest: got.append(config), own, None, options, Path("run"))
    assert got[0].model.hidden == recipe("train", Reading(100.0), 300.0)["model"]["hidden"]
    assert own.model.hidden != got[0].model.hidden
    assert got[0].genotype == own.genotype
