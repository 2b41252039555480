"""Methods held against a table: ranks, regrets and taus by hand, replays, searches."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rank_work import even_text
from sample_tables import level, made_up
from tiny_home import corpus as corpus
from tiny_home import home as home

from rnnnas.cli import main
from rnnnas.data.corpus import Corpus
from rnnnas.data.text_streams import WindowConfig, window_lengths
from rnnnas.errors import DivergedError, UsageError
from rnnnas.nas.halving import Outcome, Trial
from rnnnas.nas.strategies import BlackboxConfig
from rnnnas.tabular import replay
from rnnnas.tabular.against import Truth, against, all_methods
from rnnnas.tabular.against_report import notes, picture, sheet
from rnnnas.tabular.replay import Replay
from rnnnas.tabular.searched import own_scores, steps_of
from rnnnas.tabular.table import Table

HOME_TEXT = even_text(20, 400)


def test_ranks_and_regrets_are_those_of_the_table() -> None:
    truth = Truth(made_up())
    order = sorted(truth.means, key=level)
    assert truth.rank(order[0]) == 1 and truth.rank(order[-1]) == len(order) == 32
    assert truth.regret(order[5]) == pytest.approx(level(order[5]) - level(order[0]))
    assert truth.tau({cell: -level(cell) for cell in order}) == pytest.approx(-1.0)
    assert truth.tau({"tanh0 tanh0": 1.0}) is None
    diverging = Truth(made_up(diverged=lambda cell: cell == order[0]))
    assert diverging.rank(order[0]) == 32 and diverging.rank(order[1]) == 1


def test_the_median_regret_is_that_of_a_cell_in_the_middle() -> None:
    levels = sorted(map(level, Truth(made_up()).means))
    assert Truth(made_up()).median_regret == pytest.approx(levels[16] - levels[0])


def test_random_search_takes_the_best_of_what_it_draws() -> None:
    table = made_up()
    for seed in range(5):
        found = Replay(table, seed, 6).find("random")
        assert len(found.scores) == 6 and found.cost == 6
        assert found.cell == min(found.scores, key=level)
        assert found.scores[found.cell] == pytest.approx(level(found.cell))
    everything = Replay(table, 1, 99).find("random")
    assert everything.cell == "tanh0 tanh0" and everything.cost == 32


def test_a_search_sees_the_trainings_of_its_seed_alone() -> None:
    table = made_up(noise=0.3)
    by_cell = table.by_cell()
    for seed in range(4):
        found = Replay(table, seed, 8).find("random")
        for cell, loss in found.scores.items():
            valid = by_cell[cell][seed % 3].valid
            assert valid is not None and loss == pytest.approx(math.log(valid))


def test_better_searches_rank_better() -> None:
    """In a space where one gene tells of the next, children of good cells are good."""
    table = made_up(nodes=3)
    truth = Truth(table)

    def mean(method: str, budget: int) -> float:
        ranks = [truth.rank(Replay(table, s, budget).find(method).cell) for s in range(12)]
        return sum(ranks) / len(ranks)

    assert mean("halving", 16) < mean("random", 16)
    # From 20 trainings on there are children.
    assert mean("halving", 22) < 4 < mean("halving", 19)
    assert mean("evolution", 48) < mean("random", 48)


def test_halving_spends_its_budget_and_reads_curves() -> None:
    table = made_up(nodes=3)
    found = Replay(table, 1, 16).find("halving")
    assert 12 <= found.cost <= 16 and found.cell in found.scores
    # Where a space has no more children, what is planned for them is not spent.
    small = made_up()
    spent = Replay(small, 1, 200).find("halving").cost
    assert spent <= 34  # 32 cells, two of them twice
    # A cell that diverges after the first rung is not found, however good its curve.
    diverging = made_up(nodes=3, diverged=lambda cell: cell == found.cell)
    assert Replay(diverging, 1, 16).find("halving").cell != found.cell
    with pytest.raises(DivergedError):
        Replay(made_up(diverged=lambda cell: True), 1, 4).find("random")
    with pytest.raises(UsageError, match="replayed"):
        Replay(table, 1, 4).find("darts")


@pytest.mark.parametrize("stretches", [5, 10])
def test_a_race_on_a_table_by_hand(stretches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rungs read the curve, its end the validation of the first training and of another."""
    table = made_up(nodes=3, noise=0.3, stretches=stretches)
    # Of the parts those whose middle lies in the second half of a rung, by draw and end.
    parts = {
        5: {(0, 300): [1], (0, 1000): [4, 5], (1, 1000): [3, 4, 5]},
        10: {(0, 300): [2, 3], (0, 1000): [7, 8, 9, 10], (1, 1000): [6, 7, 8, 9, 10]},
    }[stretches]
    rows, seen = table.by_cell(), set()
    outcome = Replay._outcome

    def spy(self: Replay, trial: Trial) -> Outcome:
        found = outcome(self, trial)
        row = rows[trial.genotype.to_text()][(1 + trial.draw) % 3]
        seen.add((trial.draw, trial.stop))
        own = parts[trial.draw, trial.stop]
        train = sum(row.curve[k - 1] for k in own) / len(own)
        assert found.train == pytest.approx(train)
        if trial.stop == 1000:
            assert row.valid is not None and found.heldout == pytest.approx(math.log(row.valid))
        return found

    monkeypatch.setattr(Replay, "_outcome", spy)
    found = Replay(table, 1, 16).find("halving")
    assert seen == parts.keys()
    logs = [math.log(row.valid or 0) for row in rows[found.cell]]
    assert found.scores[found.cell] == pytest.approx((logs[1] + logs[2]) / 2)


