"""Folders of corpora: users' own files stay, an exchange is whole, descriptions are sealed."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sample_sources import TEXT, left_behind, three, written

from rnnnas.cli import main
from rnnnas.data import earlier, folders, synthetic, text_corpus
from rnnnas.data.corpus import (
    SPLITS,
    VocabOptions,
    add_corpus,
    check_unchanged,
    corpora_folder,
    corpus_info,
    open_corpus,
    remove_corpus,
)
from rnnnas.errors import DataError, UsageError
from rnnnas.processes import scratch_folder

OPTIONS = VocabOptions()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("inner", ["", "book"])
def test_a_users_own_folder_is_no_corpus(tmp_path: Path, replace: bool, inner: str) -> None:
    own = three(corpora_folder() / "book" / inner)
    before = contents(corpora_folder())
    with pytest.raises(UsageError, match="would be written"):
        add_corpus("book", own, OPTIONS, replace=replace)
    other = written(tmp_path / "t.txt")
    attempts = [
        lambda: add_corpus("book", other, OPTIONS, replace=replace),
        lambda: open_corpus("book"),
        lambda: remove_corpus("book"),
    ]
    for attempt in attempts:
        with pytest.raises(DataError, match="not a corpus that rnnnas prepared") as caught:
            attempt()
        assert "amage" not in str(caught.value) and "elete" not in str(caught.value)
    assert contents(corpora_folder()) == before
    # The remedy: it is a source like any other.
    add_corpus("book-2", corpora_folder() / "book", OPTIONS)
    assert len(open_corpus("book-2").splits["train"]) == 400 * 10


def test_a_corpus_with_a_users_file_in_it_is_kept(tmp_path: Path) -> None:
    folder = add_corpus("own", written(tmp_path / "t.txt"), OPTIONS).folder
    written(folder / "notes.txt", "mine")
    other = written(tmp_path / "o.txt", TEXT.replace("9", "8"))
    for attempt in (
        lambda: add_corpus("own", other, OPTIONS, replace=True),
        lambda: remove_corpus("own"),
    ):
        with pytest.raises(DataError, match=r"it holds notes\.txt"):
            attempt()
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    link = corpora_folder() / "link"
    link.symlink_to(folder, target_is_directory=True)
    with pytest.raises(DataError, match="it is a link"):
        remove_corpus("link")
    assert remove_corpus("own") == folder and left_behind() == ["link"]
    with pytest.raises(DataError, match="no prepared corpus"):
        remove_corpus("own")


def test_rm_on_the_command_line(tmp_path: Path) -> None:
    add_corpus("own", written(tmp_path / "t.txt"), OPTIONS)
    run = CliRunner().invoke(main, ["corpus", "rm", "own", "--json"])
    assert json.loads(run.output)["name"] == "own" and left_behind() == []
    assert CliRunner().invoke(main, ["corpus", "rm", "own"]).exit_code == 3


def numbers_changed(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a description of everything but lists and objects."""
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in numbers_changed(item, (*path, key))]
    if isinstance(value, list):
        return [p for key, item in enumerate(value) for p in numbers_changed(item, (*path, key))]
    return [path]


