"""Races carried out: exact resumes, paired trainings, held-out text, a race behind a search."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rank_work import zipf_text
from tiny_home import corpus as corpus
from tiny_home import home as home

from rnnnas.cli import main
from rnnnas.config.presets import preset_names, resolve
from rnnnas.config.recipes import Reading
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.engine.job import Position
from rnnnas.engine.steps import evaluate
from rnnnas.errors import CheckpointError, DataError, DivergedError, Interrupted, UsageError
from rnnnas.nas.collapse import collapse_note
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.halving import Trial
from rnnnas.nas.operations import NONE
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.zoo import ZOO
from rnnnas.optim import scheduled
from rnnnas.searching import cell_training
from rnnnas.searching.cell_training import CellTraining, Course
from rnnnas.searching.halving import HalvingJob
from rnnnas.searching.run import job_of, search
from rnnnas.searching.selection import proposals, race_config, sample
from rnnnas.searching.supernet import SearchJob
from rnnnas.studies.estimate import search_seconds
from rnnnas.studies.plan import Sizes

HOME_TEXT = zipf_text(30, 400)
CPU = torch.device("cpu")
QUICK = sorted(name for name in preset_names() if name.startswith("quick-"))
SMALL = [
    "model.hidden=6",
    "model.precision=float32",
    "model.nodes=3",
    "windows.streams=6",
    "valid_streams=6",
    "epochs=1",
]
SMALL += ["windows.limit=6", "weights.schedule=cosine"]
HALVING = ["method=halving", "blackbox.windows=10", "blackbox.budget=20", "blackbox.rung=2"]
SHORT = ["method=halving", "blackbox.windows=8", "blackbox.budget=4", "blackbox.rung=2"]
RACE = [
    "select.by=race",
    "select.windows=8",
    "select.budget=3.5",
    "select.rung=2",
    "select.guards=3",
]
TRAINED = ["model.hidden=6", "epochs=1", "valid_streams=6", "test_streams=6"]


@pytest.mark.parametrize("edges", [1, 2])
def test_samples_have_as_many_edges_as_a_node_keeps(edges: int) -> None:
    spaces = {RECURRENT: recurrent_space(4, edges_per_node=edges)}
    tables = {RECURRENT: [[0.2] * 5 for _ in spaces[RECURRENT].edges]}
    for seed in range(5):
        cell = sample(spaces, tables, random.Random(seed)).recurrent
        assert [len(genes) for genes in cell.nodes] == [min(edges, n + 1) for n in range(4)]


def test_published_cells_are_proposed_in_their_own_space_alone(corpus: Corpus) -> None:
    def origins(*settings: str) -> set[str]:
        own = config("method=darts-1st", "model.nodes=8", *RACE, *settings)
        return {proposal.origin for proposal in proposals(SearchJob(own, corpus, CPU), own)}

    assert {"DARTS_V2", "ENAS"} <= origins()
    assert not {"DARTS_V2", "ENAS"} & origins('space.ops=["none", "tanh", "relu"]')
    assert not {"DARTS_V2", "ENAS"} & origins("space.output=last")


@pytest.mark.parametrize("method", ["random", "halving"])
def test_cells_trained_alone_let_all_units_through(method: str, corpus: Corpus) -> None:
    """Whatever a preset for PC-DARTS says of a part of them."""
    settings = [*SHORT[1:], f"method={method}", "model.hidden=8", "windows.streams=6"]
    nets = []
    for partial in ("1", "4"):
        made = config(*settings, f"model.partial={partial}")
        job: Any = job_of(made, corpus, CPU)
        job.step(Position(), job.lengths(0)[0], 1.0)
        nets.append(job.net.state_dict())
        assert "model.partial" in made.idle
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_a_cell_goes_on_where_only_what_does_not_matter_differs(
    corpus: Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "cell.pt"
    cell = Genotype.from_text("tanh0 relu1 tanh0")

    def training(*settings: str) -> CellTraining:
        made = Course(config(*SHORT, *settings), corpus, CPU)
        return CellTraining(made, cell, 0, path)

    first = training()
    first.advance()
    first.save()
    assert training("epochs=7", "least_steps=3").nats == first.nats
    with pytest.raises(CheckpointError, match=r"weights.lr is 20.0 there and 3.0 here") as error:
        training("weights.lr=3.0")
    assert "--fresh" in error.value.remedy


def test_the_race_holds_out_text_whatever_the_alphas_learn_on(corpus: Corpus) -> None:
    snas = config("method=snas", *RACE)
    assert "alphas.held_out" not in snas.idle
    assert "alphas.held_out" in config("method=snas").idle
    # What it cannot hold out is said before the search.
    for_two = config("method=darts-1st", *RACE, "alphas.text=valid", "alphas.held_out=0.001")
    with pytest.raises(DataError):
        search(for_two, corpus, Path("/nowhere"), device=CPU, quiet=True)


class Crash(Exception):
    """Stands for a process that dies."""


def config(*settings: str, preset: str = "smoke") -> SearchConfig:
    resolved: SearchConfig = resolve(
        "search", preset=preset, file=None, settings=[*SMALL, *settings],
        flags={"corpus": "tiny", "seed": 3},
    )  # fmt: skip
    return resolved


def lines_of(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] in kinds]


def dying(patch: pytest.MonkeyPatch, numbers: list[int]) -> list[int]:
    """Make weight steps of races die at those calls, counted over all starts."""
    original, calls = CellTraining.advance, [0]

    def advance(self: CellTraining) -> None:
        calls[0] += 1
        if numbers and calls[0] == numbers[0]:
            numbers.pop(0)
            raise Crash
        original(self)

    patch.setattr(CellTraining, "advance", advance)
    return calls


def through(settings: SearchConfig, corpus: Corpus, folder: Path) -> tuple[dict[str, Any], int]:
    """The result of a command that is given again until it ends, and how often it died."""
    for died in range(100):
        try:
            return search(settings, corpus, folder, device=CPU, quiet=True), died
        except Crash:
            pass
    raise AssertionError("it never ends")


# Resumes


@pytest.mark.parametrize("seconds", [0, 1000])
def test_a_race_resumes_exactly_wherever_it_dies(
    seconds: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(*(HALVING if seconds else SHORT), f"save_seconds={seconds}")
    whole = search(settings, corpus, tmp_path / "whole", device=CPU, quiet=True)
    keys = {"run", "genotype", "cell", "seconds", "valid_perplexity", "arithmetic", "digest"}
    beside = {"origin", "finalists", "random_cells", "unigram_perplexity", "bigram_perplexity"}
    assert set(whole) == keys | beside
    assert math.isfinite(whole["valid_perplexity"])
    points = [1, 2, 3, 9, 30, 31, 60, 80, 95] if seconds else [1, 2, 9, 24, 30]
    dying(monkeypatch, list(points))
    cut, died = through(settings, corpus, tmp_path / "cut")
    assert died == len(points)
    for key in ("digest", "valid_perplexity", "cell", "origin"):
        assert cut[key] == whole[key]
    texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert texts[0] == texts[1]


def test_what_was_saved_is_not_trained_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(*SHORT, "save_seconds=0")
    calls = dying(monkeypatch, [25])
    through(settings, corpus, tmp_path)
    plan = HalvingJob(settings, corpus, CPU).plan
    assert calls[0] == plan.total_steps + 1  # the one that died


def test_a_signal_saves_and_stops(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(*SHORT, "save_seconds=1000")
    whole = search(settings, corpus, tmp_path / "whole", device=CPU, quiet=True)
    original, calls = CellTraining.advance, [0]

    def advance(self: CellTraining) -> None:
        calls[0] += 1
        if calls[0] == 25:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(CellTraining, "advance", advance)
    with pytest.raises(Interrupted) as stopped:
        search(settings, corpus, tmp_path / "run", device=CPU, quiet=True)
    assert stopped.value.exit_code == 143 and calls[0] == 25
    again = search(settings, corpus, tmp_path / "run", device=CPU, quiet=True)
    assert again["digest"] == whole["digest"]
    assert calls[0] == HalvingJob(settings, corpus, CPU).plan.total_steps


def test_a_file_of_another_race_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    genotype = Genotype.from_text("tanh0 relu1 sigmoid0")
    course = Course(config(*HALVING), corpus, CPU)
    path = tmp_path / "cell.pt"
    trial = Trial(0, genotype, 0, 0, 3, False)
    list(CellTraining(course, genotype, 0, path).stretch(trial, 1000))
    assert CellTraining(course, genotype, 0, path).step == 3
    with pytest.raises(CheckpointError, match="not of this race"):
        CellTraining(course, genotype, 1, path)
    other = Course(config(*HALVING, "model.hidden=4"), corpus, CPU)
    with pytest.raises(CheckpointError, match="not of this race"):
        CellTraining(other, genotype, 0, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        CellTraining(course, genotype, 0, path)


def test_workers_find_the_same_and_stop_where_they_are(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(*SHORT, "save_seconds=1000")
    alone = search(settings, corpus, tmp_path / "alone", device=CPU, quiet=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # torch itself keeps its one
    assert HalvingJob(settings, corpus, CPU).workers == 2
    beside = search(settings, corpus, tmp_path / "beside", device=CPU, quiet=True)
    assert beside["digest"] == alone["digest"]
    texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("alone", "beside")]
    assert texts[0] == texts[1]


# Trainings


def whole_training(course: Course, genotype: Genotype, draw: int = 0) -> CellTraining:
    training = CellTraining(course, genotype, draw, None)
    for _ in range(course.steps):
        training.advance()
    return training


def test_rungs_are_stops_of_one_training(corpus: Corpus, tmp_path: Path) -> None:
    """The winner's curve is that of a training in one go, on one schedule over T."""
    settings = config(*HALVING)
    result = search(settings, corpus, tmp_path, device=CPU, quiet=True)
    course = Course(settings, corpus, CPU)
    alone = whole_training(course, Genotype.from_plain(result["genotype"]))
    rungs = [line for line in lines_of(tmp_path, "rung") if line["cell"] == result["cell"]]
    assert [line["step"] for line in rungs if not line["draw"]] == [3, 10]
    begin = 0
    for line in rungs[:2]:
        half = alone.nats[begin + (line["step"] - begin) // 2 : line["step"]]
        assert line["train_loss"] == pytest.approx(sum(half) / len(half), rel=1e-12)
        begin = line["step"]
    score = evaluate(alone.net, course.held_out, {}, alone.average)
    assert rungs[1]["heldout_loss"] == pytest.approx(score.loss, rel=1e-12)
    score = evaluate(alone.net, course.valid, {}, alone.average)
    assert result["valid_perplexity"] == pytest.approx(score.perplexity, rel=1e-12)


def test_cells_share_windows_masks_and_first_weights(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = Course(config(*HALVING), corpus, CPU)
    seen: list[list[Any]] = []
    original = cell_training.weight_step

    def step(
        net: Any, optimizer: Any, batch: Any, hidden_state: Any, *args: Any, **more: Any
    ) -> Any:
        masks = [mask for mask in args[1][:3] if isinstance(mask, torch.Tensor)]
        seen[-1] += [batch.inputs, *masks, torch.tensor(more["lr"])]
        return original(net, optimizer, batch, hidden_state, *args, **more)

    monkeypatch.setattr(cell_training, "weight_step", step)
    first = []
    cells = ("tanh0 relu1 sigmoid0", 0), ("relu0 relu0 tanh2", 0), ("tanh0 relu1 sigmoid0", 1)
    for cell, draw in cells:
        seen.append([])
        genotype = Genotype.from_text(cell)
        net = course.network(genotype, draw)
        first.append([p.detach().clone() for p in net.parameters()])
        whole_training(course, genotype, draw)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[0], first[1], strict=True))
    # A fresh draw shares none of it.
    assert not torch.equal(first[0][0], first[2][0])
    assert not torch.equal(seen[0][1], seen[2][1])
    rates = [float(seen[0][i]) for i in range(len(seen[0])) if seen[0][i].dim() == 0]
    windows = course.windows(0)
    expected = [
        scheduled(course.config.weights, i / 10) * steps / course.config.windows.bptt
        for i, (_, steps) in enumerate(windows)
    ]
    assert rates == pytest.approx(expected)