def test_a_replayed_race_draws_as_races_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    race = replay.Race

    def spy(*args: Any, **more: Any) -> Any:
        seen.append(more["draws"])
        return race(*args, **more)

    monkeypatch.setattr(replay, "Race", spy)
    Replay(made_up(), 1, 4).find("halving")
    assert seen == [BlackboxConfig().draws] and seen[0] > 1


def test_scores_of_a_search_by_its_shares() -> None:
    space = made_up().space
    # Rows s0>s1, s0>s2, s1>s2; none, tanh, relu, sigmoid, identity.
    shares = [[0.2, 0.5, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.0, 0.6, 0.2, 0.1]]
    lines = [
        {"kind": "alphas", "recurrent": [[0.2] * 5] * 3},
        {"kind": "alphas", "recurrent": shares},
    ]
    scores = own_scores(lines, space)
    assert len(scores) == 32
    assert scores["tanh0 relu1"] == pytest.approx(-math.log(0.5 * 0.6))
    assert scores["sigmoid0 identity0"] == pytest.approx(-math.log(0.1 * 0.2))
    assert scores["tanh0 tanh1"] > scores["relu0 tanh0"]  # a share that is told as 0
    assert min(scores, key=lambda cell: scores[cell]) == "tanh0 relu1"
    tried = [*lines, {"kind": "candidate", "cell": "relu0 relu0", "perplexity": 50.0}]
    assert own_scores(tried, space) == {"relu0 relu0": math.log(50.0)}
    assert own_scores([], space) == {}


def drawn_regret(table: Table, seed: int, n: int) -> float:
    """The mean regret of what random search with n trainings finds, over 4,000 draws."""
    truth, rows = Truth(table), table.by_cell()
    draws, total = random.Random(1), 0.0
    for _ in range(4000):
        drawn = draws.sample(sorted(rows), n)
        total += truth.regret(min(drawn, key=lambda cell: float(rows[cell][seed % 3].valid or 0)))
    return total / 4000


def test_random_search_is_expected_to_find_what_it_finds_on_average() -> None:
    table = made_up(noise=0.1)
    truth = Truth(table)
    for seed, n in ((1, 1), (2, 3), (3, 16)):
        expected = truth.random_regret(seed, n)
        assert expected == pytest.approx(drawn_regret(table, seed, n), abs=0.01)
    mean = sum(map(truth.regret, truth.means)) / 32
    assert truth.random_regret(1, 1) == pytest.approx(mean)
    rows = table.by_cell()
    best = min(rows, key=lambda cell: float(rows[cell][1].valid or 0))
    assert truth.random_regret(1, 32) == truth.random_regret(1, 99)
    assert truth.random_regret(1, 32) == pytest.approx(truth.regret(best))


