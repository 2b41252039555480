"""Where a race is carried out: here or by others, on from another arithmetic, without its files."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_work import zipf_text
from test_races import CPU, HALVING, SHORT, config, lines_of
from tiny_home import corpus as corpus
from tiny_home import home as home

from rnnnas.data.corpus import Corpus
from rnnnas.errors import CheckpointError, Interrupted
from rnnnas.nas import operations
from rnnnas.nas.genotype import Genotype
from rnnnas.searching import halving
from rnnnas.searching.cell_training import CellTraining, Course
from rnnnas.searching.halving import HalvingJob
from rnnnas.searching.run import search

HOME_TEXT = zipf_text(30, 400)


def test_a_race_that_goes_on_in_another_arithmetic_says_so(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    original, calls = CellTraining.advance, [0]

    def advance(self: CellTraining) -> None:
        calls[0] += 1
        if calls[0] == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(CellTraining, "advance", advance)
    settings = config(*SHORT, "save_seconds=0")
    with pytest.raises(Interrupted):
        search(settings, corpus, tmp_path, device=CPU, quiet=True)
    monkeypatch.setattr(HalvingJob, "arithmetic", property(lambda job: "bfloat16 on cuda"))
    search(settings, corpus, tmp_path, device=CPU)
    assert "now in bfloat16 on cuda: the result is that of neither" in capsys.readouterr().err
    (line,) = lines_of(tmp_path, "arithmetic")
    assert (line["before"], line["now"]) == ("float32 on cpu", "bfloat16 on cuda")


def test_a_race_whose_trainings_are_gone_gives_no_figure(corpus: Corpus, tmp_path: Path) -> None:
    course = Course(config(*HALVING), corpus, CPU)
    genotype = Genotype.from_text("tanh0 relu1 sigmoid0")
    with pytest.raises(CheckpointError, match="missing"):
        CellTraining(course, genotype, 0, tmp_path / "cell.pt").validate()


def test_an_operation_of_a_notebook_races_in_this_process(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that are started would not know it."""

    def none(*args: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(halving, "Workers", none)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # torch itself keeps its one
    operations.register("hand_made", lambda z: torch.tanh(z) * 2)
    try:
        settings = config(*SHORT, 'space.ops=["none","tanh","hand_made"]')
        job = HalvingJob(settings, corpus, CPU)
        assert job.workers == 1 and HalvingJob(config(*SHORT), corpus, CPU).workers == 2
        search(settings, corpus, tmp_path, device=CPU, quiet=True)
    finally:
        del operations.OPERATIONS["hand_made"]
    raced = [line for line in lines_of(tmp_path, "rung") if "hand_made" in line["cell"]]
    assert raced and all(math.isfinite(line["train_loss"]) for line in raced)
