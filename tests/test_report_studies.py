"""Reports of paired studies, of several runs, of older settings, of a plug-in's operations."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sample_runs import SHA, rung_lines, search_run, study_folder, train_run

from rnnnas.cli import main
from rnnnas.engine.budget import Costs, Plan, write_plan
from rnnnas.reporting.charts import Row, Series, line_chart, strips
from rnnnas.reporting.leaders import history_of
from rnnnas.reporting.page import report
from rnnnas.reporting.paired_section import job_row, percent
from rnnnas.reporting.read import read_run
from rnnnas.reporting.repeat import command_of
from rnnnas.reporting.sections import cells_tried, state_of, table
from rnnnas.reporting.side_by_side import short_names
from rnnnas.runs.files import write_json
from rnnnas.studies.paired_table import count_text, noise_notes, paired_report
from rnnnas.studies.plan import Sizes, StudyConfig, first_jobs, resolve_study
from rnnnas.studies.record import Record

VERSION_0_1 = Path(__file__).parent / "version_0_1"


def words_of(paths: list[Path], folder: Path) -> str:
    text = report(paths, folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", text,
                                      flags=re.S))  # fmt: skip


def paired_study(folder: Path, *, done: bool = True, failed: Any = ()) -> Path:
    """A study whose every cell gets two final trainings: the method's lie 10 % below chance's."""
    config: StudyConfig = resolve_study(
        preset="study-smoke",
        settings=['finals="all"', 'fixed=["LSTM"]', "final_seeds=[11, 12]", "random_cells=2"],
        flags={"corpus": "nowhere", "methods": ["darts-1st"], "seeds": [1, 2]},
    )
    folder.mkdir(parents=True)
    jobs = first_jobs(config, Sizes({"train": range(100_000)}))
    results: dict[str, Any] = {}
    for job in jobs:
        if job.kind == "search":
            search_run(folder / job.name, seed=job.seed)
        elif done or "t11" in job.name:
            level = 90.0 if job.method == "darts-1st" else 100.0
            train_run(folder / job.name, seed=job.seed, valid=level + 5 * job.seed + 3)
        if (folder / job.name / "result.json").is_file():
            results[job.name] = json.loads((folder / job.name / "result.json").read_text())
    record = Record(folder, config, SHA)
    for job in jobs:
        record.job(job.name)["state"] = "done" if job.name in results else "waiting"
    if done:
        record.result = {**paired_report(record, jobs, results), "failed": list(failed)}
    record.save()
    return folder


def test_a_paired_study_is_told_by_its_rows_and_its_differences(tmp_path: Path) -> None:
    words = words_of([paired_study(tmp_path / "s")], tmp_path)
    # Test perplexities: 95 and 100 of the method, 105 and 110 of chance, LSTM 100.
    assert "test perplexity, darts-1st 97.5" in words
    assert "test perplexity, random cells 107.5" in words
    assert "test perplexity, LSTM 100.0" in words
    mean = 100 * math.expm1((math.log(95 / 105) + math.log(100 / 110)) / 2)
    assert f"darts-1st random cells 2 {mean:+.1f} %" in words
    assert "Differences" in words and "Final trainings" in words
    assert "rnnnas study --corpus nowhere --methods darts-1st" in words


def test_a_paired_study_under_way_is_told_by_what_is_done(tmp_path: Path) -> None:
    words = words_of([paired_study(tmp_path / "s", done=False)], tmp_path)
    assert "not finished: 7 jobs done" in words and "test perplexity, darts-1st 97.5" in words
    # Nor do rows vanish when the first training with the next seed is done.
    train_run(tmp_path / "s/final-LSTM-t12", seed=0, valid=103.0)
    words = words_of([tmp_path / "s"], tmp_path)
    assert "not finished: 8 jobs done" in words and "test perplexity, darts-1st 97.5" in words


def test_what_an_earlier_version_told_is_told_as_it_was() -> None:
    older = {"rows": {"gdas": {"test": {"n": 3}}}, "tests": [{"method": "gdas", "against": "LSTM"}]}
    assert noise_notes(older) == [] and count_text(older["rows"]["gdas"]) == "3"  # type: ignore[index]
    now = {**older, "training_sd": 0.01}
    assert "fixed cell" in noise_notes(now)[0]
    assert "fixed cell" not in noise_notes({**now, "tests": []})[0]
    assert "not known" in noise_notes({**older, "training_sd": None})[0]


def test_rounds_of_a_time_budget_are_counted_as_such(tmp_path: Path) -> None:
    run = read_run(search_run(tmp_path / "a", epochs=4, done=False))
    assert state_of(run) == "stopped, epoch 3 of 4"
    timed = dataclasses.replace(run, config={**run.config, "epochs": 1, "seconds": 60.0})
    assert state_of(timed) == "stopped, round 3 of 3"
    costs = Costs(step=0.1, validation=0.1, end=0.1)
    planned = Plan(seconds=60.0, spent=1.0, rounds=12, steps=5, every=1, costs=costs)
    write_plan(tmp_path / "a", planned)
    assert state_of(timed) == "stopped, round 3 of 12"
    history = history_of(timed)
    assert history.caption(history.frames[-1]) == "round 3 of 12"


def test_jobs_belong_to_rows() -> None:
    result: dict[str, Any] = {"rows": {"gdas": {}, "random@2": {}, "random cells": {}, "LSTM": {}}}
    names = {"final-gdas-s1-t3": "gdas", "final-random@2-s1-t11": "random@2",
             "final-random-r4-t11": "random cells", "final-LSTM-t1": "LSTM",
             "search-gdas-s1": None, "final-snas-s1-t1": None}  # fmt: skip
    assert {name: job_row(name, result) for name in names} == names


def test_a_difference_in_log_perplexity_is_one_in_percent() -> None:
    assert percent(math.log(1.25)) == pytest.approx(25) and percent(None) is None


def test_a_failed_job_and_a_warning_stand_apart(tmp_path: Path) -> None:
    failed = [{"job": "final-LSTM-t11", "state": "failed", "message": "no disk"}]
    folder = paired_study(tmp_path / "s", failed=failed)
    text = report([folder], tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.search(r'<p class="sub loud">FAILED: final-LSTM-t11: no disk</p>', text)


# Several runs


def test_results_of_several_runs_stand_on_one_axis(tmp_path: Path) -> None:
    folders = [train_run(tmp_path / "runs" / f"demo-{n}", seed=s, valid=100.0 + s)
               for s, n in enumerate(("found", "random"), 1)]  # fmt: skip
    search = search_run(tmp_path / "runs" / "demo-search")
    text = report([*folders, search], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h1>3 runs</h1>" in text
    (chart,) = re.findall(r'aria-label="validation perplexity of each run".*?</svg>', text)
    titles = re.findall(r"<title>(.*?)</title>", chart)
    assert titles == ["demo-found: 101", "demo-random: 102"]  # the search has another measure
    assert re.findall(r'text-anchor="end">(.*?)</text>', chart) == ["found", "random"]


def test_searches_alone_are_compared_with_each_other(tmp_path: Path) -> None:
    runs = [search_run(tmp_path / name, seed=s) for s, name in enumerate("ab")]
    text = report(runs, tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'aria-label="validation perplexity of each run"' in text


def test_a_title_counts_runs_and_studies(tmp_path: Path) -> None:
    run, study = train_run(tmp_path / "t"), study_folder(tmp_path / "s")
    assert "<h1>1 run and 1 study</h1>" in report([run, study], tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["demo-s1-found", "demo-s1-lstm"], ["found", "lstm"]),
        (["a", "a"], ["a", "a"]),
        (["q", "q-2"], ["q", "q-2"]),
        (["alone-here"], ["alone-here"]),
        (["x" * 30, "y"], ["x" * 21 + "…", "y"]),
    ],
)
def test_names_beside_a_line_are_short(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short


# Older settings, plug-ins


@pytest.mark.parametrize("name", ["search", "train", "lstm"])
def test_the_command_of_a_run_of_version_0_1_gives_its_settings(name: str) -> None:
    run = read_run(VERSION_0_1 / name)
    words = shlex.split(command_of(run) or "")
    place = words.index("--out")
    done = CliRunner().invoke(main, [*words[1:place], "--print-config", "--json"])
    assert done.exit_code == 0, done.output
    reached = json.loads(done.stdout)

    def held(there: Any, wanted: Any) -> bool:
        if isinstance(wanted, dict) and isinstance(there, dict):
            return all(held(there[k], v) for k, v in wanted.items())
        return bool(there == wanted)

    wanted = {k: v for k, v in run.config.items() if k not in ("corpus_sha256", "save_seconds")}
    assert held(reached, wanted)


def test_a_plug_ins_operations_have_their_names(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "own")
    about = json.loads((folder / "config.json").read_text())
    about["config"]["space"]["ops"] = ["none", "tanh", "relu", "bump", "identity"]
    write_json(folder / "config.json", about)
    run = read_run(folder)
    rows, ops = run.names_of("recurrent", run.frames[-1].tables["recurrent"])
    assert ops == ["none", "tanh", "relu", "bump", "identity"] and rows[0] == "s0 > s1"


def test_the_command_names_the_plug_in_files(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "own")
    about = json.loads((folder / "config.json").read_text())
    about["plugins"] = [{"name": "my_method.py", "digest": "ab"}, {"name": "theirs", "digest": "1"}]
    write_json(folder / "config.json", about)
    command = command_of(read_run(folder)) or ""
    assert "--plugin my_method.py --method" in command and "theirs" not in command


# Parts


def test_what_follows_a_line_end_stands_small_below() -> None:
    drawn = table(["a", "b"], [["x", "1.5\n[1, <2]"]])
    assert "<td>1.5<small>[1, &lt;2]</small></td>" in drawn


def test_the_cells_of_a_halving_are_counted(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "h")
    lines = [{"kind": "rung", "cell": c} for c in "aab"] + [{"kind": "candidate", "cell": "c"}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert cells_tried(read_run(folder)) == 3


def test_long_numbers_do_not_run_into_the_axis_name() -> None:
    drawn = line_chart([Series(label="", points=[(1.0, 1.609426), (2.0, 1.609421)])], label="l",
                       x_label="x", y_label="y")  # fmt: skip
    ends = re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="end">(.*?)</text>', drawn)
    assert ends and all(float(x) - 6.4 * len(word) > 15 for x, word in ends)


def test_labels_stand_beside_the_frame() -> None:
    long, short = ((float(x), 1.0 + x) for x in range(9)), ((0.0, 3.0), (1.0, 2.0))
    drawn = line_chart([Series(label="long", points=list(long)),
                        Series(label="short", points=list(short))], label="l", x_label="x",
                       y_label="y")  # fmt: skip
    places = dict(re.findall(r'<text x="([\d.]+)"[^>]*>(long|short)</text>', drawn))
    assert list(places.values()) == ["short"] and len(places) == 1  # one x for both


def test_a_level_is_on_the_axis_of_strips() -> None:
    row = Row(label="a", values=[(5.0, "a")], mean=None, low=4.0, high=6.0)
    drawn = strips([row], label="l", x_label="x", level=0.0)
    (x,) = re.findall(r'class="level" d="M([\d.]+) ', drawn)
    (tick,) = re.findall(r'<text x="([\d.]+)"[^>]*>0</text>', drawn)
    assert float(x) == pytest.approx(float(tick))


# What a search held for the best


def test_the_best_cell_of_every_rung_moves(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "h", done=False)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rung_lines()))
    past = history_of(read_run(folder))
    # By the train loss of the first rung, by the held-out one of the second.
    assert [(past.caption(f), f.cell) for f in past.frames] == [
        ("rung 1 of 2", "tanh0 relu0"), ("rung 2 of 2", "sigmoid0 relu0"),
    ]  # fmt: skip
    text = report([folder], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "The best cell, rung by rung" in text and 'type="range"' in text
    assert "Shares of the operations" not in text and "rung 2 of 2</output>" in text


def test_the_best_cell_so_far_of_trials_moves_where_it_becomes_another(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "h", done=False)
    tried = [("tanh0", 9.0), ("relu0", None), ("identity0", 9.5), ("sigmoid0", 8.0)]
    lines = [{"kind": "candidate", "number": i, "cell": cell, "perplexity": value}
             for i, (cell, value) in enumerate(tried)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    past = history_of(read_run(folder))
    assert [(past.caption(f), f.cell) for f in past.frames] == [
        ("cell 1 of 4", "tanh0"), ("cell 4 of 4", "sigmoid0"),
    ]  # fmt: skip


def test_a_search_that_moves_alphas_has_its_epochs_and_a_training_none(tmp_path: Path) -> None:
    past = history_of(read_run(search_run(tmp_path / "s", epochs=3)))
    assert [past.caption(f) for f in past.frames] == [f"epoch {i} of 3" for i in (1, 2, 3)]
    assert history_of(read_run(train_run(tmp_path / "t"))).frames == []


def test_the_name_of_a_level_stays_out_of_the_ticks() -> None:
    drawn = line_chart([Series(label="a", points=[(0.0, 9.0), (1.0, 5.0)])], label="l", x_label="x",
                       y_label="y", levels=[(1.0, "frequencies")])  # fmt: skip
    (name,) = re.findall(r'y="([\d.]+)"[^>]*>frequencies</text>', drawn)
    (level,) = re.findall(r'class="level" d="M[\d.]+ ([\d.]+)H', drawn)
    assert float(name) < float(level)
