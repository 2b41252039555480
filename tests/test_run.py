"""The run folder: created, continued, refused, resumed exactly, finished."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rnnnas
from rnnnas.errors import CheckpointError, DiskError, UsageError
from rnnnas.runs import files
from rnnnas.runs import folder as run_module
from rnnnas.runs.checkpoint import content_digest, load_content
from rnnnas.runs.files import write_json
from rnnnas.runs.folder import Run

CONFIG = {"seed": 1, "weights": {"lr": 20.0, "clip": 0.25}, "ops": ("tanh", "relu"), "extra": {}}


def lines(run: Run) -> list[dict[str, object]]:
    text = run.metrics_path.read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


# Opening


def test_a_new_run_records_what_it_is(tmp_path):
    with Run.open(tmp_path / "deep" / "run", "search", CONFIG) as run:
        assert run.folder == tmp_path / "deep" / "run" and run.result is None
        assert run.load_state() is None
    about = json.loads((run.folder / "config.json").read_text())
    assert len(about.pop("run")) == 32 and set(about.pop("sealed")) == {"sha256"}
    assert about == {
        "kind": "search",
        "config": {**CONFIG, "ops": ["tanh", "relu"]},
        "version": rnnnas.__version__,
    }


def test_the_same_configuration_continues_the_run(tmp_path):
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.save_state({"step": 5})
    same = {"weights": {"clip": 0.25, "lr": 20}, "extra": {}, "ops": ["tanh", "relu"], "seed": 1}
    with Run.open(tmp_path, "train", same) as run:
        assert run.load_state() == {"step": 5}


def test_another_configuration_is_refused_by_name(tmp_path):
    Run.open(tmp_path, "train", CONFIG).close()
    other = {"seed": True, "weights": {"lr": 10.0, "momentum": 0.9}, "ops": ["tanh"], "extra": {}}
    with pytest.raises(UsageError) as caught:
        Run.open(tmp_path, "train", other)
    cause = caught.value.cause
    assert "seed is 1 there and true here" in cause
    assert "weights.lr is 20.0 there and 10.0 here" in cause
    assert "weights.clip is 0.25 there and absent here" in cause
    assert "weights.momentum is absent there and 0.9 here" in cause
    assert 'ops is ["tanh", "relu"] there and ["tanh"] here' in cause
    assert "extra" not in cause and "\n" not in cause
    assert "--fresh" in caught.value.remedy and "--out" in caught.value.remedy
    with pytest.raises(UsageError, match="holds a train run, not a search run"):
        Run.open(tmp_path, "search", CONFIG)
    Run.open(tmp_path, "train", CONFIG).close()  # a refusal lets go of the lock


def test_other_files_are_never_made_a_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="holds files but no run"):
        Run.open(tmp_path, "train", CONFIG)
    with pytest.raises(UsageError, match="is a file"):
        Run.open(tmp_path / "thesis.txt", "train", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_fresh_takes_the_next_free_folder_and_leaves_the_others(tmp_path):
    base = tmp_path / "run"
    for name in ("run", "run-2", "run-3"):
        with Run.open(base, "train", CONFIG, fresh=True) as run:
            assert run.folder == tmp_path / name
            run.save_state({"name": name})
    (tmp_path / "run-4").mkdir()  # empty: free
    (tmp_path / "run-4" / files._temporary_name("config.json")).write_text("half")
    assert load_content(base / "state.pt")["state"] == {"name": "run"}
    with Run.open(base, "search", {"other": 1}, fresh=True) as run:
        assert run.folder.name == "run-4"


def test_a_run_killed_at_its_very_start_is_begun_again_and_cleaned_up(tmp_path):
    left = [files._temporary_name(name) for name in ("config.json", "state.pt")]
    for name in [*left, ".lock"]:
        (tmp_path / name).write_text("half")
    with Run.open(tmp_path, "train", CONFIG):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"kind": "train"}', b"\xff\x00"])
def test_a_damaged_config_is_refused(data, tmp_path):
    Run.open(tmp_path, "train", CONFIG).close()
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="config.json is damaged") as caught:
        Run.open(tmp_path, "train", CONFIG)
    assert "--fresh" in caught.value.remedy


def test_an_unwritable_place_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="could not be written"):
        Run.open(tmp_path / "file" / "run", "train", CONFIG)
    if os.geteuid() == 0:
        return  # root may write anywhere
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(DiskError, match="Permission denied"):
        Run.open(tmp_path / "closed" / "run", "train", CONFIG)


def test_two_processes_never_write_one_run(tmp_path):
    code = (
        "import sys; from pathlib import Path; from rnnnas.runs.folder import Run\n"
        "from rnnnas.errors import UsageError\n"
        "try: Run.open(Path(sys.argv[1]), 'train', {}).close()\n"
        "except UsageError as error: print(error.cause); sys.exit(error.exit_code)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with Run.open(tmp_path, "train", {}):
        second = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert second.returncode == 2 and f"in use by another process ({os.getpid()})" in second.stdout
    Run.open(tmp_path, "train", {}).close()


# Metrics


def test_metrics_are_strict_json_lines_and_curves(tmp_path):
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.log("train", 1, perplexity=812.5, lr=20, note="ß", missing=None)
        run.log("train", 2, perplexity=math.inf, lr=math.nan)
        run.log("valid", 2, perplexity=700.25)
    assert lines(run) == [
        {"kind": "train", "step": 1, "perplexity": 812.5, "lr": 20, "note": "ß", "missing": None},
        {"kind": "train", "step": 2, "perplexity": None, "lr": None},
        {"kind": "valid", "step": 2, "perplexity": 700.25},
    ]
    assert curve(tmp_path, "perplexity/train_running") == [(1, 812.5)]
    assert curve(tmp_path, "perplexity/valid") == [(2, 700.25)]


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path):
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.log("train", 1, loss=1.0)
        assert len(lines(run)) == 1


def test_resuming_cuts_back_to_the_state(tmp_path):
    with Run.open(tmp_path, "train", CONFIG) as run:
        assert run.load_state() is None
        run.log("train", 1, loss=3.0)
        run.log("epoch", 0, loss=3.5)
        run.save_state({"step": 1, "w": torch.ones(2)})
        run.log("train", 2, loss=-1.0)
        run.log("epoch", 2, loss=-1.0)
    with run.metrics_path.open("a") as file:
        file.write('{"kind": "tra')  # killed in the middle of a line
    for _ in range(2):  # killed again before the next save
        with Run.open(tmp_path, "train", CONFIG) as run:
            state = run.load_state()
            assert state is not None and state["step"] == 1 and state["w"].tolist() == [1, 1]
            run.log("train", 2, loss=2.0)
            run.log("epoch", 2, loss=2.5)
    assert [(line["kind"], line["step"], line["loss"]) for line in lines(run)] == [
        ("train", 1, 3.0),
        ("epoch", 0, 3.5),
        ("train", 2, 2.0),
        ("epoch", 2, 2.5),
    ]
    assert curve(tmp_path, "loss/train_running") == [(1, 3.0), (2, 2.0)]
    assert curve(tmp_path, "loss/train") == [(0, 3.5), (2, 2.5)]


def test_going_back_to_the_state_within_one_process(tmp_path):
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.log("train", 1, loss=3.0)
        run.save_state({"step": 1})
        run.log("train", 2, loss=9.0)
        assert run.load_state() == {"step": 1}
        run.log("train", 2, loss=2.0)
        run.save_state({"step": 2})
        run.log("train", 3, loss=1.0)
    assert [line["loss"] for line in lines(run)] == [3.0, 2.0, 1.0]
    assert curve(tmp_path, "loss/train_running") == [(1, 3.0), (2, 2.0), (3, 1.0)]


@pytest.mark.parametrize("saved", [False, True])
def test_a_board_that_is_open_sees_each_step_once_after_a_resume(saved, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run.open(tmp_path, "train", CONFIG) as run:
        if saved:
            run.log("train", 1, loss=3.0)
            run.save_state({"step": 1})
        run.log("train", 2, loss=9.0)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.load_state()
        run.log("train", 2, loss=2.0)
    events.Reload()
    expected = [(1, 3.0), (2, 2.0)] if saved else [(2, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("loss/train_running")] == expected


def test_a_run_killed_before_its_first_save_starts_its_metrics_again(tmp_path):
    for _ in range(2):
        with Run.open(tmp_path, "train", CONFIG) as run:
            assert run.load_state() is None
            run.log("train", 0, loss=3.0)
    assert len(lines(run)) == 1
    assert curve(tmp_path, "loss/train_running") == [(0, 3.0)]


def test_a_half_line_is_cut_even_where_no_state_is_loaded(tmp_path):
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.log("train", 1, loss=3.0)
    with run.metrics_path.open("a") as file:
        file.write('{"kind": "tra')
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.log("train", 2, loss=2.0)
    assert [line["step"] for line in lines(run)] == [1, 2]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch, torch.utils.tensorboard
from rnnnas.runs.folder import Run
STEPS = 3000
def work():
    with Run.open(Path(sys.argv[1]), "train", {"a": 1}, save_seconds=0.01) as run:
        state = run.load_state()
        step, total = (0, 0) if state is None else (state["step"], state["total"])
        while step < STEPS:
            step, total = step + 1, total + step + 1
            time.sleep(0.0002)
            run.log("train", step, total=total)
            if run.due():
                run.save_state({"step": step, "total": total})
        run.save_state({"step": step, "total": total})
        run.finish({"total": total})
kills = 0
while not (Path(sys.argv[1]) / "result.json").exists():
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    end = time.monotonic() + (random.uniform(0.02, 0.15) if kills < 8 else 60)
    ended = None
    while time.monotonic() < end and ended is None:
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    kills += os.WIFSIGNALED(status)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
print("kills survived:", kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_random_times_has_every_line_once(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    print(done.stdout.strip())
    assert int(done.stdout.split()[-1]) >= 3
    with Run.open(tmp_path, "train", {"a": 1}) as run:
        assert run.result == {"total": sum(range(3001))}
    assert [line["step"] for line in lines(run)] == list(range(1, 3001))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    assert [point.step for point in events.Scalars("train/total")] == list(range(1, 3001))


# State, best and result


def test_states_are_due_by_the_clock(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    with Run.open(tmp_path, "train", CONFIG, save_seconds=60) as run:
        assert not run.due()
        now[0] += 60
        assert run.due()
        run.save_state({})
        assert not run.due()


def test_a_damaged_state_is_refused_and_nothing_is_cut(tmp_path):
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.save_state({"w": torch.zeros(100)})
        run.log("train", 1, loss=1.0)
    data = bytearray(run.state_path.read_bytes())
    data[len(data) // 2] ^= 4
    run.state_path.write_bytes(data)
    with Run.open(tmp_path, "train", CONFIG) as run:
        with pytest.raises(CheckpointError, match="state.pt is damaged"):
            run.load_state()
        assert len(lines(run)) == 1
        run.save_best({"w": 1})
        run.best_path.replace(run.state_path)
        with pytest.raises(CheckpointError, match="not the state of a run"):
            run.load_state()


def test_a_full_disk_while_saving_leaves_the_older_state(tmp_path):
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.log("train", 1, loss=1.0)
        run.save_state({"step": 1})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(DiskError, match="state.pt"):
                run.save_state({"step": 2, "w": torch.zeros(100_000)})
            with pytest.raises(DiskError, match="metrics.jsonl"):
                run.log("train", 2, loss=1.0, note="x" * 50_000)
            with pytest.raises(DiskError, match="events"):
                for step in range(1000):
                    run.image(f"cell{step}", noise, step)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Run.open(tmp_path, "train", CONFIG) as run:
        assert run.load_state() == {"step": 1}
        assert len(lines(run)) == 1


def test_best_is_a_checkpoint_with_a_digest(tmp_path):
    content = {"weights": {"w": torch.randn(3)}, "metrics": {"valid": 60.5}}
    with Run.open(tmp_path, "train", CONFIG) as run:
        assert run.save_best(content) == content_digest(content)
    assert content_digest(load_content(run.best_path)) == content_digest(content)


def test_a_finished_run_says_what_it_reported(tmp_path):
    with Run.open(tmp_path, "train", CONFIG) as run:
        run.log("train", 1, loss=1.0)
        run.save_state({"step": 1})
        run.finish({"valid_perplexity": 60.5, "bad": math.inf})
        assert run.result == {"valid_perplexity": 60.5, "bad": None}
        with pytest.raises(RuntimeError, match="closed"):
            run.log("train", 2, loss=1.0)
    with Run.open(tmp_path, "train", CONFIG) as one, Run.open(tmp_path, "train", CONFIG) as two:
        assert one.result == two.result == {"valid_perplexity": 60.5, "bad": None}
        for write in (one.save_state, one.save_best, one.finish):
            with pytest.raises(RuntimeError, match="closed"):
                write({})
    with pytest.raises(UsageError, match="seed"):
        Run.open(tmp_path, "train", {**CONFIG, "seed": 2})
    write_json(run.result_path, [1])
    with pytest.raises(CheckpointError, match="result.json is damaged"):
        Run.open(tmp_path, "train", CONFIG)


def test_images_and_hyper_parameters_reach_the_board(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run.open(tmp_path, "search", CONFIG) as run:
        run.image("cell", np.zeros((4, 6, 3), np.uint8), 7)
        run.hparams({**CONFIG, "none": None}, {"valid_perplexity": 60.5})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [image.step for image in events.Images("views/cell")] == [7]
    assert curve(tmp_path, "result/valid_perplexity") == [(0, 60.5)]
    found = events.PluginTagToContent("hparams")
    assert len(list(tmp_path.glob("**/*tfevents*"))) == 1  # no folder beside the run
    text = b"".join(found.values())
    for key in (b"weights.lr", b"seed", b"ops", b"none"):
        assert key in text