def test_averaged_weights_by_their_formula(corpus: Corpus) -> None:
    course = Course(config(*HALVING, "blackbox.windows=70"), corpus, CPU)
    training = CellTraining(course, Genotype.from_text("tanh0 relu1 sigmoid0"), 0, None)
    passed = []
    for _ in range(70):
        training.advance()
        passed.append(training.net.bias.detach().double().clone())
    # Uniform over the first 50 steps, then with decay 0.98.
    expected = sum(passed[:50]) / 50
    for weights in passed[50:]:
        expected = 0.98 * expected + 0.02 * weights
    assert torch.allclose(training.average["bias"].double(), expected, atol=1e-6)


@pytest.mark.parametrize("text", ["held-out", "valid"])
def test_cells_are_never_chosen_by_validation(text: str, corpus: Corpus) -> None:
    settings = config(*HALVING, f"alphas.text={text}", "blackbox.targets=60")
    course = Course(settings, corpus, CPU)
    train = corpus.splits["train"]
    kept = int(len(train) * 0.9)
    assert course.train.length == kept // 6
    assert (course.held_out.length - 1) * 6 == 60
    own = Streams(train[kept:][:66], 6, CPU).window(0, 10)
    assert torch.equal(course.held_out.window(0, 10).inputs, own.inputs)
    assert "alphas.text" in settings.idle and "alphas.held_out" not in settings.idle


