"""Paired comparisons by independent formulas, and a study whose every cell is compared."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_study import Fake

from rnnnas.config.presets import resolve
from rnnnas.errors import UsageError
from rnnnas.nas.race_plan import plan_of
from rnnnas.studies.execute import Execution
from rnnnas.studies.paired import beside_one, holm, p_text, paired, rank_sum, unpaired, wilcoxon
from rnnnas.studies.paired_table import paired_table
from rnnnas.studies.plan import RANDOM, Sizes, StudyConfig, resolve_study
from rnnnas.studies.record import Record
from rnnnas.studies.statistics import training_variance

SIZES = Sizes({"train": range(20_000)})


def by_signs(differences: list[float]) -> float:
    """The two-sided p of the signed-rank sum over all 2^n signs."""
    left = [d for d in differences if d]
    size = sorted(abs(d) for d in left)
    ranks = [
        sum(i + 1 for i, s in enumerate(size) if s == abs(d)) / size.count(abs(d)) for d in left
    ]
    middle = sum(ranks) / 2
    observed = abs(sum(r for r, d in zip(ranks, left, strict=True) if d > 0) - middle)
    sums = [
        sum(r for r, up in zip(ranks, signs, strict=True) if up)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    return sum(abs(s - middle) >= observed - 1e-9 for s in sums) / len(sums)


def test_wilcoxon_is_exact() -> None:
    rng = random.Random(1)
    for n in (1, 2, 5, 8, 10):
        for _ in range(4):
            own = [round(rng.gauss(0.4, 1), 1) for _ in range(n)]  # with ties and zeros
            if any(own):
                assert wilcoxon(own) == pytest.approx(by_signs(own))
    assert wilcoxon([-1.0, -2, -3, -4, -5, -6, -7, -8]) == pytest.approx(2 / 256)
    assert wilcoxon([0.0, 0.0]) is None and wilcoxon([]) is None


def test_students_t_of_differences() -> None:
    # Sleep data of Student (1908): mean -1.58, t = -4.0621, p = 0.00283 with 9 degrees of freedom.
    sleep = [-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4]
    own = paired(sleep)
    assert own.mean == pytest.approx(-1.58) and own.t_p == pytest.approx(0.00283, abs=5e-6)
    assert (own.low, own.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
    assert paired([1.0]).t_p is None and paired([]).mean is None
    assert paired([0.0, 0.0]).t_p == 1 and paired([2.0, 2.0]).t_p == 0


def test_welchs_t_of_two_samples() -> None:
    own, other = [1.0, 2, 4, 7], [3.0, 5, 6, 8, 9, 11]
    found = unpaired(own, other)
    assert found.n == 4 and found.mean == pytest.approx(3.5 - 7.0)
    parts = (21 / 3) / 4, (42 / 5) / 6  # sums of squares over degrees, over sizes
    error = math.sqrt(sum(parts))
    assert 7 < sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 5) < 8
    # Of t with 7 degrees: 2.364624 holds 95 %, and the integral of its density in closed form.
    assert (found.low, found.high) == pytest.approx(
        (-3.5 - 2.364624 * error, -3.5 + 2.364624 * error), abs=1e-5
    )
    a = math.atan(3.5 / error / math.sqrt(7))
    sums = math.cos(a) + 2 / 3 * math.cos(a) ** 3 + 8 / 15 * math.cos(a) ** 5
    assert found.t_p == pytest.approx(1 - 2 / math.pi * (a + math.sin(a) * sums))
    assert unpaired([1.0], [2.0]).t_p is None and unpaired([], [2.0]).mean is None
    assert unpaired([1.0, 1.0], [1.0, 1.0]).t_p == 1


def test_the_noise_of_a_training_by_least_squares() -> None:
    """The residual of a fit by indicators of cells and of seeds."""
    rng = np.random.default_rng(1)
    for n, k in ((2, 2), (5, 3), (9, 4)):
        data = rng.normal(size=(n, k)) + rng.normal(size=(n, 1)) + rng.normal(size=(1, k))
        rows, columns = (a.ravel() for a in np.indices((n, k)))
        indicators = np.hstack([rows[:, None] == np.arange(n), columns[:, None] == np.arange(k)])
        _, _, rank, _ = np.linalg.lstsq(indicators.astype(float), data.ravel(), rcond=None)
        fit = indicators @ np.linalg.pinv(indicators.astype(float)) @ data.ravel()
        squares = float(((data.ravel() - fit) ** 2).sum())
        found = training_variance(data.tolist())
        assert found is not None and found[1] == n * k - rank
        assert found[0] == pytest.approx(squares / found[1])
        assert training_variance([*data.tolist(), data[0].tolist()]) == pytest.approx(found)
    assert training_variance([[1.0], [2.0]]) is None and training_variance([[1.0, 2.0]]) is None
    assert training_variance([]) is None


def test_the_error_of_one_thing_is_in_every_difference() -> None:
    """Draws of a fixed cell's trainings: 95 of 100 intervals hold the truth, not the 60 of plain
    differences.
    """
    rng = np.random.default_rng(2)
    n, k, held, plain = 8, 2, 0, 0
    for _ in range(1000):
        fixed = rng.normal(0.0, 1.0, k)
        cells = rng.normal(0.0, 0.3, (n, 1)) + rng.normal(0.0, 1.0, (n, k))
        others = rng.normal(0.0, 0.3, (20, 1)) + rng.normal(0.0, 1.0, (20, k))
        noise = training_variance([*cells.tolist(), *others.tolist(), fixed.tolist()])
        assert noise is not None
        differences = [float(x) for x in (cells - fixed).mean(axis=1)]
        own, less = beside_one(differences, noise[0] / k, noise[1]), paired(differences)
        assert own.low is not None and own.high is not None
        assert less.low is not None and less.high is not None
        held += own.low <= 0 <= own.high
        plain += less.low <= 0 <= less.high
    assert 930 <= held <= 970 and plain < 700
    known = beside_one([1.0, 2.0, 4.0], 0.0, 5)
    assert (known.low, known.t_p) == pytest.approx(
        (paired([1.0, 2, 4]).low, paired([1.0, 2, 4]).t_p)
    )
    assert known.wilcoxon_p is None and beside_one([1.0], 0.1, 3).low is None


def test_a_p_value_as_it_is_shown() -> None:
    assert [p_text(p) for p in (None, 0.0123, 3e-7, 0.0)] == ["-", "0.012", "3e-07", "<1e-15"]


def test_rank_sums_over_all_choices() -> None:
    rng = random.Random(3)
    for n, m in ((1, 3), (3, 4), (5, 6)):
        for _ in range(4):
            own = [round(rng.gauss(0, 1), 1) for _ in range(n)]
            other = [round(rng.gauss(0.7, 1), 1) for _ in range(m)]
            pooled = own + other
            rank = [
                (sum(y < x for y in pooled) + 1 + sum(y <= x for y in pooled)) / 2 for x in pooled
            ]
            sums = [
                sum(rank[i] for i in chosen) for chosen in itertools.combinations(range(n + m), n)
            ]
            seen = sum(rank[:n])
            tails = [sum(s <= seen + 1e-9 for s in sums), sum(s >= seen - 1e-9 for s in sums)]
            assert rank_sum(own, other) == pytest.approx(min(1.0, 2 * min(tails) / len(sums)))
    assert rank_sum([1.0], []) is None


def test_holm_by_hand() -> None:
    # Sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.2 x 1, each no less than the one before.
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([None, 0.4, 0.9]) == [None, pytest.approx(0.8), pytest.approx(0.9)]


OWN = 'own={"random@2"={blackbox={cells=2}},"random@4"={blackbox={cells=4}}}'


def plan(*settings: str) -> StudyConfig:
    own = ["seeds=[1,2,3]", "final_seeds=[11,12]", 'methods=["random@2","random@4"]', OWN]
    own += ["finals=all", 'fixed=["LSTM"]', "random_cells=3", *settings]
    return resolve_study(preset="study-smoke", settings=own, flags={"corpus": "hmm"})


def test_a_corrected_p_is_never_below_one_before_it() -> None:
    assert holm([0.01, 0.011, 0.5]) == pytest.approx([0.03, 0.03, 0.5])
    assert holm([0.5, 0.011, 0.01]) == pytest.approx([0.5, 0.03, 0.03])


def test_samples_without_spread_differ_for_sure_or_not_at_all() -> None:
    assert unpaired([1.0, 1.0], [2.0, 2.0]).t_p == 0.0
    assert unpaired([1.0, 1.0], [1.0, 1.0]).t_p == 1.0


def test_every_found_cell_gets_its_final_trainings(tmp_path: Path) -> None:
    config = plan()

    def give(name: str) -> Any:
        kind, method, *_ = name.split("-")
        if kind == "search":
            return {"cell": "tanh0 relu1", "valid_perplexity": 1.0, "seconds": 2.0}
        level = {"random@2": 0.0, "random@4": -0.1, "random": 0.2, "LSTM": 0.1}[method]
        seed = 0 if method == "LSTM" else int(name.split("-")[2][1:])
        log = 4.0 + level + 0.01 * seed + 0.5 * name.endswith("t12")
        return {"valid_perplexity": 1.0, "test_perplexity": math.exp(log), "seconds": 1.0}

    record = Record.open(tmp_path, config, "0" * 64)
    runner = Fake(tmp_path, give)
    result = Execution(record, SIZES, runner, set(), (), lambda text: None).run()
    assert len(runner.started) == 2 * 3 + 2 * (2 * 3 + 3 + 1)
    assert not [name for name in runner.started if name.startswith("train")]
    words = runner.words["search-random@4-s2"]
    assert words[words.index("--method") + 1] == "random" and "blackbox.cells=4" in words
    rows = result["rows"]
    assert list(rows) == ["random@2", "random@4", RANDOM, "LSTM"]
    # Geometric mean over training seeds, arithmetic over cells.
    expected = sum(math.exp(4.25 + 0.01 * seed) for seed in (1, 2, 3)) / 3
    assert rows["random@2"]["test"]["mean"] == pytest.approx(expected)
    assert rows["LSTM"]["test"]["n"] == 1
    tests = {(t["method"], t["against"]): t for t in result["tests"]}
    assert set(tests) == {
        ("random@2", "random@4"), ("random@2", RANDOM), ("random@2", "LSTM"),
        ("random@4", RANDOM), ("random@4", "LSTM"),
    }  # fmt: skip
    assert tests["random@2", "random@4"]["mean"] == pytest.approx(0.1)
    assert tests["random@4", RANDOM]["mean"] == pytest.approx(-0.3)
    # Random cells belong to no search: not what differs pair by pair counts, but both spreads.
    spread_of_three = math.sqrt(2 * 0.01**2 / 3)
    low, high = (tests["random@4", RANDOM][key] for key in ("low", "high"))
    assert (high - low) / 2 == pytest.approx(2.776445 * spread_of_three, rel=1e-4)
    # Over the methods that are held against the same thing.
    for key in ("t_p", "wilcoxon_p"):
        ps = [tests[name, RANDOM][key] for name in ("random@2", "random@4")]
        assert [tests[name, RANDOM][f"{key}_holm"] for name in ("random@2", "random@4")] == holm(ps)
    assert tests["random@4", "LSTM"]["mean"] == pytest.approx(-0.2 + 0.02)
    assert all(t["n"] == 3 for t in tests.values())
    text = paired_table(result)
    assert "random@4" in text and "LSTM" in text and "Holm" in text
    (events,) = (tmp_path / "summary" / "study").glob("events.*")  # the tables, for TensorBoard
    assert b"random@4" in events.read_bytes()


def test_a_cell_that_lacks_a_training_does_not_count(tmp_path: Path) -> None:
    """Of three cells of each method one has a final training that diverged, for all that is known
    its only one to do so; a mean over fewer seeds would compare seeds.
    """
    config = plan()

    def give(name: str) -> Any:
        if name.startswith("search"):
            return {"cell": "tanh0 relu1", "valid_perplexity": 1.0, "seconds": 2.0}
        if name == "final-random@2-s2-t12":
            return 6
        log = 4.0 + 0.5 * name.endswith("t12") + 0.001 * (sum(map(ord, name)) % 13)
        return {"valid_perplexity": 1.0, "test_perplexity": math.exp(log), "seconds": 1.0}

    record = Record.open(tmp_path, config, "0" * 64)
    runner = Fake(tmp_path, give)
    result = Execution(record, SIZES, runner, set(), (), lambda text: None).run()
    own = result["rows"]["random@2"]
    assert own["test"]["n"] == 2 and own["planned"] == 3 and set(own["cells"]) == {"1", "3"}
    assert {t["n"] for t in result["tests"] if t["method"] == "random@2"} == {2}
    text = paired_table(result)
    assert "2 of 3" in text and "came to a finite loss" in text
    assert result["training_sd"] > 0 and "One training of a cell has a noise of" in text
    against = next(t for t in result["tests"] if t["against"] == "LSTM")
    assert against["low"] is not None and against["wilcoxon_p"] is None

    # The error of LSTM's mean is that of two trainings.
    finals: dict[str, list[float]] = {}
    for name in sorted(runner.started):
        if name.startswith("final") and not name.startswith("final-random@2-s2"):
            log = math.log(give(name)["test_perplexity"])
            finals.setdefault(name.rpartition("-t")[0], []).append(log)
    variance, degrees = training_variance(list(finals.values()))
    assert result["training_sd"] == pytest.approx(math.sqrt(variance))
    own = [logs for name, logs in finals.items() if f"-{against['method']}-s" in name]
    (fixed,) = [logs for name, logs in finals.items() if "LSTM" in name]
    differences = [sum(a - b for a, b in zip(cell, fixed, strict=True)) / 2 for cell in own]
    expected = beside_one(differences, variance / 2, degrees)
    assert (against["low"], against["high"]) == pytest.approx((expected.low, expected.high))


def test_a_training_seed_that_few_have_got_to_does_not_count(tmp_path: Path) -> None:
    config = plan("final_seeds=[11,12,13]", "seeds=[11,2,3]")

    def give(name: str) -> Any:
        if name.startswith("search"):
            return {"cell": "tanh0 relu1", "valid_perplexity": 1.0, "seconds": 2.0}
        if name.endswith("t13") and name != "final-random@2-s2-t13":
            return 6
        log = 9.0 if name.endswith("t13") else 4.0
        return {"valid_perplexity": 1.0, "test_perplexity": math.exp(log), "seconds": 1.0}

    record = Record.open(tmp_path, config, "0" * 64)
    runner = Fake(tmp_path, give)
    result = Execution(record, SIZES, runner, set(), (), lambda text: None).run()
    assert result["rows"]["random@2"]["test"]["mean"] == pytest.approx(math.exp(4.0))
    assert all(t["mean"] == pytest.approx(0.0) for t in result["tests"])
    assert "of which seed 11 is a search's, too" in paired_table(result)


def test_a_search_in_a_small_space_costs_what_its_cells_do() -> None:
    flags = {"corpus": "hmm", "method": "random"}
    own = ["model.nodes=1", "blackbox.windows=100", "blackbox.cells=9"]
    config = resolve("search", preset="quick", file=None, settings=own, flags=flags)
    assert config.cell_space.count() == 4 and SIZES.steps(config) == 4 * 100
    config = resolve("search", preset="quick", file=None, settings=own[:2],
                     flags={**flags, "method": "halving"})  # fmt: skip
    budget = config.blackbox.budget
    assert SIZES.steps(config) == plan_of(budget, 100, cells=4).total_steps
    assert SIZES.steps(config) < plan_of(budget, 100).total_steps


def test_the_steps_of_a_search_are_of_the_text_that_it_trains_on() -> None:
    """Of a single-level search all of it, whatever the race behind it holds out."""
    steps = {}
    for method in ("snas", "darts-1st"):
        flags = {"corpus": "hmm", "method": method}
        own = ["windows.limit=0", "least_steps=0", "select.budget=2", "select.windows=100"]
        config = resolve("search", preset="quick", file=None, settings=own, flags=flags)
        steps[method] = SIZES.steps(config) - plan_of(2.0, 100).total_steps
    assert steps["snas"] == pytest.approx(steps["darts-1st"] / 0.9, rel=0.02)


def test_settings_of_a_comparison_are_checked() -> None:
    with pytest.raises(UsageError, match="fixed cell"):
        plan('fixed=["LSTN"]')
    with pytest.raises(UsageError, match="finals"):
        plan("finals=best")
    with pytest.raises(UsageError, match="unknown"):
        plan('methods=["randon@2"]', 'own={"randon@2"={blackbox={cells=2}}}')
    # It would be the method itself, under a name that says otherwise; a word says nothing.
    plan('methods=["random@2","random@plain"]')
    with pytest.raises(UsageError, match="random@8 would be random itself"):
        plan('methods=["random@2","random@8"]')


def test_the_preset_is_equal_in_cost() -> None:
    config = resolve_study(preset="study-search", settings=(), flags={"corpus": "ptb"})
    from rnnnas.studies.plan import first_jobs

    jobs = first_jobs(config, Sizes({"train": range(929_589)}))
    steps = {job.method: job.steps for job in jobs if job.kind == "search"}
    assert steps["halving@4"] <= steps["random@4"] == 4 * 500
    assert steps["halving@16"] <= steps["random@16"] == 16 * 500
    assert not set(config.seeds) & set(config.final_seeds)
