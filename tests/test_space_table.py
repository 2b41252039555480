"""The table of a whole space: its cells, its trainings, its noise, and every way to stop it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rank_work import even_text
from sample_tables import made_up
from tiny_home import corpus as corpus
from tiny_home import home as home

from rnnnas.cli import main
from rnnnas.config.presets import resolve
from rnnnas.config.table import TableConfig
from rnnnas.data.corpus import Corpus, open_corpus
from rnnnas.errors import CheckpointError, Interrupted, RnnnasError, UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.tabular import make
from rnnnas.tabular.make import make_table, tasks
from rnnnas.tabular.noise import canonical, noise_of, twins
from rnnnas.tabular.plan import cells, resolve_table, train_config
from rnnnas.tabular.rows import Row, RowFile, curve_of
from rnnnas.tabular.table import read_table, summary
from rnnnas.tabular.workers import Task, Workers, train_row
from rnnnas.training.in_memory import train_in_memory
from rnnnas.training.run import TrainJob, train

CPU = torch.device("cpu")
HOME_TEXT = even_text(20, 400)
SMALL = ["nodes=1", "seeds=[1,2]", "train.model.hidden=6", "train.model.precision=float32"]
SMALL += ["train.windows.streams=6", "train.valid_streams=4", "train.test_streams=4"]
SMALL += ["train.windows.limit=6", "train.weights.lr=5", "stretches=5"]


def config(*settings: str) -> TableConfig:
    return resolve_table(preset="table", settings=[*SMALL, *settings], flags={"corpus": "tiny"})


class Crash(Exception):
    """Stands for a process that dies."""


class Here:
    """Workers that train in this process. crash: after so many rows."""

    crash: int | None = None
    trained: list[Task]

    def __init__(self, about: dict[str, Any], count: int) -> None:
        from rnnnas.config.plain import from_plain

        self.config = from_plain(TableConfig, about["config"])
        self.corpus = open_corpus(about["name"])

    def train(self, left: Sequence[Task]) -> Iterator[Row | None]:
        for number, task in enumerate(left):
            yield None
            if type(self).crash is not None and number == type(self).crash:
                raise Crash
            type(self).trained.append(task)
            row = train_row(self.config, self.corpus, *task)
            yield dataclasses.replace(row, seconds=1.0)

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    Here.crash, Here.trained = None, []
    monkeypatch.setattr(make, "Workers", Here)
    return Here


def finish(folder: Path, corpus: Corpus, *settings: str) -> dict[str, Any]:
    return make_table(config(*settings), corpus, folder, quiet=True, say=lambda text: None)


def test_the_space_is_counted_whole() -> None:
    whole = list(cells(TableConfig(corpus="x").space))
    assert len(whole) == len(set(whole)) == 4**3 * 3 * 2 == 384
    assert whole[0] == "tanh0 tanh0 tanh0" and whole[-1] == "identity0 identity1 identity2"
    for cell in whole:
        nodes = Genotype.from_text(cell).recurrent.nodes
        assert all(node[0].source <= place for place, node in enumerate(nodes))


def test_seeds_come_one_after_the_other() -> None:
    every = tasks(config())
    assert [seed for _, seed in every] == [1] * 4 + [2] * 4 and len(set(every)) == 8


def test_a_row_is_what_train_gives(corpus: Corpus, tmp_path: Path) -> None:
    """To the last bit, from a command line's settings."""
    row = train_row(config(), corpus, "sigmoid0", 2)
    sets = [s.removeprefix("train.") for s in SMALL if s.startswith("train.")]
    flags = {"corpus": "tiny", "genotype": "sigmoid0", "seed": 2}
    own = resolve("train", preset="table", file=None, settings=sets, flags=flags)
    result = train(own, corpus, tmp_path / "run", device=CPU, quiet=True)
    assert (row.valid, row.test) == (result["valid_perplexity"], result["test_perplexity"])
    assert not row.diverged and len(row.curve) == 5
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    logs = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    last = math.log(logs[-1]["perplexity"])
    assert row.curve[-1] == pytest.approx(last, abs=1e-6)  # 6 steps: the last stretch is one