def test_lengths_and_targets_without_settings(corpus: Corpus) -> None:
    course = Course(config("method=halving", "epochs=2"), corpus, CPU)
    assert course.steps == len(course.windows(0)) == 12  # the search's own
    assert [start for start, _ in course.windows(0)].count(0) == 2
    seen = sum(steps for _, steps in course.windows(0)) * 6
    assert (course.held_out.length - 1) * 6 == pytest.approx(max(0.1 * seen, 10 * 6), abs=6)


# Divergence


def test_a_diverged_cell_leaves_the_race(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(*SHORT)
    whole = search(settings, corpus, tmp_path / "whole", device=CPU, quiet=True)
    best = lines_of(tmp_path / "whole", "rung")
    number = min(best[:10], key=lambda line: float(line["train_loss"]))["number"]
    original = cell_training.weight_step
    bad = HalvingJob(settings, corpus, CPU).race.entrants[number].genotype.recurrent

    def step(net: Any, *args: Any, **more: Any) -> Any:
        loss, norm = original(net, *args, **more)
        return (loss, norm * math.nan) if net.cell == bad else (loss, norm)

    monkeypatch.setattr(cell_training, "weight_step", step)
    result = search(settings, corpus, tmp_path / "run", device=CPU, quiet=True)
    rows = [line for line in lines_of(tmp_path / "run", "rung") if line["number"] == number]
    assert [(row["train_loss"], row["kept"]) for row in rows] == [(None, False)]
    assert math.isfinite(result["valid_perplexity"]) and result["digest"] != whole["digest"]


def test_a_race_whose_cells_all_diverge_fails(corpus: Corpus, tmp_path: Path) -> None:
    settings = config(*HALVING, "weights.lr=1e30", "weights.clip=0")
    with pytest.raises(DivergedError, match="all 26 cells") as error:
        search(settings, corpus, tmp_path, device=CPU, quiet=True)
    assert error.value.exit_code == 6
    assert not (tmp_path / "result.json").exists()


# What is said


def test_every_rung_and_every_candidate_is_logged(corpus: Corpus, tmp_path: Path) -> None:
    settings = config(*HALVING)
    result = search(settings, corpus, tmp_path, device=CPU, quiet=True)
    race = HalvingJob(settings, corpus, CPU).race
    rungs, curves = lines_of(tmp_path, "rung"), lines_of(tmp_path, "curve")
    fields = {"kind", "step", "rung", "number", "cell", "origin", "draw", "train_loss"}
    assert set(rungs[0]) == fields | {"heldout_loss", "kept", "parent"}
    assert len([row for row in rungs if row["rung"] == 0]) == len(race.entrants)
    assert all((row["heldout_loss"] is None) == (row["step"] == 3) for row in rungs)
    cells = {row["number"]: row for row in rungs}
    names = {name for line in curves for name in line if name.startswith("cell_")}
    again = {f"cell_{row['number']:03}_draw1" for row in rungs if row["draw"]}
    assert names == {f"cell_{number:03}" for number in cells} | again
    assert all(row["parent"] in cells for row in rungs if row["origin"] == "child")
    tried = lines_of(tmp_path, "candidate")
    # Once for every rung that a cell leaves the race at, and for every full training.
    assert {line["number"] for line in tried} == set(cells)
    full = [line for line in tried if line["steps"] == 10]
    least = min(line["perplexity"] for line in full)
    assert tried[-1]["best_perplexity"] == least
    won = [row for row in rungs if row["cell"] == result["cell"] and row["step"] == 10]
    assert len(won) == 2 and won[-1]["draw"] == 1


def test_the_command_says_its_plan_and_its_table(corpus: Corpus, tmp_path: Path) -> None:
    words = ["search", "--corpus", "tiny", "--preset", "smoke", "--out", str(tmp_path / "run")]
    for setting in [*SMALL, *HALVING]:
        words += ["--set", setting]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "plan: 38 cells, 197 steps, the cost of 19.7 full trainings of 10 steps" in done.stderr
    assert "26 cells to step 3, 6 on to 10" in done.stderr
    assert done.stderr.count("winner") == 1
    assert "of the best cell after its short training" in done.stdout
    shown = CliRunner().invoke(main, [*words, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "10 steps a cell, 38 cells" in shown.stdout
    sized = CliRunner().invoke(main, [*words, "--dry-run", "--json"])
    assert json.loads(sized.stdout)["cells"] == 38


def test_a_study_counts_the_steps_of_a_race(corpus: Corpus) -> None:
    assert Sizes(corpus.splits).steps(config(*HALVING)) == 197
    both = config("method=darts-1st", *RACE)
    steps = Sizes(corpus.splits).steps(both)
    assert steps == 6 + HalvingJob(race_config(both), corpus, CPU).plan.total_steps
    for settings in (config(*HALVING), both):
        assert search_seconds(settings, corpus, CPU) > 0


# The race behind a search


@pytest.mark.parametrize("method", ["darts-1st", "random-ws"])
def test_a_race_behind_a_search_resumes_exactly(
    method: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(f"method={method}", "blackbox.cells=3", *RACE, "save_seconds=0")
    whole = search(settings, corpus, tmp_path / "whole", device=CPU, quiet=True)
    dying(monkeypatch, [1, 5, 20])
    cut, died = through(settings, corpus, tmp_path / "cut")
    assert died == 3 and cut["digest"] == whole["digest"]
    for key in ("cell", "origin", "valid_perplexity", "random_cells"):
        assert cut[key] == whole[key]
    kept = [
        [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")}
         for line in lines_of(tmp_path / name, "rung", "candidate", "curve", "epoch")]
        for name in ("whole", "cut")
    ]  # fmt: skip
    assert kept[0] == kept[1]
    assert len(whole["random_cells"]) >= settings.select.guards
    written = json.loads((tmp_path / "cut/genotype.json").read_text())
    assert written == whole["genotype"]


def test_what_a_gradient_search_proposes(corpus: Corpus) -> None:
    settings = config("method=darts-1st", "model.nodes=8", "alphas.lr=1", *RACE)
    job = SearchJob(settings, corpus, CPU)
    start = 0
    for i, steps in enumerate(job.lengths(0)):
        job.step(Position(step=i, window=i, start=start, progress=i / 6), steps, 1.0)
        start += steps
    assert len(job.passed) == int(5 / 6 * 8)
    proposed = proposals(job, settings)
    assert proposed[0].genotype == job.genotype() and proposed[0].origin == "darts-1st"
    origins = [proposal.origin for proposal in proposed]
    assert origins[1] == "darts-1st at 75 %" and origins.count("darts-1st, sample") == 4
    assert [p.genotype for p in proposed[-3:-1]] == [
        ZOO["DARTS_V2"].genotype, ZOO["DARTS_V1"].genotype,
    ]  # fmt: skip
    again = SearchJob(settings, corpus, CPU)
    again.restore(json.loads(json.dumps({"passed": job.state()["passed"]})) | {
        k: v for k, v in job.state().items() if k != "passed"
    })  # fmt: skip
    assert proposals(again, settings) == proposed


def test_samples_follow_the_scores() -> None:
    spaces = {RECURRENT: recurrent_space(2)}
    rng = random.Random(1)
    # Edges s0>s1, s0>s2, s1>s2; operations none, tanh, relu, sigmoid, identity.
    ops = spaces[RECURRENT].ops
    table = [[0.0] * len(ops) for _ in range(3)]
    for edge, op, value in ((0, "tanh", 0.75), (0, "relu", 0.25), (2, "sigmoid", 1.0)):
        table[edge][ops.index(op)] = value
    drawn = [sample(spaces, {RECURRENT: table}, rng).to_text() for _ in range(400)]
    assert set(drawn) == {"tanh0 sigmoid1", "relu0 sigmoid1"}
    assert drawn.count("tanh0 sigmoid1") == pytest.approx(300, abs=40)


def test_the_guards_win_where_a_search_proposes_nothing_better(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search whose cells all diverge returns a random one."""
    original = cell_training.weight_step
    fine = HalvingJob(
        race_config(config("method=darts-1st", *RACE)), corpus, CPU
    ).race.entrants  # the same random cells as beside the proposals
    able = {entrant.genotype.recurrent for entrant in fine}

    def step(net: Any, *args: Any, **more: Any) -> Any:
        loss, norm = original(net, *args, **more)
        return (loss, norm) if net.cell in able else (loss, norm * math.nan)

    monkeypatch.setattr(cell_training, "weight_step", step)
    settings = config("method=darts-1st", *RACE)
    result = search(settings, corpus, tmp_path, device=CPU, quiet=True)
    assert result["origin"] == "random" and result["cell"] in result["random_cells"]


def test_settings_without_effect_are_known() -> None:
    assert "select.by" not in config("method=darts-1st").idle
    assert "select.budget" in config("method=darts-1st").idle
    assert "select.budget" not in config("method=darts-1st", *RACE).idle
    assert {"select.by", "select.budget"} <= config(*HALVING, *RACE).idle
    assert "blackbox.budget" in config("method=random").idle
    assert "blackbox.budget" not in config(*HALVING).idle
    for setting in ("blackbox.budget=1", "blackbox.rung=0", "select.budget=1.5"):
        with pytest.raises(UsageError, match=setting.partition("=")[0]):
            config(setting)


@pytest.mark.parametrize("preset", [None, "quick", "demo", *QUICK])
def test_short_searches_do_not_trust_alphas_alone(preset: str | None) -> None:
    for method in ("darts-1st", "darts"):
        flags = {"corpus": "tiny", "method": method}
        assert resolve("search", preset=preset, file=None, settings=[], flags=flags).races
    timed = {"corpus": "tiny", "method": "darts-1st", "seconds": 60.0}
    assert resolve(
        "search", preset=None, file=None, settings=[], flags=timed, reading=Reading()
    ).races


def test_a_collapsed_search_says_so() -> None:
    collapsed = Genotype.from_text("identity0 identity1 tanh2 identity3 identity2 identity1")
    note = collapse_note(collapsed)
    assert note is not None and "5 of 6 operations are identity" in note
    assert "select.by=race" in note and "\n" not in note
    fine = Genotype.from_text("identity0 identity1 tanh2 relu3 identity2 identity1")
    assert collapse_note(fine) is None and collapse_note(fine, 300.0, 700.0) is None
    worse = collapse_note(fine, 1340.0, 700.0)
    assert worse is not None and "1,340" in worse and "700" in worse
    assert collapse_note(fine, math.nan, 700.0) is not None
    normal = ZOO["DARTS_V2"].genotype.recurrent
    pair = Genotype(cells={"normal": normal, "reduce": collapsed.recurrent})
    note = collapse_note(pair)
    assert note is not None and "of the reduce cell" in note
    assert "halving" not in note  # which images have not
    one = Genotype.from_text("tanh0 tanh1 tanh2 tanh3")
    spaces = {RECURRENT: recurrent_space(4, ops=(NONE, "tanh"))}
    assert collapse_note(one, spaces=spaces) is None and collapse_note(one) is not None


def test_a_search_on_text_notices_its_collapse(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config("method=darts-1st", "weights.lr=1e-6")
    search(settings, corpus, tmp_path, device=CPU)
    said = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert len(said) == 1 and "is above that of the words' frequencies" in said[0]
