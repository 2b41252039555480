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
from rnnnas.runs.tensorboard import Board, cut_events, event_files, event_sizes, serve


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


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_come_back_pixel_for_pixel(channels, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    board = Board(tmp_path)
    board.image("alphas", pixels, 3)
    (image,) = read(tmp_path).Images("alphas")  # an image is flushed at once
    board.close()
    assert (image.step, image.height, image.width) == (3, 5, 7)
    back = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert np.array_equal(back.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)])
def test_other_arrays_are_refused(array, tmp_path):
    board = Board(tmp_path)
    with pytest.raises(ValueError, match="cell is .* not uint8"):
        board.image("cell", array, 1)
    board.close()


def test_hyper_parameters_lie_in_the_same_file(tmp_path):
    board = Board(tmp_path)
    config = {"seed": 1, "weights.lr": 20.0, "order": "second", "average": True}
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
    assert {info.name for info in experiment.hparam_infos} == set(config)
    assert [info.name.tag for info in experiment.metric_infos] == [
        "hparam/valid_perplexity",
        "hparam/test_perplexity",
    ]
    assert curve(events, "hparam/valid_perplexity") == [(0, 60.5)]
    assert len(list(tmp_path.rglob("*"))) == 1


def test_an_open_reader_drops_what_a_resumed_run_writes_again(tmp_path):
    """What `purge_step` is for: the reader has seen points that are then cut from the file."""
    board = Board(tmp_path)
    board.scalars({"loss": 1.0}, 1)
    board.flush()
    sizes = event_sizes(tmp_path)
    board.scalars({"loss": 9.0}, 2)
    board.scalars({"loss": 9.0}, 3)
    board.close()
    events = read(tmp_path)
    assert [step for step, _ in curve(events, "loss")] == [1, 2, 3]
    cut_events(tmp_path, sizes)
    board = Board(tmp_path, purge_step=2)
    board.scalars({"loss": 2.0}, 2)
    board.close()
    events.Reload()
    assert curve(events, "loss") == [(1, 1.0), (2, 2.0)]
    assert curve(read(tmp_path), "loss") == [(1, 1.0), (2, 2.0)]


def test_cutting_keeps_foreign_files_and_empties_later_ones(tmp_path):
    sizes = {}
    for step in (1, 2, 3):
        board = Board(tmp_path)
        board.scalars({"loss": float(step)}, step)
        board.close()
        sizes = sizes or event_sizes(tmp_path)
    foreign = tmp_path / "events.out.tfevents.host"
    foreign.write_bytes(b"x")
    files = event_files(tmp_path)
    assert len(files) == 3 and files == sorted(files)  # within one second, still in order
    cut_events(tmp_path, sizes)
    assert list(event_sizes(tmp_path).values()) == [*sizes.values(), 0, 0]
    assert foreign.read_bytes() == b"x"
    foreign.unlink()
    assert curve(read(tmp_path), "loss") == [(1, 1.0)]


def test_an_event_file_cut_in_the_middle_of_a_record_reads_up_to_there(tmp_path):
    board = Board(tmp_path)
    board.scalars({"loss": 1.0}, 1)
    board.scalars({"loss": 2.0}, 2)
    board.close()
    with board.path.open("r+b") as file:
        file.truncate(board.path.stat().st_size - 5)
    assert curve(read(tmp_path), "loss") == [(1, 1.0)]


def test_an_unwritable_folder_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError, match="could not be written"):
        Board(tmp_path / "missing")


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
            "import signal, sys; from pathlib import Path; from rnnnas.runs.tensorboard import launch\n"
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
            with opener.open(match[0] + "data/logdir", timeout=20) as answer:
                assert str(tmp_path) in answer.read().decode()
            assert listening(server.pid) in (None, [("127.0.0.1", used)])
        finally:
            os.kill(server.pid, signal.SIGINT)
            out, err = server.communicate(timeout=30)
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