def test_what_a_comparison_refuses(tmp_path: Path) -> None:
    table = made_up()
    for methods, more, told in (
        (["random", "random"], {}, "methods"),
        (["random"], {"budget": 1e9}, "budget"),
        (["random"], {"budget": math.nan}, "budget"),
        (["halving"], {"settings": ["blackbox.draws=1"]}, "settings are of searches"),
        (["halving"], {"preset": "quick"}, "settings are of searches"),
    ):
        with pytest.raises(UsageError, match=told):
            against(table, methods, [1], tmp_path, say=print, **more)
    with pytest.raises(UsageError, match="one seed"):
        against(made_up(seeds=(1,)), ["random"], [1], tmp_path, say=print)
    short = Table(about={**table.about, "stretches": 3}, rows=table.rows)
    with pytest.raises(UsageError, match="3 parts"):
        Replay(short, 1, 16).find("halving")


def test_a_comparison_by_hand(tmp_path: Path) -> None:
    table = made_up(noise=0.05)
    said: list[str] = []
    result = against(table, ["random", "halving"], range(1, 7), tmp_path, budget=4, say=said.append)
    truth = Truth(table)
    runs = result["rows"]["halving"]["runs"]
    assert [run["rank"] for run in runs] == [truth.rank(run["cell"]) for run in runs]
    assert len(runs) == 6 and len(said) == 2 and result["random_rank"] == 16.5
    mean = sum(run["rank"] for run in runs) / 6
    assert result["rows"]["halving"]["rank"]["mean"] == pytest.approx(mean)
    (test,) = result["tests"]
    differences = [run["regret"] - drawn_regret(table, run["seed"], 4) for run in runs]
    assert test["mean"] == pytest.approx(sum(differences) / 6, abs=0.012) and test["n"] == 6
    drawn = picture(result)
    assert drawn.startswith("<svg xmlns=") and drawn.count("<circle") == 12
    assert drawn.count('class="level"') == 1  # a random cell's rank
    assert {row[0] for row in sheet(result).rows} == {"random", "halving"}
    assert any("Kendall" in line for line in notes(result))
    part = Table(about=table.about, rows=table.rows[:30])
    with pytest.raises(UsageError, match="10 of 32"):
        against(part, ["random"], [1], tmp_path, say=said.append)
    with pytest.raises(UsageError, match="unknown"):
        against(table, ["rondom"], [1], tmp_path, say=said.append)
    assert {"random", "halving", "darts", "enas"} <= set(all_methods())


def test_cells_that_diverged_with_another_seed_end_no_comparison(tmp_path: Path) -> None:
    table = made_up(noise=0.05, some=lambda cell, seed: level(cell) < 4.2 and seed == 3)
    result = against(table, ["random", "halving"], range(1, 9), tmp_path, budget=6, say=print)
    own = {run["seed"]: run["regret"] for run in result["rows"]["halving"]["runs"]}
    without = [regret is None for regret in own.values()]
    assert 0 < sum(without) < len(own)  # there are such cells, and not everywhere
    (test,) = result["tests"]
    assert test["left_out"] == sum(without) and test["n"] == len(own) - sum(without)
    assert 0 <= test["t_p"] <= 1
    assert any(line.startswith("Regret and tests leave out") for line in notes(result))
    # Where a search sees nothing that ends well it fails, and the others go on.
    nothing = made_up(some=lambda cell, seed: seed == 2 or cell == "tanh0 tanh0")
    result = against(nothing, ["random"], [0, 1], tmp_path, budget=4, say=print)
    assert [e["seed"] for e in result["failed"]] == [1] and len(
        result["rows"]["random"]["runs"]
    ) == 1


