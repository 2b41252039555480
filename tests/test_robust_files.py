"""Files of the user's are left alone, and what cannot be read says why."""

from __future__ import annotations

import errno
import os

import pytest

from rnnnas.config.plain import value_of
from rnnnas.config.preset_files import corpus_in
from rnnnas.data.text_corpus import read_file
from rnnnas.errors import CheckpointError, DataError, UsageError
from rnnnas.nas.zoo import read_genotype
from rnnnas.reporting.read import read_run
from rnnnas.runs import files
from rnnnas.runs.checkpoint import load_content
from rnnnas.runs.files import Lock, parse_json, read_json, remove_temporaries, write_atomic
from rnnnas.studies import execute

DEEP = ["[" * 60_000, '{"a":' * 60_000, "[" * 5_000 + "]" * 5_000, "[" * 150 + "]" * 150]


def test_only_temporaries_that_we_made_are_removed(tmp_path, monkeypatch):
    users = [".x.0123456789abcdef.tmp", f".x.{'0' * 32}.tmp", ".notes.tmp"]
    for name in users:
        (tmp_path / name).write_text("mine")
    # A writer that dies: its temporary stays.
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(files.Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / "état.pt", lambda file: file.write(b"half"))
    assert len(list(tmp_path.iterdir())) == 4
    assert remove_temporaries(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(users)


def test_a_link_by_the_name_of_a_temporary_is_left(tmp_path):
    (tmp_path / "thesis").write_text("mine")
    link = tmp_path / files._temporary_name("x")
    link.symlink_to(tmp_path / "thesis")
    assert remove_temporaries(tmp_path) == 0 and link.is_symlink()


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(tmp_path):
    (tmp_path / "thesis").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "thesis")
    with pytest.raises(UsageError, match="is a link"):
        Lock(tmp_path)
    assert (tmp_path / "thesis").read_text() == "mine"


def test_a_lock_file_that_is_not_ours_is_held_and_never_written(tmp_path):
    (tmp_path / ".lock").write_text("the combination is 1234")
    lock = Lock(tmp_path)
    with pytest.raises(UsageError, match="in use"):
        Lock(tmp_path)
    lock.release()
    assert (tmp_path / ".lock").read_text() == "the combination is 1234"


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    Lock(tmp_path).release()
    told = capsys.readouterr().err
    assert "WARNING" in told and str(tmp_path) in told and os.strerror(errno.ENOLCK) in told


@pytest.mark.parametrize("text", DEEP, ids=range(4))
def test_json_nested_deeper_than_any_of_ours_is_refused(text, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"result\.json is damaged: .*nested deeper"):
        read_json(path)


def test_json_may_begin_with_a_byte_order_mark_and_nest_a_little():
    assert parse_json("\ufeff[1]") == [1] and parse_json(b"\xef\xbb\xbf2") == 2
    assert parse_json("[" * 100 + "]" * 100)


def test_deep_lines_in_the_metrics_of_a_run_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "train", "config": {}}')
    (tmp_path / "metrics.jsonl").write_text("[" * 60_000 + "\n")
    with pytest.raises(CheckpointError, match="line 1: nested deeper"):
        read_run(tmp_path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("read", [read_json, load_content])
def test_what_the_system_cannot_read_now_is_not_called_damaged(read, number, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text("{}")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.Path, "open", fail)
    monkeypatch.setattr(files.Path, "read_bytes", fail)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert os.strerror(number) in caught.value.cause and "damaged" not in caught.value.cause
    assert "copy" not in caught.value.remedy and "--fresh" not in caught.value.remedy


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "x"
    os.mkfifo(path)

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("it waits for a writer")

    monkeypatch.setattr(files.Path, "open", opened)
    monkeypatch.setattr(files.Path, "read_bytes", opened)
    for read in (read_json, load_content):
        with pytest.raises(CheckpointError, match="it is a pipe, not a file"):
            read(path)
    with pytest.raises(DataError, match="it is a pipe, not a file"):
        read_file(path, tmp_path, "x")


@pytest.mark.parametrize("text", DEEP[:2], ids=range(2))
def test_deep_nesting_is_refused_wherever_users_give_files(text, tmp_path):
    path = tmp_path / "cell.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="nested too deeply"):
        read_genotype(str(path))
    with pytest.raises(UsageError, match="nested too deeply"):
        value_of(text.replace('{"a":', "{a="))
    path.write_text("seed = " + text.replace('{"a":', "{a="))
    with pytest.raises(UsageError, match="cannot be read as TOML"):
        corpus_in(path, "train")


def test_a_byte_order_mark_before_toml_is_skipped(tmp_path):
    path = tmp_path / "own.toml"
    path.write_bytes(b'\xef\xbb\xbfcorpus = "mine"\n')
    assert corpus_in(path, "train") == "mine"


@pytest.mark.parametrize("text", ["[]", "{}", '{"seconds": "1", "valid_perplexity": 2.0}', "3"])
def test_a_study_refuses_the_result_of_a_job_with_wrong_types(text, tmp_path):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(
        CheckpointError, match="lacks its seconds or its perplexity|in place of an object"
    ):
        execute._result(tmp_path / "result.json")
