"""A study carried out, with a runner that makes up what jobs give."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rnnnas.errors import CheckpointError, Interrupted, UsageError
from rnnnas.runs.files import Lock
from rnnnas.studies.execute import Execution, seconds_of
from rnnnas.studies.finished import finished_study
from rnnnas.studies.plan import (
    Job,
    Sizes,
    StudyConfig,
    final_jobs,
    random_cell,
    resolve_study,
)
from rnnnas.studies.record import Record
from rnnnas.studies.report import choose, markdown, notes, table

SIZES = Sizes({"train": range(20_000)})
CELL = "tanh0 relu1"


def plan(*settings: str, preset: str = "study-smoke", **flags: Any) -> StudyConfig:
    return resolve_study(preset=preset, settings=settings, flags={"corpus": "hmm", **flags})


class Crash(Exception):
    """Stands for a study that is killed."""


class Fake:
    """A runner whose jobs end in the next look, with made-up numbers.

    give: name of the job to its result, or to an exit code. crash: after how many calls it dies,
    before the call does anything or after it did.
    """

    poll_seconds = 0.0

    def __init__(
        self, folder: Path, give: Callable[[str], Any], slots: int = 2, crash: int | None = None
    ) -> None:
        self.folder, self.give, self.slots, self.crash = folder, give, slots, crash
        self.started: list[str] = []
        self.words: dict[str, tuple[str, ...]] = {}
        self.running: list[str] = []
        self.spent: dict[str, float] = {}

    def _tick(self) -> None:
        if self.crash is not None:
            self.crash -= 1
            if self.crash < 0:
                raise Crash

    def free(self) -> int:
        return self.slots - len(self.running)

    def start(self, jobs: Mapping[str, tuple[str, ...]]) -> dict[str, str | None]:
        self._tick()
        for name, words in jobs.items():
            self.started.append(name)
            self.words[name] = words
            self.running.append(name)
        self._tick()
        return dict.fromkeys(jobs)

    def ended(self) -> dict[str, int]:
        codes = {}
        while self.running:
            self._tick()
            name = self.running.pop(0)
            given = self.give(name)
            codes[name] = given if isinstance(given, int) else 0
            if not isinstance(given, int):
                run = self.folder / name
                run.mkdir()
                (run / "result.json").write_text(json.dumps(given))
            self._tick()
        return codes

    def stop(self) -> str:
        return "stopped"

    def kill(self) -> None:
        self.running.clear()


def numbers(valid: Mapping[str, float] | None = None, test: Mapping[str, float] | None = None,
            fails: Mapping[str, int] | None = None) -> Callable[[str], Any]:  # fmt: skip
    def give(name: str) -> Any:
        if name in (fails or {}):
            return (fails or {})[name]
        own = 100.0 + sum(map(ord, name)) % 17
        result = {"valid_perplexity": (valid or {}).get(name, own), "seconds": 10.0, "cell": CELL}
        if not name.startswith("search"):
            result["test_perplexity"] = (test or {}).get(name, own - 5)
        return result

    return give


def execute(
    folder: Path, config: StudyConfig, give: Callable[[str], Any], crash: int | None = None
) -> tuple[dict[str, Any], Fake, list[str]]:
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    runner = Fake(folder, give, crash=crash)
    record = Record.open(folder, config, "sha")
    execution = Execution(record, SIZES, runner, set(), ("--device", "cpu"), said.append)
    return execution.run(), runner, said


class Stopping(Fake):
    """Its first look is when someone stops the study, whose jobs had run a while."""

    def ended(self) -> dict[str, int]:
        if self.started and "stopped" not in self.words:
            self.words["stopped"] = ()
            raise Interrupted("SIGTERM", "again", 143)
        return super().ended()

    def stop(self) -> str:
        self.spent = dict.fromkeys(self.started, 5.0)
        return "stopped"


def test_what_jobs_spent_before_a_stop_is_kept(tmp_path: Path) -> None:
    record = Record.open(tmp_path, plan(), "sha")
    runner = Stopping(tmp_path, numbers())
    with pytest.raises(Interrupted):
        Execution(record, SIZES, runner, set(), (), lambda text: None).run()
    (first, *_) = runner.started
    again = Fake(tmp_path, numbers())
    again.spent[first] = 2.0
    record = Record.open(tmp_path, plan(), "sha")
    Execution(record, SIZES, again, set(), (), lambda text: None).run()
    assert record.job(first)["processor_seconds"] == 7.0


def test_a_study_goes_through_and_says_what_it_gave(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    short = {"train-darts-1st-s1": 120.0, "train-darts-1st-s2": 110.0,
             "train-random-r1": 115.0, "train-random-r2": 119.0}  # fmt: skip
    # The test perplexities disagree with the choice: they must not matter.
    test = {"train-darts-1st-s1": 1.0, "train-random-r2": 1.0, "final-darts-1st-s2-t1": 99.0}
    result, runner, said = execute(folder, plan(), numbers(short, test))
    assert [n for n in runner.started if n.startswith("final")] == [
        "final-darts-1st-s2-t1", "final-random-r1-t1"
    ]  # fmt: skip
    assert runner.words["final-random-r1-t1"][-3:] == ("--json", "--device", "cpu")
    own = result["methods"]["darts-1st"]
    assert own["chosen"] == {"seed": 2, "cell": CELL, "name": "darts-1st-s2"}
    assert (own["valid"]["n"], own["valid"]["mean"]) == (2, 115.0)
    half = 12.7062 * 50**0.5 / 2**0.5
    assert own["valid"]["low"] == pytest.approx(115 - half, abs=1e-2)
    assert own["test"] == {"n": 1, "mean": 99.0, "sd": None, "low": None, "high": None}
    assert own["random_best_of_n"] == 115.0 and own["best_valid"] == 110.0
    assert own["seconds"] == {"search": 20.0, "short": 20.0, "final": 10.0}
    drawn = result["methods"]["random cells"]
    assert drawn["seconds"] == {"search": 0, "short": 20.0, "final": 10.0}
    assert drawn["cells"][0]["cell"] == random_cell(plan(), 1)
    assert result["tau"]["n"] == 2 and result["tau"]["needed"] is None
    assert result["failed"] == [] and result["seconds"] == 80.0
    stored = json.loads((folder / "study.json").read_text())
    assert {"run": str(folder), **stored["result"]} == result
    assert sum("done in 10 s" in line for line in said) == 8
    assert "8/8 jobs" in said[-1] and "about 0:00 left" in said[-1]
    text = table(result)
    assert "115.00 ± 7.07" in text and "[51.47, 178.53]" in text
    assert "too few to mean anything" in text and "2 seeds tell large differences only" in text
    rows = [line for line in markdown(result).splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(
        result["methods"]
    ) and "| 115.00 ± 7.07 | [51.47, 178.53] |" in " ".join(rows)
    assert len(list((folder / "summary").glob("*/events.*"))) == 3  # a method each, and the summary


def test_wherever_a_study_dies_it_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole, runner, _ = execute(tmp_path / "whole", plan(), numbers())
    whole.pop("run")
    stops = 0
    for crash in range(0, 200, 2):
        folder = tmp_path / f"cut{crash}"
        try:
            execute(folder, plan(), numbers(), crash=crash)
        except Crash:
            stops += 1
        else:
            break
        done = {path.parent.name for path in folder.glob("*/result.json")}
        result, again, _ = execute(folder, plan(), numbers())
        assert not done & set(again.started), "a finished job ran again"
        assert {k: v for k, v in result.items() if k != "run"} == whole
    assert stops > 10
    print(f"study: {stops} stop points")


def test_a_finished_study_repeats_its_result_and_runs_nothing(tmp_path: Path) -> None:
    first, _, _ = execute(tmp_path / "s", plan(), numbers())
    before = (tmp_path / "s/study.json").read_bytes()
    second, runner, _ = execute(tmp_path / "s", plan(), numbers())
    assert second == first and not runner.started
    assert (tmp_path / "s/study.json").read_bytes() == before


def test_more_seeds_and_methods_extend_a_study(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    _, first, _ = execute(folder, plan(), numbers({"train-darts-1st-s1": 90.0}))
    # Seed 5 is better: another cell is chosen, and the older final training steps back.
    give = numbers({"train-darts-1st-s5": 80.0})
    result, more, _ = execute(folder, plan(seeds=[5], methods=["darts"]), give)
    assert not set(first.started) & set(more.started)
    assert {n for n in more.started if n.startswith("search")} == {
        "search-darts-1st-s5", "search-darts-s1", "search-darts-s2", "search-darts-s5",
    }  # fmt: skip
    assert result["methods"]["darts-1st"]["chosen"]["seed"] == 5
    assert result["methods"]["darts-1st"]["valid"]["n"] == 3
    assert result["methods"]["random cells"]["planned"] == 6
    assert "final-darts-1st-s1-t1" in result["superseded"]
    # Asked for less, it stays what it is.
    again, none, _ = execute(folder, plan(), give)
    assert again == result and not none.started


def test_a_finished_study_with_a_search_that_failed_stays_finished(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    give = numbers(fails={"search-darts-1st-s2": 6})
    first, _, _ = execute(folder, plan(), give)
    before = (folder / "study.json").read_bytes()
    again, runner, _ = execute(folder, plan(), give)
    assert again == first and not runner.started
    assert (folder / "study.json").read_bytes() == before


def test_a_study_that_grows_is_not_finished(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    execute(folder, plan(), numbers())
    record = Record.open(folder, plan(seeds=[5]), "sha")
    Execution(record, SIZES, Fake(folder, numbers()), set(), (), lambda text: None)._begin()
    with pytest.raises(UsageError, match="not finished"):
        finished_study(folder)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["search.alphas.lr=0.5"], r"search.darts-1st.alphas.lr is 0.003 there and 0.5 here"),
        (["short.epochs=2"], "short.epochs is 1 there and 2 here"),
        (["final.preset=quick"], "final.noise.dropoute is 0.1 there and 0.0"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, settings: list[str], named: str) -> None:
    execute(tmp_path / "s", plan(), numbers())
    with pytest.raises(UsageError, match=named) as error:
        Record.open(tmp_path / "s", plan(*settings), "sha")
    assert "--fresh" in error.value.remedy
    with pytest.raises(UsageError, match="corpus_sha256"):
        Record.open(tmp_path / "s", plan(), "another")
    Record.open(tmp_path / "s", plan("retries=4", "slurm.time=5"), "sha")


def test_folders_that_hold_no_study_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files but no study"):
        Record.open(tmp_path, plan(), "sha")
    (tmp_path / "study.json").write_text('{"plan": 3}')
    with pytest.raises(CheckpointError, match="damaged"):
        Record.open(tmp_path, plan(), "sha")


def test_failures_are_tried_again_and_then_listed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    fails = {"search-darts-1st-s1": 5, "train-random-r2": 6}
    result, runner, said = execute(folder, plan(), numbers(fails=fails))
    # Once more for a failure, never for a divergence: it would repeat itself.
    assert runner.started.count("search-darts-1st-s1") == 2
    assert runner.started.count("train-random-r2") == 1
    assert "train-darts-1st-s1" not in runner.started
    states = {entry["job"]: (entry["state"], entry.get("exit_code")) for entry in result["failed"]}
    assert states == {
        "search-darts-1st-s1": ("failed", 5), "train-darts-1st-s1": ("skipped", None),
        "train-random-r2": ("failed", 6),
    }  # fmt: skip
    own = result["methods"]["darts-1st"]
    assert (own["planned"], own["valid"]["n"], own["valid"]["sd"]) == (2, 1, None)
    text = table(result)
    assert "1 of 2" in text and "FAILED with exit code 6: train-random-r2" in text
    assert any("given up" in line for line in said)
    # The same command changes nothing; a higher number of retries gives another chance.
    again, none, _ = execute(folder, plan(), numbers())
    assert again == result and not none.started
    healed, more, _ = execute(folder, plan("retries=2"), numbers(fails={"train-random-r2": 6}))
    assert "search-darts-1st-s1" in more.started and "train-random-r2" not in more.started
    assert [entry["job"] for entry in healed["failed"]] == ["train-random-r2"]


def test_a_method_that_failed_everywhere_stands_in_the_table(tmp_path: Path) -> None:
    fails = {f"train-darts-1st-s{k}": 6 for k in (1, 2)}
    result, runner, _ = execute(tmp_path / "s", plan(), numbers(fails=fails))
    assert result["methods"]["darts-1st"]["chosen"] is None
    assert [n for n in runner.started if n.startswith("final")] == [
        f"final-{result['methods']['random cells']['chosen']['name']}-t1"
    ]
    row = next(line for line in table(result).splitlines() if line.startswith("darts-1st"))
    assert "0 of 2" in row and "failed" in row


def test_a_job_that_was_stopped_from_elsewhere_goes_on(tmp_path: Path) -> None:
    give, stops = numbers(), [143, -15, 143]
    result, runner, _ = execute(
        tmp_path / "s", plan(),
        lambda name: stops.pop() if stops and name == "train-random-r1" else give(name),
    )  # fmt: skip
    assert runner.started.count("train-random-r1") == 4 and not result["failed"]


def test_an_exit_of_0_without_a_result_is_a_failure(tmp_path: Path) -> None:
    give = numbers()
    result, runner, _ = execute(
        tmp_path / "s", plan("retries=0"), lambda n: 0 if n == "train-random-r1" else give(n)
    )
    assert [entry["job"] for entry in result["failed"]] == ["train-random-r1"]


def test_a_run_that_outlived_its_study_is_waited_for(tmp_path: Path) -> None:
    """The study was killed, a job of it was not: it holds its run folder until it is done."""
    folder = tmp_path / "s"
    (folder / "train-random-r1").mkdir(parents=True)
    record = Record(folder, plan(), "sha")
    record.save()
    lock = Lock(folder / "train-random-r1")
    give = numbers()
    looks = 0

    class Patient(Fake):
        def ended(self) -> dict[str, int]:
            nonlocal looks
            looks += 1
            if looks == 30:
                path = folder / "train-random-r1/result.json"
                path.write_text(json.dumps(give("train-random-r1")))
                lock.release()
            return super().ended()

    runner = Patient(folder, give)
    said: list[str] = []
    result = Execution(record, SIZES, runner, set(), (), said.append).run()
    assert "train-random-r1" not in runner.started and not result["failed"]
    assert any("runs since an earlier start" in line for line in said)


# The report


def test_the_choice_is_by_validation_and_the_earlier_one_on_ties() -> None:
    jobs = [
        Job(name=f"train-{m}-s{s}", kind="short", method=m, seed=s, words=(), steps=1)
        for m in ("a", "b") for s in (1, 2, 3)
    ]  # fmt: skip
    valid = [5.0, 4.0, 4.0, 7.0, 8.0, 9.0]
    results = {
        job.name: {"valid_perplexity": v, "test_perplexity": -v}
        for job, v in zip(jobs, valid, strict=True)
    }
    assert choose(jobs, results) == {"a": 2, "b": 1}
    del results["train-a-s2"]
    assert choose(jobs, results) == {"a": 3, "b": 1}


def test_searches_on_the_validation_text_are_told_of(tmp_path: Path) -> None:
    config = plan('search.alphas.text="valid"')
    result, _, _ = execute(tmp_path / "s", config, numbers())
    assert result["alphas_on_validation_text"] == ["darts-1st"]
    assert any("no independent measure" in line for line in notes(result))
    assert not any("no independent" in line for line in notes({**result,
                   "alphas_on_validation_text": []}))  # fmt: skip


def test_a_method_without_alphas_of_its_own_text_is_not_told_of(tmp_path: Path) -> None:
    """SNAS trains its alphas on the weights' windows, whatever `alphas.text` says."""
    config = plan('search.alphas.text="valid"', methods=["snas", "random-ws"])
    result, _, _ = execute(tmp_path / "s", config, numbers())
    assert result["alphas_on_validation_text"] == ["random-ws"]