def test_a_roll_back_replaces_the_losses_of_what_is_done_again(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = TrainJob.step, []

    def stumbling(self: TrainJob, at: Any, steps: int, lr_factor: float) -> Any:
        report = step(self, at, steps, lr_factor)
        seen.append((at.step, lr_factor))
        return report._replace(nats=math.nan) if (at.step, lr_factor) == (3, 1.0) else report

    monkeypatch.setattr(TrainJob, "step", stumbling)
    trained = train_in_memory(train_config(config(), "tanh0", 1), corpus, CPU)
    assert seen[:4] == [(k, 1.0) for k in range(4)] and seen[4] == (0, 0.5)
    assert len(trained.nats) == trained.steps == 6 and not trained.diverged
    assert all(math.isfinite(value) for value in trained.nats)


def test_a_training_that_diverges_is_a_row(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step = TrainJob.step

    def diverging(self: TrainJob, at: Any, steps: int, lr_factor: float) -> Any:
        report = step(self, at, steps, lr_factor)
        return report._replace(nats=math.inf) if at.step == 4 else report

    monkeypatch.setattr(TrainJob, "step", diverging)
    row = train_row(config(), corpus, "tanh0", 1)
    assert row.diverged and row.valid is row.test is None and len(row.curve) == 3
    file = RowFile(tmp_path)
    file.add(row)
    assert RowFile(tmp_path).rows == {("tanh0", 1): row}


def test_curves_are_means_of_second_halves() -> None:
    nats = [float(k) for k in range(20)]
    assert curve_of(nats, 20, 5) == (2.5, 6.5, 10.5, 14.5, 18.5)
    assert curve_of(nats[:11], 20, 5) == (2.5, 6.5)  # the third stretch is not over
    assert curve_of(nats, 20, 1) == (14.5,)


def test_wherever_a_table_dies_it_goes_on_and_ends_the_same(
    corpus: Corpus, tmp_path: Path, here: type[Here]
) -> None:
    whole = tmp_path / "whole"
    finish(whole, corpus)
    assert len(here.trained) == 8
    for crash in range(8):
        folder = tmp_path / str(crash)
        here.crash = crash
        with pytest.raises(Crash):
            finish(folder, corpus)
        with (folder / "rows.jsonl").open("ab") as file:  # a kill amid a write
            file.write(b'{"cell": "tanh')
        here.crash, here.trained = None, []
        result = finish(folder, corpus)
        assert here.trained == tasks(config())[crash:], "a row was trained again"
        for name in ("table.csv", "rows.jsonl", "table.json"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
        assert result["trainings"] == 8 and result["cells"] == 4
    here.trained = []
    assert finish(whole, corpus)["noise"]["test"]["cells"] == 4 and not here.trained


def test_another_build_goes_on_with_a_table_and_is_told(
    corpus: Corpus, tmp_path: Path, here: type[Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    here.crash = 3
    with pytest.raises(Crash):
        finish(tmp_path, corpus)
    here.crash = None
    monkeypatch.setattr(make, "computed_by", lambda job: "float32 on cpu, torch 9")
    said: list[str] = []
    make_table(config(), corpus, tmp_path, quiet=True, say=said.append)
    assert any("from here on by float32 on cpu, torch 9" in line for line in said)
    about = read_table(tmp_path / "table.csv").about
    assert about["arithmetic_also"] == ["float32 on cpu, torch 9"]
    assert "torch 9" not in about["arithmetic"]
    monkeypatch.setattr(make, "computed_by", lambda job: "bfloat16 on cpu, torch 9")
    with pytest.raises(UsageError, match="arithmetic"):
        finish(tmp_path, corpus)


def test_more_parts_than_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="stretches = 7 of a training of 6 steps"):
        config("stretches=7")


def test_a_signal_keeps_the_rows(corpus: Corpus, tmp_path: Path, here: type[Here],
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    add = RowFile.add

    def told(self: RowFile, row: Row) -> None:
        add(self, row)
        if len(self.rows) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RowFile, "add", told)
    with pytest.raises(Interrupted) as error:
        finish(tmp_path / "t", corpus)
    assert error.value.exit_code == 143 and len(RowFile(tmp_path / "t").rows) == 3


def test_damage_and_other_settings_are_refused(
    corpus: Corpus, tmp_path: Path, here: type[Here]
) -> None:
    folder = tmp_path / "t"
    finish(folder, corpus)
    with pytest.raises(UsageError, match="training"):
        finish(folder, corpus, "train.weights.lr=6")
    with pytest.raises(UsageError, match="seeds"):
        finish(folder, corpus, "seeds=[1,3]")
    rows = (folder / "rows.jsonl").read_text()
    for wrong in (rows.replace("sigmoid0", "relu0", 1), rows.replace('"seed": 1', '"seed": 2', 1),
                  "{}\n" + rows, rows.replace('"sealed"', '"seal"', 1)):  # fmt: skip
        (folder / "rows.jsonl").write_text(wrong)
        with pytest.raises(CheckpointError, match="line"):
            finish(folder, corpus)
    (folder / "rows.jsonl").write_text(rows)
    (folder / "table.json").write_text("{}")
    with pytest.raises(CheckpointError):
        finish(folder, corpus)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="no table"):
        finish(tmp_path / "mine", corpus)
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["thesis.txt"]


def test_workers_give_the_rows_of_one_thread(corpus: Corpus, tmp_path: Path) -> None:
    """Real processes, and what becomes of them."""
    own = config("seeds=[1]", 'ops=["tanh","relu"]')
    about = {
        "config": dataclasses.asdict(own), "corpus": str(corpus.folder), "name": "tiny",
        "plugins": [],
    }  # fmt: skip
    workers = Workers(about, 2)
    found = [row for row in workers.train(tasks(own)) if row is not None]
    processes = list(workers._processes)
    assert len(processes) == 2
    expected = {task: train_row(own, corpus, *task) for task in tasks(own)}
    for row in found:
        same = dataclasses.replace(expected[row.cell, row.seed], seconds=row.seconds)
        assert row == same
    assert len(found) == 2
    # What a worker refuses comes here with its exit code; a dead worker is told of.
    with pytest.raises(RnnnasError, match="tonh") as error:
        list(workers.train([("tonh0", 1)]))
    assert error.value.exit_code == UsageError.exit_code
    workers.close()
    assert all(process.poll() is not None for process in processes)


def test_noise_by_the_textbook() -> None:
    """ICC(3,1) and ICC(3,k) of Shrout and Fleiss (1979, tables 2 to 4): .71 and .91; their mean
    squares of the error 1.02 and within targets 6.26, and between judges 32.49, of 6 targets.
    """
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    own = noise_of([[float(v) for v in row] for row in ratings])
    assert own.icc == pytest.approx(0.71, abs=0.005)
    assert own.reliability == pytest.approx(0.91, abs=0.005)
    assert own.sd == pytest.approx(math.sqrt(6.26), abs=0.001)
    assert own.residual == pytest.approx(math.sqrt(1.02), abs=0.001)
    assert own.shift == pytest.approx(math.sqrt(32.49 / 6), abs=0.001)
    assert own.sd == pytest.approx(math.sqrt(statistics.mean(map(statistics.variance, ratings))))
    assert own.spread == pytest.approx(statistics.stdev(map(statistics.mean, ratings)))
    away = sorted(
        abs(row[i] - statistics.mean(row[:i] + row[i + 1 :])) for row in ratings for i in range(4)
    )
    assert own.within == away[22] and sum(a <= away[22] for a in away) / 24 >= 0.95
    assert noise_of([[1.0, 2.0]]).sd is None and noise_of([]).cells == 0


def test_cells_of_one_function_are_known() -> None:
    def form(text: str) -> Any:
        return canonical(Genotype.from_text(text).recurrent)

    assert form("tanh0 relu0 sigmoid1") == form("relu0 tanh0 sigmoid2")
    assert form("tanh0 relu0 sigmoid1") == form("tanh0 sigmoid1 relu0")
    assert form("tanh0 relu0 sigmoid1") != form("tanh0 relu0 sigmoid2")
    # By brute force: a cell is the multiset of the chains of operations that lead to its nodes.
    whole = list(cells(TableConfig(corpus="x").space))

    def chains(text: str) -> list[tuple[str, ...]]:
        paths: list[tuple[str, ...]] = [()]
        for (gene,) in Genotype.from_text(text).recurrent.nodes:
            paths.append((*paths[gene.source], gene.op))
        return sorted(paths[1:])

    # Two equal chains with different children could share a multiset; of 3 nodes none do.
    assert len({form(cell) for cell in whole}) == len({tuple(chains(c)) for c in whole})
    pairs = twins({cell: float(number) for number, cell in enumerate(whole)})
    assert len(pairs) == len(whole) - len({form(cell) for cell in whole})
    assert all(form(a) == form(b) and d < 0 for a, b, d in pairs)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = made_up(noise=0.02, diverged=lambda cell: cell == "relu0 relu1")
    path = tmp_path / "table.csv"
    table.write(path)
    again = read_table(path)
    assert again.about == table.about and again.to_text() == table.to_text()
    assert again.rows[0].test == pytest.approx(table.rows[0].test, rel=1e-5)
    assert len(again.rows) == 4 * 4 * 2 * 3 and again.about["noise"]["diverged"] == 3
    assert again.means()["relu0 relu1"] == math.inf
    noise = again.about["noise"]["test"]
    assert noise["cells"] == 31 and noise["sd"] == pytest.approx(0.02, rel=0.2)
    lines = path.read_text().splitlines()
    assert lines[1].startswith("cell,seed,train_1,") and len(lines) == 2 + 96
    text = path.read_text()
    for place in itertools.chain(range(40), range(1500, len(text), 997)):
        changed = text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]
        path.write_text(changed)
        with pytest.raises((CheckpointError, UsageError)):
            read_table(path)
    with pytest.raises(CheckpointError):
        read_table(tmp_path / "none.csv")


def test_the_command(corpus: Corpus, tmp_path: Path, here: type[Here]) -> None:
    sets = [word for setting in SMALL for word in ("--set", setting)]
    words = ["study", "--corpus", "tiny", "--preset", "table", *sets, "--out", str(tmp_path / "t")]
    dry = CliRunner().invoke(main, [*words, "--dry-run", "--json"])
    told = json.loads(dry.stdout)
    assert (told["cells"], told["trainings"]) == (4, 8) and "seconds" in told
    assert not (tmp_path / "t").exists()
    done = CliRunner().invoke(main, [*words, "--json"])
    result = json.loads(done.stdout)
    assert result["trainings"] == 8 and Path(result["table"]).is_file()
    shown = CliRunner().invoke(main, ["study", "--out", str(tmp_path / "t")])
    assert "4 cells, 8 trainings" in shown.output and "reliability" in shown.output
    for wrong in (["--methods", "darts"], ["--minutes", "3"], ["--cluster", "slurm"]):
        assert CliRunner().invoke(main, [*words, *wrong]).exit_code == 2
    large = CliRunner().invoke(main, [*words, "--set", "nodes=9"])
    assert large.exit_code == 2 and "too large" in large.output


def test_the_noise_of_a_table_is_of_whole_cells_and_of_the_better_half() -> None:
    table = made_up(noise=0.1)
    rows = [row for row in table.rows if (row.cell, row.seed) != ("tanh0 tanh0", 2)]
    logs: dict[str, list[float]] = {}
    for row in rows:
        assert row.test is not None
        logs.setdefault(row.cell, []).append(math.log(row.test))
    del logs["tanh0 tanh0"]  # of two trainings
    ranked = sorted(logs.values(), key=sum)
    told = summary(rows, (1, 2, 3))
    assert told["test"] == dataclasses.asdict(noise_of(list(logs.values())))
    better = dataclasses.asdict(noise_of(ranked[:15]))
    assert told["test_better_half"] == pytest.approx(better) and told["test"]["cells"] == 31
    assert better["spread"] < 0.8 * told["test"]["spread"]