def test_seeds_are_named_once_each(tmp_path: Path) -> None:
    for seeds in ([], [1, 1]):
        with pytest.raises(UsageError, match="search seeds"):
            against(made_up(), ["random"], seeds, tmp_path, say=print)


def test_the_cost_of_a_search_has_its_race_in_it() -> None:
    lines = [
        {"kind": "search", "step": 100},
        {"kind": "search", "step": 300},
        {"kind": "rung", "step": 50, "number": 0, "draw": 0},
        {"kind": "rung", "step": 200, "number": 0, "draw": 0},
        {"kind": "rung", "step": 50, "number": 1, "draw": 0},
        {"kind": "rung", "step": 200, "number": 0, "draw": 1},
    ]
    assert steps_of(lines) == 300 + 200 + 50 + 200


def test_the_command_with_searches_for_real(corpus: Corpus, tmp_path: Path) -> None:
    table = made_up()
    table = Table(about={**table.about, "corpus_sha256": corpus.sha256}, rows=table.rows)
    path = tmp_path / "t.csv"
    table.write(path)
    sets = ["model.hidden=6", "windows.streams=6", "windows.limit=4", "valid_streams=4"]
    sets += ["model.precision=float32", "blackbox.cells=3", "windows.bptt=5"]
    words = ["study", "--against", str(path), "--methods", "random,darts-1st,random-ws"]
    words += ["--seeds", "2", "--out", str(tmp_path / "out"), "--budget", "4", "--jobs", "1"]
    words += [word for text in sets for word in ("--set", text)]
    done = CliRunner().invoke(main, [*words, "--format", "csv"])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert {row["method"] for row in rows} == {"random", "darts-1st", "random-ws"}
    stored = json.loads((tmp_path / "out/against.json").read_text())
    # The text holds fewer windows than the 250 that a training of the table would take.
    length = len(corpus.splits["train"]) // 16
    trained = len(window_lengths(WindowConfig(bptt=20, jitter=5.0), length, random.Random(0)))
    assert trained < 250
    for method in ("darts-1st", "random-ws"):
        for run in stored["rows"][method]["runs"]:
            folder = tmp_path / "out" / f"search-{method}-s{run['seed']}"
            found = json.loads((folder / "result.json").read_text())
            assert run["cell"] == found["cell"] and 1 <= run["rank"] <= 32
            assert run["scored"] == (32 if method == "darts-1st" else 3)
            assert run["cost"] == pytest.approx(4 / trained)
    before = (tmp_path / "out/search-darts-1st-s1/result.json").stat().st_mtime_ns
    again = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    for method, own in stored["rows"].items():
        assert [r["cell"] for r in again["rows"][method]["runs"]] == [
            r["cell"] for r in own["runs"]
        ]
    assert (tmp_path / "out/search-darts-1st-s1/result.json").stat().st_mtime_ns == before
    # As processes of their own, two at a time, they find the same.
    beside = [text.replace("random,darts-1st,random-ws", "darts-1st") for text in words]
    beside[beside.index("--jobs") + 1] = "2"
    beside[beside.index("--out") + 1] = str(tmp_path / "beside")
    done = CliRunner().invoke(main, [*beside, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["rows"]["darts-1st"]["runs"]
    assert [r["cell"] for r in found] == [r["cell"] for r in stored["rows"]["darts-1st"]["runs"]]
    assert (tmp_path / "beside/logs/search-darts-1st-s1.log").is_file()
    # What one refuses is told before any is run; what fails names its log's last words.
    refused = CliRunner().invoke(main, [*beside, "--set", "model.hidden=0"])
    assert refused.exit_code == 2 and "hidden" in refused.output
    shown = CliRunner().invoke(main, ["study", "--out", str(tmp_path / "out"), "--format",
                                      "markdown"])  # fmt: skip
    assert shown.stdout.startswith("| method |")
    foreign = Table(about={**table.about, "corpus_sha256": "1" * 64}, rows=table.rows)
    foreign.write(path)
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code != 0 and "not the one" in refused.output
    assert CliRunner().invoke(main, [*words, "--corpus", "tiny"]).exit_code == 2