def test_the_final_trainings_are_planned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning them composes configurations, which a poll every tenth of a second must not."""
    calls = []
    monkeypatch.setattr(
        "rnnnas.studies.execute.final_jobs", lambda *args: calls.append(1) or final_jobs(*args)
    )
    _, runner, _ = execute(tmp_path / "s", plan(), numbers())
    assert len(calls) == 1 and sum(n.startswith("final") for n in runner.started) == 2


def test_a_smaller_number_of_random_cells_takes_none_away(tmp_path: Path) -> None:
    """0 stands for as many as there are searches."""
    execute(tmp_path / "s", plan(), numbers())
    for asked, there in ((0, 2), (1, 2), (3, 3), (0, 3)):
        record = Record.open(tmp_path / "s", plan(random_cells=asked), "sha")
        assert record.config.randoms == there
        record.save()
    record = Record.open(tmp_path / "s", plan(seeds=[1, 2, 3, 4]), "sha")
    assert record.config.randoms == 4


def test_final_seeds_give_the_test_an_interval(tmp_path: Path) -> None:
    result, runner, _ = execute(
        tmp_path / "s", plan("final_seeds=[1, 2, 3]"),
        numbers(test={f"final-random-r1-t{k}": 90.0 + k for k in (1, 2, 3)},
                valid={"train-random-r1": 50.0}),
    )  # fmt: skip
    test = result["methods"]["random cells"]["test"]
    assert (test["n"], test["mean"], test["sd"]) == (3, 92.0, 1.0)
    assert sum(n.startswith("final") for n in runner.started) == 6


def test_time_left_goes_by_the_most_similar_jobs_that_are_done() -> None:
    kind = dict(words=(), seed=1, steps=10)
    done = [
        Job(name="1", kind="search", method="a", **kind),  # type: ignore[arg-type]
        Job(name="2", kind="search", method="b", **kind),  # type: ignore[arg-type]
    ]
    results = {"1": {"seconds": 10.0}, "2": {"seconds": 30.0}}
    like = dataclasses.replace(done[0], steps=20)
    assert seconds_of(like, done, results) == 20.0
    assert seconds_of(dataclasses.replace(like, method="c"), done, results) == 40.0
    assert seconds_of(dataclasses.replace(like, kind="final"), done[:1], results) == 20.0
    assert seconds_of(like, [], results) == 0.0
