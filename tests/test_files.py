"""Atomic writes, digests, and checkpoints that are refused when a single bit is wrong."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import random
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from rnnnas.errors import CheckpointError, DiskError, UsageError
from rnnnas.runs import checkpoint, files
from rnnnas.runs.checkpoint import content_digest, load_content, save_content
from rnnnas.runs.files import Lock, read_json, write_atomic, write_json


def example() -> dict[str, object]:
    """One of everything that a checkpoint may hold."""
    return {
        "config": {"lr": 20.0, "steps": 35, "asgd": True, "name": "ptb", "none": None},
        "genes": [("relu", 0), ("tanh", 1)],
        "raw": b"\x00\xff",
        "random": random.Random(1).getstate(),
        "optimiser": {0: {"step": 3}, 1: {"step": 4}},
        "float": torch.arange(6.0).reshape(2, 3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "view": torch.arange(1000.0).reshape(10, 100)[:, 3].t(),
        "flags": torch.tensor([True, False]),
        "inf": math.inf,
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return (
            type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))  # type: ignore[arg-type]
        )
    return type(a) is type(b) and a == b


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# Digests


def test_digest_sees_types_values_shapes_and_nesting():
    zero = torch.zeros(2, 3)
    contents = [
        {"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": b"1"}, {"a": None}, {"a": [1]},
        {"a": (1,)}, {"a": {"1": 1}}, {"a": {1: 1}}, {"a": [[1], []]}, {"a": [[], [1]]}, {"b": 1},
        {"a": -1}, {"a": 0.0}, {"a": -0.0}, {"a": math.nan}, {"a": ""}, {"a": []}, {"a": ()},
        {"a": {}}, {}, {"a": ["ab", "c"]}, {"a": ["a", "bc"]}, {"a": zero}, {"a": zero.t()},
        {"a": zero.reshape(6)}, {"a": zero.int()}, {"a": zero.half()}, {"a": zero.bfloat16()},
        {"a": zero + 1}, {"a": torch.zeros(0)}, {"a": torch.zeros(0, 2)}, {"a": torch.tensor(0.0)},
        {"a": torch.zeros(1)},
    ]  # fmt: skip
    assert len({content_digest(content) for content in contents}) == len(contents)


def test_digest_ignores_key_order_strides_and_gradients():
    table = torch.arange(6.0).reshape(2, 3)
    strided = torch.arange(6.0).reshape(2, 3).t().contiguous().t()
    assert not strided.is_contiguous()
    variants = [
        {"x": table, "y": {"a": 1, 2: "b"}},
        {"y": {2: "b", "a": 1}, "x": strided},
        OrderedDict(x=torch.nn.Parameter(table), y=OrderedDict({2: "b", "a": 1})),
    ]
    assert len({content_digest(content) for content in variants}) == 1


@pytest.mark.gpu
def test_the_device_does_not_matter(tmp_path):
    table = torch.randn(5, 7)
    there = table.cuda()
    content = {"weight": there, "tied": there, "turned": there.t()}
    plain = {"weight": table, "tied": table, "turned": table.t()}
    assert save_content(tmp_path / "x.pt", content) == save_content(tmp_path / "y.pt", plain)
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "y.pt").read_bytes()
    assert load_content(tmp_path / "x.pt")["weight"].device.type == "cpu"


class Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Path("x"), {1, 2}, object(), Text("x"), 1j, torch.float32, torch.Size([1]), range(3),
        __import__("numpy").float64(1), __import__("numpy").zeros(2), {1.5: 2}, {True: 1},
        torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), random.Random(1),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_content_refuses_what_weights_only_loading_would_not_give_back(value, tmp_path):
    with pytest.raises(TypeError, match="'inner'"):
        content_digest({"outer": [1, {"inner": value}]})
    with pytest.raises(TypeError):
        save_content(tmp_path / "x.pt", {"outer": [1, {"inner": value}]})
    assert list(tmp_path.iterdir()) == []


# Checkpoints


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    path = tmp_path / "best.pt"
    digest = save_content(path, example())
    loaded = load_content(path)
    assert same(example(), loaded)
    assert content_digest(loaded) == digest == content_digest(example())
    raw = torch.load(path, weights_only=True)  # the file is what torch.save writes
    assert raw["digest"] == digest and raw["format"] == 1
    assert leftovers(tmp_path) == []


def test_the_same_content_gives_the_same_bytes(tmp_path):
    word = "".join(["a", "b"])
    equal = "".join(["a", "b"])
    assert word is not equal  # pickle stores one object once, and two equal ones twice
    save_content(tmp_path / "one.pt", {**example(), "words": [word, word]})
    save_content(tmp_path / "two.pt", {**example(), "words": [word, equal]})
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_a_view_is_stored_without_its_base_and_tied_weights_once(tmp_path):
    base = torch.zeros(1000, 1000)
    save_content(tmp_path / "view.pt", {"row": base[3]})
    assert (tmp_path / "view.pt").stat().st_size < 10_000
    weight = torch.nn.Parameter(torch.randn(100, 100))
    save_content(tmp_path / "tied.pt", {"embedding": weight, "decoder": weight, "t": weight.t()})
    assert (tmp_path / "tied.pt").stat().st_size < 2 * 40_000 + 5000  # the transpose is another
    loaded = load_content(tmp_path / "tied.pt")
    assert torch.equal(loaded["embedding"], loaded["decoder"])
    assert torch.equal(loaded["t"], weight.detach().t())


def test_every_flipped_bit_and_every_truncation_is_refused(tmp_path):
    path, hurt = tmp_path / "best.pt", tmp_path / "hurt.pt"
    save_content(path, {"weights": torch.randn(20), "words": ["a", "b"]})
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        hurt.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            load_content(hurt)
        refused += bool(caught.value.remedy) and str(hurt) in caught.value.cause
    for size in [*range(0, len(whole), 29), len(whole) - 1]:
        hurt.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            load_content(hurt)
        refused += 1
    hurt.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError):
        load_content(hurt)
    print(f"{refused} damaged checkpoints refused")
    assert refused == 300 + len(range(0, len(whole), 29)) + 1


def sealed(path: Path, stored: object) -> None:
    """Write `stored` with a right seal: damage that only the later checks can see."""

    def write(file: io.BufferedRandom) -> None:
        torch.save(stored, file)
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", checkpoint._SEAL_BYTES))
        file.seek(0)
        seal = checkpoint._hash_bytes(file, None)
        file.seek(0, os.SEEK_END)
        file.write(checkpoint._SEAL + seal)

    write_atomic(path, write)


@pytest.mark.parametrize(
    ("stored", "cause"),
    [
        ({"format": 1, "digest": "0" * 64, "content": {"a": 1}}, "another digest"),
        ({"format": 2, "digest": content_digest({"a": 1}), "content": {"a": 1}}, "format 2"),
        ({"state_dict": {}}, "not a checkpoint"),
        ([1], "not a checkpoint"),
        ({"format": 1, "digest": "0", "content": torch.float32}, "not a checkpoint"),
        ({"format": 1, "digest": "0", "content": Path("x")}, "cannot be decoded"),
    ],
)
def test_a_sealed_file_with_a_wrong_inside_is_refused(stored, cause, tmp_path):
    sealed(tmp_path / "x.pt", stored)
    with pytest.raises(CheckpointError, match=cause) as caught:
        load_content(tmp_path / "x.pt")
    assert caught.value.remedy


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(CheckpointError, match="cannot be read: No such file") as caught:
        load_content(path)
    assert "path" in caught.value.remedy
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load_content(tmp_path / "folder")
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="it is empty"):
        load_content(path)
    for data in (b"hello", b"\0" * 5000, pickle.dumps({"a": 1})):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            load_content(path)
    torch.save({"a": 1}, path)
    with pytest.raises(CheckpointError, match="not written by rnnnas"):
        load_content(path)


# Atomic writes


def test_a_full_disk_leaves_the_older_checkpoint_whole(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "state.pt"
    digest = save_content(path, {"weights": torch.zeros(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1, 1000, 50_000, 399_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # a real write fails midway
        try:
            with pytest.raises(DiskError, match="state.pt could not be written") as caught:
                save_content(path, {"weights": torch.zeros(100_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.strerror(errno.EFBIG) in caught.value.cause and "room" in caught.value.remedy
        assert content_digest(load_content(path)) == digest
        assert leftovers(tmp_path) == []


def test_no_space_left_is_named(tmp_path, monkeypatch):
    def full(self, data, /):
        self.error = OSError(errno.ENOSPC, "No space left on device")
        raise self.error

    write_json(tmp_path / "x.json", [1])
    with monkeypatch.context() as patch:
        patch.setattr(files._Raw, "write", lambda s, d, /: len(d) if s.abandoned else full(s, d))
        for write in (
            lambda: write_json(tmp_path / "x.json", [2]),
            lambda: save_content(tmp_path / "x.json", {"a": torch.zeros(100_000)}),
        ):
            with pytest.raises(DiskError, match="No space left on device"):
                write()
    assert read_json(tmp_path / "x.json") == [1]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_after_writing_is_a_disk_error_too(failing, tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", 1)

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(DiskError, match="Input/output error"):
            write_json(tmp_path / "x.json", 2)
    assert read_json(tmp_path / "x.json") == 1
    assert leftovers(tmp_path) == []


def test_an_interrupted_write_leaves_the_older_file(tmp_path):
    write_json(tmp_path / "x.json", 1)

    def write(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x.json", write)

    def fail(file):
        raise RuntimeError("not the disk")

    with pytest.raises(RuntimeError, match="not the disk"):
        write_atomic(tmp_path / "x.json", fail)
    assert read_json(tmp_path / "x.json") == 1
    assert leftovers(tmp_path) == []


def test_unwritable_places_are_disk_errors(tmp_path):
    with pytest.raises(DiskError, match="No such file"):
        write_json(tmp_path / "missing" / "x.json", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="Not a directory"):
        write_json(tmp_path / "file" / "x.json", 1)


def test_the_data_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1]
        )
    write_json(tmp_path / "x.json", 1)
    assert calls == ["fsync", "replace", "fsync"]  # the file, the rename, the folder


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from rnnnas.runs.checkpoint import load_content, save_content
path = Path(sys.argv[1])
save_content(path, {"step": 0, "weights": torch.zeros(5000)})
seen = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        step = load_content(path)["step"]
        while True:
            step += 1
            save_content(path, {"step": step, "weights": torch.full((5000,), float(step))})
    time.sleep(random.uniform(0.05, 0.25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    content = load_content(path)
    assert content["weights"].eq(content["step"]).all()
    seen.append(content["step"])
assert seen == sorted(seen) and seen[-1] > 0, seen
print("kills survived:", len(seen), "last step:", seen[-1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_in_the_middle_of_saving_always_leaves_a_whole_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "state.pt")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "kills survived: 8" in done.stdout
    print(done.stdout.strip(), "temporaries left:", files.remove_temporaries(tmp_path))
    assert leftovers(tmp_path) == []


# JSON


def test_json_is_strict_and_ordered(tmp_path):
    write_json(tmp_path / "x.json", {"b": math.nan, "a": (1, 2.5, "ß"), "c": {"d": -math.inf}})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.endswith("}\n") and "ß" in text and "NaN" not in text
    value = json.loads(text)
    assert value == {"b": None, "a": [1, 2.5, "ß"], "c": {"d": None}} and list(value) == list("bac")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b'{"a": 1'])
def test_damaged_json_is_refused(data, tmp_path):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        read_json(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / "missing.json")


# Locks


def test_a_lock_holds_until_it_is_released(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(UsageError, match=f"in use by another process \\({os.getpid()}\\)"):
        Lock(tmp_path)
    lock.release()
    lock.release()
    Lock(tmp_path).release()
