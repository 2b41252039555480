"""Event files are read back with TensorBoard's own reader; the server listens on loopback only."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from rnnnas.errors import DiskError, UsageError
from rnnnas.runs.tensorboard import Board, curve_name, empty_events, has_events, serve


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_every_curve_is_in_the_file(tmp_path):
    names = [
        "search/perplexity", "search/lr", "search/gradient_norm", "search/tokens_per_second",
        "epoch/alpha_entropy", "epoch/valid_perplexity",
    ]  # fmt: skip
    board = Board(tmp_path)
    for step in (1, 2):
        board.scalars({name: step + i / 4 for i, name in enumerate(names)}, step)
    board.scalars({}, 3)
    board.close()
    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == sorted(names)
    for i, name in enumerate(names):
        assert curve(events, name) == [(1, 1 + i / 4), (2, 2 + i / 4)]


def test_images_come_back_pixel_for_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    board = Board(tmp_path)
    board.image("alphas", pixels, 3)
    (image,) = read(tmp_path).Images("views/alphas")  # an image is flushed at once
    board.close()
    assert (image.step, image.height, image.width) == (3, 5, 7)
    back = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert np.array_equal(back, pixels)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)])
def test_other_arrays_are_refused(array, tmp_path):
    board = Board(tmp_path)
    with pytest.raises(ValueError, match="cell is .* not uint8"):
        board.image("cell", array, 1)
    board.close()


def test_hyper_parameters_lie_in_the_same_file(tmp_path):
    board = Board(tmp_path)
    config = {"corpus_sha256": "ab", "weights.lr": 20.0, "seed": 1, "order": "second",
              "average": True, "method": "darts"}  # fmt: skip
    board.hparams(config, {"valid_perplexity": 60.5, "test_perplexity": float("nan")})
    board.close()
    events = read(tmp_path)
    found = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(data)
        for tag, data in events.PluginTagToContent("hparams").items()
    }
    start = found["_hparams_/session_start_info"].session_start_info.hparams
    assert start["seed"].number_value == 1 and start["weights.lr"].number_value == 20
    assert start["order"].string_value == "second" and start["average"].bool_value is True
    experiment = found["_hparams_/experiment"].experiment
    assert [info.name for info in experiment.hparam_infos] == [
        "method", "seed", "cell", "valid_perplexity", "weights.lr", "order", "average",
        "corpus_sha256",
    ]  # fmt: skip
    # By these TensorBoard sorts its columns, and only then by name.
    assert {info.name for info in experiment.hparam_infos if info.differs} == {
        "method", "seed", "cell", "valid_perplexity",
    }  # fmt: skip
    assert start["valid_perplexity"].number_value == 60.5
    assert [info.name.tag for info in experiment.metric_infos] == [
        "result/valid_perplexity",
        "result/test_perplexity",
    ]
    assert curve(events, "result/valid_perplexity") == [(0, 60.5)]
    assert len(list(tmp_path.rglob("*"))) == 1


def test_what_a_run_is_judged_by_comes_first_and_noise_makes_no_curve():
    logged = {
        "search": ["perplexity", "lr", "gradient_norm", "tokens_per_second"],
        "epoch": ["epoch", "train_perplexity", "seconds", "valid_perplexity", "alpha_entropy",
                  "averaged", "published_valid_perplexity"],
        "alphas": ["epoch"],
        "candidate": ["number", "steps", "perplexity", "best_perplexity"],
        "curve": ["cell_003"],
    }  # fmt: skip
    names = [curve_name(kind, name) for kind, values in logged.items() for name in values]
    assert sorted(name for name in names if name) == [
        "perplexity/candidate", "perplexity/candidate_best", "perplexity/published_valid",
        "perplexity/train", "perplexity/train_running", "perplexity/valid",
        "progress/gradient_norm", "progress/lr", "progress/tokens_per_second",
        "search/alpha_entropy", "trials/cell_003",
    ]  # fmt: skip
    assert curve_name("epoch", "valid_loss") == "loss/valid"
    assert curve_name("eigen", "value") == "eigen/value"


def test_texts_and_charts_are_what_the_plugins_read(tmp_path):
    board = Board(tmp_path)
    board.text("genotype", "tanh0 relu1", 4)
    board.chart("both", ["perplexity/valid", "perplexity/published_valid"])
    board.close()
    tags = read(tmp_path).Tags()["tensors"]
    assert sorted(tags) == ["custom_scalars__config__", "genotype/text_summary"]


def test_an_open_reader_drops_what_a_resumed_run_writes_again(tmp_path):
    """What `purge_step` is for: the reader has seen points that the run will write again."""
    board = Board(tmp_path)
    for step in (1, 2, 3):
        board.scalars({"loss": 9.0 if step > 1 else 1.0}, step)
    board.close()
    events = read(tmp_path)
    assert [step for step, _ in curve(events, "loss")] == [1, 2, 3]
    board = Board(tmp_path, purge_step=2)
    board.scalars({"loss": 2.0}, 2)
    board.close()
    events.Reload()
    assert curve(events, "loss") == [(1, 1.0), (2, 2.0)]
    assert curve(read(tmp_path), "loss") == [(1, 1.0), (2, 2.0)]


def test_a_folder_whose_name_is_not_utf8_gets_its_events(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    board = Board(folder)
    board.scalars({"loss": 1.0}, 1)
    board.close()
    (path,) = folder.iterdir()
    path.rename(tmp_path / path.name)
    assert curve(read(tmp_path), "loss") == [(1, 1.0)]


def test_emptied_files_stay_and_say_nothing(tmp_path):
    assert not has_events(tmp_path)
    for step in (1, 2):
        if step == 2:
            empty_events(tmp_path)
        board = Board(tmp_path)
        board.scalars({"loss": float(step)}, step)
        board.close()
    assert has_events(tmp_path) and len(list(tmp_path.iterdir())) == 2
    assert curve(read(tmp_path), "loss") == [(2, 2.0)]


def test_an_event_file_cut_in_the_middle_of_a_record_reads_up_to_there(tmp_path):
    board = Board(tmp_path)
    board.scalars({"loss": 1.0}, 1)
    board.scalars({"loss": 2.0}, 2)
    board.close()
    (path,) = tmp_path.iterdir()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    assert curve(read(tmp_path), "loss") == [(1, 1.0)]


def test_an_unwritable_folder_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="could not be written"):
        Board(tmp_path / "file" / "run")


# The server


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        serve(tmp_path / "missing")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_server_takes_a_free_port_on_loopback_and_ends_on_ctrl_c(tmp_path):
    board = Board(tmp_path)
    board.scalars({"loss": 1.0}, 1)
    board.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = (
            "import signal, sys; from pathlib import Path\n"
            "from rnnnas.runs.tensorboard import launch\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "launch(Path(sys.argv[1]), int(sys.argv[2]))"
        )
        server = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, str(tmp_path), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            ready, _, _ = select.select([server.stdout], [], [], 60)
            assert ready and server.stdout
            line = server.stdout.readline()
            match = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            assert match, line
            used = int(match[1])
            assert used > port and str(tmp_path) in line
            assert f"port {port} is taken" in line
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(match[0] + "data/logdir", timeout=120) as answer:
                assert str(tmp_path) in answer.read().decode()
            assert listening(server.pid) in (None, [("127.0.0.1", used)])
        finally:
            os.kill(server.pid, signal.SIGINT)
            out, err = server.communicate(timeout=120)
    assert server.returncode == 0 and "Traceback" not in err, err


def listening(pid: int) -> list[tuple[str, int]] | None:
    """Addresses on which the process listens; None where the system does not say."""
    try:
        links = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return None
    found = []
    for row in (line.split() for table in tables for line in table.splitlines()[1:]):
        if row[3] == "0A" and f"socket:[{row[9]}]" in links:
            address, port = row[1].split(":")
            shown = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if len(address) == 8 else address
            found.append((shown, int(port, 16)))
    return found