def altered(description: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    copy: Any = json.loads(json.dumps(description))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    old = inside[path[-1]]
    inside[path[-1]] = (not old) if isinstance(old, bool) else f"{old}x" if isinstance(
        old, str) else 1 if old is None else old + 1  # fmt: skip
    return dict(copy)


def test_every_field_of_a_description_is_covered(tmp_path: Path) -> None:
    folder = add_corpus("own", written(tmp_path / "t.txt"), OPTIONS).folder
    path = folder / text_corpus.DESCRIPTION
    good = json.loads(path.read_text())
    places = numbers_changed(good)
    assert {"unknown", "words", "bytes", "note", "canonical", "pretokenised"} <= {
        str(p[-1]) for p in places
    }
    for place in places:
        path.write_text(json.dumps(altered(good, place)))
        with pytest.raises(DataError):
            check_unchanged(open_corpus("own"))
    for changed in (good | {"format": 1}, {k: v for k, v in good.items() if k != text_corpus.SEAL}):
        path.write_text(json.dumps(changed))
        with pytest.raises(DataError):
            open_corpus("own")
    path.write_text("[" * 60_000)
    with pytest.raises(DataError, match="not a description"):
        open_corpus("own")
    print(f"{len(places)} fields")


def test_corpora_of_the_format_before_open_and_are_derived_anew(tmp_path: Path) -> None:
    for kind in ("words", "sentencepiece"):
        options = VocabOptions(kind=kind, size=300)
        folder = add_corpus(f"old-{kind}", written(tmp_path / "t.txt"), options).folder
        path = folder / text_corpus.DESCRIPTION
        old = json.loads(path.read_text()) | {"format": 1}
        del old[text_corpus.SEAL], old["pretokenised"], old["script"]
        for split in SPLITS:
            del old["splits"][split]["bytes"]
        path.write_text(json.dumps(old))
        corpus = open_corpus(f"old-{kind}")
        info = corpus_info(corpus)
        assert "earlier version" in info["note"] and corpus.units("test").bytes is None
        changes: list[tuple[Any, ...]] = [("vocabulary",), ("canonical",)]
        changes += [("splits", s, key) for s in SPLITS for key in ("tokens", "lines", "words")]
        for place in changes:
            path.write_text(json.dumps(altered(old, place)))
            with pytest.raises(DataError):
                check_unchanged(open_corpus(f"old-{kind}"))
        path.write_text(json.dumps(old | {"best_perplexity": dict.fromkeys(SPLITS, 3.0)}))
        with pytest.raises(DataError, match="not known"):
            check_unchanged(open_corpus(f"old-{kind}"))


def test_a_passing_reason_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_corpus("own", written(tmp_path / "t.txt"), OPTIONS)

    def busy(path: Path) -> bytes:
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(Path, "read_bytes", busy)
    with pytest.raises(DataError, match="Too many open files") as caught:
        open_corpus("own")
    assert "damaged" not in str(caught.value)


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from rnnnas.data import folders
from rnnnas.data.corpus import VocabOptions, add_corpus, check_unchanged, open_corpus
kills, atomic, seed = int(sys.argv[1]), sys.argv[2] == "atomic", int(sys.argv[3])
if not atomic:
    folders.exchange = lambda one, two: False
sources = [Path(sys.argv[4]), Path(sys.argv[5])]
known = {add_corpus("own", s, VocabOptions(), replace=True).sha256 for s in sources}
rng, seen, gaps, done = random.Random(seed), set(), 0, 0
while done < kills:
    child = os.fork()
    if not child:
        turn = done
        while True:
            turn += 1
            add_corpus("own", sources[turn % 2], VocabOptions(), replace=True)
    time.sleep(rng.uniform(0.001, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    gaps += not os.path.lexists(Path(os.environ["RNNNAS_HOME"]) / "corpora" / "own")
    corpus = open_corpus("own")
    check_unchanged(corpus)
    assert corpus.sha256 in known
    seen.add(corpus.sha256)
    done += 1
assert not (atomic and gaps), gaps
print(done, len(seen), gaps)
"""


def killed(tmp_path: Path, kills: int, way: str) -> None:
    one = written(tmp_path / "one.txt")
    two = written(tmp_path / "two.txt", TEXT.replace("9", "8"))
    words = [sys.executable, "-c", KILLS, str(kills), way, "1", str(one), str(two)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    print(f"{way}: kills, contents seen, gaps mended: {run.stdout.strip()}")


def can_exchange(tmp_path: Path) -> bool:
    for name in ("a", "b"):
        (tmp_path / "exchange" / name).mkdir(parents=True)
    return folders.exchange(tmp_path / "exchange" / "a", tmp_path / "exchange" / "b")


@pytest.mark.parametrize("way", ["atomic", "renames"])
def test_kills_leave_the_old_or_the_new(tmp_path: Path, way: str) -> None:
    if way == "atomic" and not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange two names in one step")
    killed(tmp_path, 6, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["atomic", "renames"])
def test_a_hundred_kills(tmp_path: Path, way: str) -> None:
    if way == "atomic" and not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange two names in one step")
    killed(tmp_path, 100, way)


def test_a_kill_between_two_renames_is_mended(tmp_path: Path) -> None:
    corpus = add_corpus("own", written(tmp_path / "t.txt"), OPTIONS)
    hidden = corpora_folder() / ".own.x1.partial"
    written(hidden / folders.MARK, hidden.name)
    corpus.folder.rename(hidden / "replaced")
    assert open_corpus("own").sha256 == corpus.sha256
    # Not marked as ours, not touched.
    corpus.folder.rename(corpora_folder() / "elsewhere")
    (corpora_folder() / ".own.x2.partial").mkdir()
    (corpora_folder() / "elsewhere").rename(corpora_folder() / ".own.x2.partial" / "replaced")
    with pytest.raises(DataError, match="there is no corpus"):
        open_corpus("own")


def test_without_an_exchange_replacing_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add_corpus("own", written(tmp_path / "t.txt"), OPTIONS)
    monkeypatch.setattr(folders, "exchange", lambda one, two: False)
    other = written(tmp_path / "o.txt", TEXT.replace("9", "8"))
    assert add_corpus("own", other, OPTIONS, replace=True).sha256 != first.sha256
    # The same tokens of another text, whose unknown words are longer: what is told of its bytes is
    # that of the new one.
    before = open_corpus("own")
    text, known = other.read_text(encoding="utf-8"), {*before.vocab.words}
    for word in {word for word in text.split() if word not in known}:
        text = re.sub(rf"(?<!\S){re.escape(word)}(?!\S)", f"{word}zz", text)
    longer = other.with_name("longer.txt")
    longer.write_text(text, encoding="utf-8")
    after = add_corpus("own", longer, OPTIONS, replace=True)
    assert after.sha256 == before.sha256
    assert after.units("train").bytes > before.units("train").bytes
    assert left_behind() == ["own"]


def test_what_a_killed_preparation_left_goes_at_the_next(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    gone, alive = int(child.stdout), os.getpid()
    for process in (gone, alive):
        hidden = corpora_folder() / f".own.{process}.partial"
        written(hidden / folders.MARK, f"{hidden.name}\n{socket.gethostname()}\n{process}\n")
        written(hidden / "corpus" / "train.bin", "x")
    add_corpus("own", written(tmp_path / "t.txt"), OPTIONS)
    assert left_behind() == [f".own.{alive}.partial", "own"]


@pytest.mark.parametrize("made_by", ["corpus", "scratch"])
@pytest.mark.parametrize(("owner", "after"), [(os, "mkdir"), (Path, "write_text")])
def test_a_signal_at_any_moment_leaves_nothing(
    owner: Any, after: str, made_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's exception may come between the making of a folder and the next statement."""
    made = getattr(owner, after)
    place = tmp_path / "place"
    place.mkdir()

    def interrupted(path: str | Path, *args: Any, **kwargs: Any) -> None:
        made(path, *args, **kwargs)
        if str(path).startswith(str(place)):
            raise SystemExit(143)

    monkeypatch.setattr(owner, after, interrupted)
    folder = folders.hidden_sibling(place / "big") if made_by == "corpus" else scratch_folder(place)
    with pytest.raises(SystemExit), folder as inside:
        (inside / "file").write_text("x")
    assert not list(place.iterdir())


@pytest.mark.slow
def test_what_is_known_of_the_generated_corpus_is_so() -> None:
    corpus = open_corpus("hmm")
    assert corpus.sha256 == earlier._HMM
    for split in SPLITS:
        exact = -synthetic.log_likelihoods(synthetic.source(), corpus.splits[split])[1:].mean()
        assert np.exp(exact) == pytest.approx(earlier._HMM_BEST[split], rel=1e-12)


def test_a_generated_corpus_of_the_format_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "LENGTHS", {"train": 9_000, "valid": 900, "test": 900})
    path = open_corpus("hmm").folder / text_corpus.DESCRIPTION
    old = json.loads(path.read_text()) | {"format": 1}
    del old[text_corpus.SEAL]
    path.write_text(json.dumps(old))
    check_unchanged(open_corpus("hmm"))
    old["best_perplexity"]["test"] += 0.1
    path.write_text(json.dumps(old))
    with pytest.raises(DataError, match="the perplexity of the true source on test is"):
        check_unchanged(open_corpus("hmm"))
