"""Paired comparisons by independent formulas, and a study whose every cell is compared."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
from test_study import Fake

from rnnnas.errors import UsageError
from rnnnas.studies.execute import Execution
from rnnnas.studies.paired import holm, paired, wilcoxon
from rnnnas.studies.paired_table import paired_table
from rnnnas.studies.plan import RANDOM, Sizes, StudyConfig, resolve_study
from rnnnas.studies.record import Record

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


def test_holm_by_hand() -> None:
    # Sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.2 x 1, each no less than the one before.
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([None, 0.4, 0.9]) == [None, pytest.approx(0.8), pytest.approx(0.9)]


def plan(*settings: str) -> StudyConfig:
    own = ["seeds=[1,2,3]", "final_seeds=[11,12]", 'methods=["random@2","random@4"]']
    own += ["finals=all", 'fixed=["LSTM"]', "random_cells=3", *settings]
    return resolve_study(preset="study-smoke", settings=own, flags={"corpus": "hmm"})


def test_every_found_cell_gets_its_final_trainings(tmp_path: Path) -> None:
    config = plan('own={"random@2"={blackbox={cells=2}},"random@4"={blackbox={cells=4}}}')

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
    assert tests["random@4", "LSTM"]["mean"] == pytest.approx(-0.2 + 0.02)
    assert all(t["n"] == 3 for t in tests.values())
    text = paired_table(result)
    assert "random@4" in text and "LSTM" in text and "Holm" in text
    (events,) = (tmp_path / "summary" / "study").glob("events.*")  # the tables, for TensorBoard
    assert b"random@4" in events.read_bytes()


def test_settings_of_a_comparison_are_checked() -> None:
    with pytest.raises(UsageError, match="fixed cell"):
        plan('fixed=["LSTN"]')
    with pytest.raises(UsageError, match="finals"):
        plan("finals=best")
    with pytest.raises(UsageError, match="unknown"):
        plan('methods=["randon@2"]')


def test_the_preset_is_equal_in_cost() -> None:
    config = resolve_study(preset="study-search", settings=(), flags={"corpus": "ptb"})
    from rnnnas.studies.plan import first_jobs

    jobs = first_jobs(config, Sizes({"train": range(929_589)}))
    steps = {job.method: job.steps for job in jobs if job.kind == "search"}
    assert steps["halving@4"] <= steps["random@4"] == 4 * 500
    assert steps["halving@16"] <= steps["random@16"] == 16 * 500
    assert not set(config.seeds) & set(config.final_seeds)
