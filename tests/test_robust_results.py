"""Figures are believed where a seal covers them, and where what they speak of is there."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnnas.cli.checkpoints import _say_whose
from rnnnas.engine.budget import read_plan
from rnnnas.errors import CheckpointError, DiskError, UsageError
from rnnnas.latency.recurrent import read_table
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.zoo import read_genotype
from rnnnas.reporting.read import read_run, read_study
from rnnnas.runs.folder import Run
from rnnnas.runs.sealed import open_sealed, read_result, read_sealed, write_sealed
from rnnnas.searching.race_budget import TimedRace, keep_race
from rnnnas.studies.listing import info_of as info
from rnnnas.studies.record import Record

RESULT = {
    "run": "r",
    "seconds": 12.5,
    "valid_perplexity": 123.456,
    "digest": "ab" * 32,
    "bad": float("inf"),
}
CONFIG = {"corpus": "nowhere", "epochs": 1, "method": "darts", "seed": 1}


def finished(folder: Path, kind: str = "search") -> Path:
    with Run.open(folder, kind, CONFIG) as run:
        run.log("epoch", 10, epoch=1, valid_perplexity=123.456)
        run.save_best({"metrics": {"valid_perplexity": 123.456}})
        run.finish(RESULT)
    return folder


def test_a_result_reads_as_it_was_given(tmp_path):
    folder = finished(tmp_path / "r")
    assert (
        read_result(folder) == RESULT | {"bad": None} == Run.open(folder, "search", CONFIG).result
    )
    assert info(folder).state == "finished" and read_run(folder).result == RESULT | {"bad": None}
    assert read_result(tmp_path) is None


def test_every_changed_digit_of_a_result_is_refused(tmp_path):
    path = finished(tmp_path / "r") / "result.json"
    text = path.read_text()
    places = [i for i, c in enumerate(text) if c.isdigit()]
    for at in random.Random(1).sample(places, 60):
        path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        for read in (read_result, read_run, lambda f: Run.open(f, "search", CONFIG)):
            with pytest.raises(CheckpointError, match=r"result\.json is damaged: it was changed"):
                read(path.parent)
        assert info(path.parent).state == "damaged"


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', '{"sealed": 3}', '{"sealed": {}}', ""])
def test_a_result_of_another_type_is_refused(text, tmp_path):
    path = finished(tmp_path / "r") / "result.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"result\.json is damaged"):
        read_result(path.parent)


def test_a_run_whose_best_is_gone_or_anothers_is_not_finished(tmp_path, capsys):
    folder, other = finished(tmp_path / "r"), tmp_path / "other"
    with Run.open(other, "search", CONFIG) as run:
        run.save_best({"metrics": {"valid_perplexity": 99.0}})
    (folder / "best.pt").rename(tmp_path / "kept.pt")
    with pytest.raises(CheckpointError, match=r"is not finished: its best\.pt is gone"):
        read_result(folder)
    assert info(folder).state != "finished"
    (other / "best.pt").rename(folder / "best.pt")
    with pytest.raises(CheckpointError, match=r"best\.pt is not the one that"):
        read_result(folder)
    _say_whose(folder / "best.pt")
    assert "note: " in (said := capsys.readouterr().err) and "best.pt is not the one that" in said
    (tmp_path / "kept.pt").rename(folder / "best.pt")
    assert read_result(folder) is not None
    _say_whose(folder / "best.pt")
    _say_whose(tmp_path / "elsewhere" / "best.pt")
    assert capsys.readouterr().err == ""


def test_metrics_that_were_changed_afterwards_are_noticed(tmp_path):
    folder = finished(tmp_path / "r")
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace("123.456", "113.456"))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl was changed"):
        read_run(folder)


def test_results_of_earlier_versions_have_no_seal_and_are_read(tmp_path):
    folder = finished(tmp_path / "r")
    (folder / "result.json").write_text(json.dumps({"digest": "x"}))
    with pytest.raises(CheckpointError, match="its seal is gone"):  # of this version it has one
        read_result(folder)
    about = json.loads((folder / "config.json").read_text())
    del about["sealed"]
    (folder / "config.json").write_text(json.dumps(about))
    assert read_result(folder) == {"digest": "x"}
    (folder / "result.json").write_text(json.dumps({"checkpoint": "r/best.pt"}))
    (folder / "best.pt").unlink()
    with pytest.raises(CheckpointError, match=r"its best\.pt is gone"):
        read_result(folder)


def test_a_seal_covers_what_it_is_about_too(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, {"a": 1}, {"best": "one"})
    assert open_sealed(path, "") == ({"a": 1}, {"best": "one"})
    path.write_text(path.read_text().replace("one", "two"))
    with pytest.raises(CheckpointError, match="changed"):
        read_sealed(path, "")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("study.json", read_study),
        ("study.json", lambda folder: Record.open(folder, None, "sha")),
        ("plan.json", read_plan),
        ("latency.json", lambda folder: read_table(folder / "latency.json")),
    ],
)
def test_other_files_of_ours_are_sealed(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    write_sealed(tmp_path / name, {"seconds": 1.25, "plan": {}, "jobs": {}, "result": None})
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace("1.25", "1.26"))
    with pytest.raises(CheckpointError, match="it was changed since it was written"):
        read(tmp_path)


def test_a_result_says_by_what_it_was_computed(tmp_path: Path) -> None:
    with Run.open(tmp_path, "search", CONFIG) as run:
        run.finish(RESULT, "float32 on cpu, torch 2, 1 threads")
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["sealed"]["computed_by"] == "float32 on cpu, torch 2, 1 threads"
    assert read_result(tmp_path) == RESULT | {"bad": None}
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(text.replace("torch 2", "torch 3"))
    with pytest.raises(CheckpointError, match="changed"):
        read_result(tmp_path)


@pytest.mark.parametrize("read", [read_run, lambda folder: Run.open(folder, "search", CONFIG)])
def test_a_changed_setting_of_a_run_is_refused(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = finished(tmp_path / "r")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged: it was changed"):
        read(folder)
    assert info(folder).state == "damaged"


def test_metrics_that_were_changed_while_a_run_was_stopped_are_refused(tmp_path: Path) -> None:
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.log("train", 1, loss=3.5)
        run.save_state({"step": 1})
        run.log("train", 2, loss=2.5)
        run.save_state({"step": 2})
        run.log("train", 3, loss=1.5)  # after the state: cut off at the resume
    path = tmp_path / "metrics.jsonl"
    text = path.read_text()
    for changed in (text.replace("3.5", "3.4"), text[:20]):
        path.write_text(changed)
        with (
            Run.open(tmp_path, "train", CONFIG) as run,
            pytest.raises(CheckpointError, match=r"metrics\.jsonl was changed since state\.pt"),
        ):
            run.load_state()
        assert path.read_text() == changed  # nothing was cut
    path.write_text(text.replace("1.5", "9.9"))
    with Run.open(tmp_path, "train", CONFIG) as run:
        assert run.load_state() == {"step": 2}
    path.unlink()  # the remedy
    with Run.open(tmp_path, "train", CONFIG) as run:
        assert run.load_state() == {"step": 2}


def test_a_digest_of_metrics_follows_what_is_cut_and_written_again(tmp_path: Path) -> None:
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.log("train", 1, loss=3.5)
        run.save_state({"step": 1})
        run.log("train", 2, loss=2.5)
        run._hashed.digest(run.metrics_path, 10_000)  # as a save does that then fails
        run.load_state()
        run.log("train", 2, loss=1.25)
        run.save_state({"step": 2})
    with Run.open(tmp_path, "train", CONFIG) as run:
        assert run.load_state() == {"step": 2}


def test_the_budget_of_a_race_is_sealed(tmp_path: Path) -> None:
    keep_race(tmp_path, TimedRace(budget=6.5, windows=100, step=0.1, end=1, begins=0, workers=2))
    path = tmp_path / "race.json"
    path.write_text(path.read_text().replace("6.5", "7.5"))
    with pytest.raises(CheckpointError, match="it was changed since it was written"):
        read_sealed(path, "")


# A disk that is read only


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse)


def test_a_finished_run_on_a_read_only_disk_repeats_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished(tmp_path / "r")
    with Run.open(tmp_path / "half", "search", CONFIG) as run:
        run.save_state({"step": 1})
    read_only(monkeypatch)
    assert Run.open(folder, "search", CONFIG).result == RESULT | {"bad": None}
    with pytest.raises(UsageError, match="seed is 1 there and 2 here"):
        Run.open(folder, "search", CONFIG | {"seed": 2})
    with pytest.raises(DiskError, match="Read-only"):  # it would have to go on
        Run.open(folder, "search", CONFIG | {"epochs": 2}, grows=("epochs",))
    with pytest.raises(DiskError, match="Read-only"):
        Run.open(tmp_path / "half", "search", CONFIG)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", lambda cell: {"genotype": cell}),
        ("config.json", lambda cell: {"config": {"genotype": cell}}),
    ],
)
def test_the_genotype_of_a_run_is_the_one_that_the_run_tells(
    tmp_path: Path, name: str, content: Any
) -> None:
    cell = Genotype.from_text("tanh0 relu1")
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(cell.to_plain()))
    (tmp_path / name).write_text(json.dumps(content(cell.to_plain())))
    assert read_genotype(str(tmp_path)) == cell
    path.write_text(path.read_text().replace("relu", "tanh"))
    with pytest.raises(UsageError, match=f"not the cell that {name}"):
        read_genotype(str(tmp_path))
