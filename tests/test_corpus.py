"""Corpora by name: benchmarks to the token, built-in ones, names, options, listing."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sample_sources import TEXT, left_behind, text_of, three, written

from rnnnas.cli.corpora import _say_origin
from rnnnas.data import benchmarks, pydocs, synthetic
from rnnnas.data.corpus import (
    SPLITS,
    VocabOptions,
    add_corpus,
    corpora_folder,
    corpus_info,
    list_corpora,
    open_corpus,
)
from rnnnas.errors import DataError, UsageError

DATA = Path(__file__).parents[2] / "shared" / "data"
WORDS = VocabOptions()
BENCHMARKS = {
    "ptb": ("ptb.zip", (929589, 73760, 82430, 10000)),
    "wikitext-2": ("wikitext-2-v1.zip", (2088628, 217646, 245569, 33278)),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def archive(name: str) -> Path:
    path = DATA / BENCHMARKS[name][0]
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    return path


@pytest.mark.parametrize("exact", [True, False])
def test_only_the_same_bytes_are_called_so(exact: bool, capsys: pytest.CaptureFixture[str]) -> None:
    spaced = "the canonical words with other spacing or byte-order mark: train"
    _say_origin({"canonical": True, "note": "the canonical ptb" if exact else spaced})
    assert ("byte for byte" in capsys.readouterr().out) is exact


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_to_the_token(name: str) -> None:
    add_corpus(name, archive(name), WORDS)
    corpus = open_corpus(name)
    info = corpus_info(corpus)
    assert tuple(info[key] for key in (*SPLITS, "vocabulary")) == BENCHMARKS[name][1]
    assert info["canonical"] is True and info["unknown"] == dict.fromkeys(SPLITS, 0)
    assert info["words"] == {split: info[split] for split in SPLITS}
    assert 1 < info["bigram_perplexity"] < info["unigram_perplexity"] < info["vocabulary"]
    assert json.loads(json.dumps(info)) == info
    with zipfile.ZipFile(archive(name)) as z:
        for split in SPLITS:
            member = next(m for m in z.namelist() if split in m)
            lines = z.read(member).decode().split("\n")[:-1]
            assert text_of(corpus, split).split("\n")[:-1] == [" ".join(x.split()) for x in lines]


def known(monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]) -> None:
    """Let these texts stand for the Penn Treebank: digests are compared, whatever they are of."""
    digests = {
        split: benchmarks.Digests(*(hashlib.sha256(x.encode()).hexdigest() for x in (text, words)))
        for split, text in texts.items()
        for words in ["".join(f"{' '.join(line.split())}\n" for line in text.splitlines())]
    }
    monkeypatch.setattr(benchmarks, "CANONICAL", {"ptb": digests})


def test_a_text_that_differs_is_said_to_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {split: TEXT.replace("line", split).replace("\n", " \n") for split in SPLITS}
    known(monkeypatch, texts)
    cases: dict[str, tuple[dict[str, str], bool, str]] = {
        "one word": ({"valid": texts["valid"].replace("words", "Words", 1)}, False, "valid"),
        "one line more": ({"test": texts["test"] + "\n"}, False, "test"),
        "two": ({s: texts[s][:5_000] for s in ("train", "test")}, False, "train, test"),
        "spaces": ({"valid": texts["valid"].replace(" \n", "\n")}, True, "valid"),
    }
    for case, (changed, canonical, note) in cases.items():
        folder = tmp_path / case
        for split in SPLITS:
            written(folder / f"ptb.{split}.txt", (texts | changed)[split])
        corpus = add_corpus("ptb", folder, WORDS, replace=True)
        assert corpus.description["canonical"] is canonical, case
        assert corpus.description["note"].endswith(f": {note}"), case
        assert ("differs" in corpus.description["note"]) is not canonical


def test_recognised_by_content_whatever_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, dict.fromkeys(SPLITS, TEXT))
    folder = three(tmp_path / "three")
    corpus = add_corpus("mine", folder, WORDS)
    assert corpus.description["canonical"] is True and len(corpus.vocab) > 400
    small = add_corpus("small", folder, VocabOptions(size=50))
    assert len(small.vocab) == 50 and small.description["splits"]["train"]["unknown"] > 0
    assert add_corpus("own", written(tmp_path / "t.txt"), WORDS).description["canonical"] is None


def test_sentencepiece_counts_words(tmp_path: Path) -> None:
    options = VocabOptions(kind="sentencepiece", size=300)
    corpus = add_corpus("own", written(tmp_path / "t.txt"), options)
    lines = TEXT.splitlines()
    assert text_of(corpus, "valid") == "".join(f"{line}\n" for line in lines[360:380])
    assert corpus.words("valid") == sum(len(line.split()) + 1 for line in lines[360:380])
    assert corpus.words("valid") < len(corpus.splits["valid"])
    about = corpus.description
    assert about["num_threads"] == 1 and about["sentencepiece"] and about["kind"] == options.kind
    assert open_corpus("own").vocab.model == corpus.vocab.model
    with pytest.raises(DataError, match="too small for 8,000"):
        asked = VocabOptions(kind="sentencepiece", size=8000)
        add_corpus("other", written(tmp_path / "t.txt"), asked)
    assert left_behind() == ["own"]
    most = add_corpus("most", written(tmp_path / "t.txt"), VocabOptions(kind="sentencepiece"))
    assert most.vocab.size < 8000
    said = f"{most.vocab.size:,} sentencepieces, all that the training text supports"
    assert most.description["note"] == said and about["note"] == ""


def test_large_vocabularies_take_wider_tokens(tmp_path: Path) -> None:
    lines = "".join(f"w{i} w{i} v{i} v{i}\n" for i in range(40_000))
    corpus = add_corpus("own", written(tmp_path / "t.txt", lines), VocabOptions(size=70_000))
    assert corpus.splits["train"].dtype == np.int32 and int(corpus.splits["train"].max()) > 65_536
    assert not corpus.splits["train"].flags.writeable
    small = add_corpus("small", written(tmp_path / "s.txt"), WORDS)
    assert small.splits["train"].dtype == np.uint16


def test_names_that_are_no_folder_names(tmp_path: Path) -> None:
    text = written(tmp_path / "t.txt")
    bad = ["", ".", "..", "../x", "/x", "a/b/c", "a b", "-x", ".x", "x\0", "x" * 200, "ä", "a\n"]
    for name in bad:
        with pytest.raises(UsageError):
            add_corpus(name, text, WORDS)
        with pytest.raises(DataError):
            open_corpus(name)
    for name in ("pydocs", "hmm"):
        with pytest.raises(UsageError, match="built in"):
            add_corpus(name, text, WORDS)
    assert left_behind() == []
    assert add_corpus("owner/name", text, WORDS).folder.name == "owner--name"
    assert open_corpus("owner/name").name == "owner--name"


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="did you mean 'words'"):
        VocabOptions(kind="word")
    for size in (-1, 1, 2):
        with pytest.raises(UsageError):
            VocabOptions(size=size)


def test_where_corpora_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert corpora_folder() == tmp_path / "home" / "corpora"
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("RNNNAS_HOME")
        else:
            monkeypatch.setenv("RNNNAS_HOME", value)
        assert corpora_folder() == Path("corpora")


def test_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    for name in ("ptb", "wikitext-2", "wikitext-103"):
        with pytest.raises(DataError, match="not prepared") as caught:
            open_corpus(name)
        assert f"corpus fetch {name}" in caught.value.remedy
        assert f"corpus add {name} --from" in caught.value.remedy
    add_corpus("mine", written(tmp_path / "t.txt"), WORDS)
    with pytest.raises(DataError, match=r"did you mean 'pydocs'.*known: .*hmm.*mine") as caught:
        open_corpus("pydoc")
    assert "corpus add pydoc --from" in caught.value.remedy
    assert left_behind() == ["mine"]


def test_listing(tmp_path: Path) -> None:
    add_corpus("mine", written(tmp_path / "t.txt"), WORDS)
    shutil.copytree(corpora_folder() / "mine", corpora_folder() / "hurt")
    written(corpora_folder() / "hurt" / "corpus.json", "{")
    (corpora_folder() / "README.md").write_text("no corpus")
    listed = {entry["name"]: entry for entry in list_corpora()}
    known = ["pydocs", "hmm", "ptb", "wikitext-2", "wikitext-103", "cifar10"]
    assert list(listed) == [*known, "hurt", "mine"]
    assert listed["mine"]["prepared"] and listed["mine"]["tokens"] == 400 * 10
    assert not listed["ptb"]["prepared"] and "fetch ptb" in listed["ptb"]["note"]
    assert "is not a description" in listed["hurt"]["note"]
    with pytest.raises(DataError, match="is a file"):
        add_corpus("README.md", tmp_path / "t.txt", WORDS)


def test_hmm_is_prepared_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {"train": 20_000, "valid": 2_000, "test": 2_000}
    monkeypatch.setattr(synthetic, "LENGTHS", lengths)
    info = corpus_info(open_corpus("hmm"))
    corpus = open_corpus("hmm")
    hmm = synthetic.source()
    for split in SPLITS:
        # The corpus is the source's own stream, ids and all, so that its bound applies.
        exact = synthetic.log_likelihoods(hmm, corpus.splits[split])[1:].mean()
        assert corpus.best_perplexity(split) == pytest.approx(math.exp(-exact), rel=1e-12)
        assert lengths[split] <= len(corpus.splits[split]) < lengths[split] + 60
    assert len(corpus.vocab) == len(hmm.words)
    assert info["best_perplexity"] == corpus.best_perplexity("test")
    assert info["best_perplexity"] < info["bigram_perplexity"] < info["unigram_perplexity"]
    assert left_behind() == ["hmm"]


def test_pydocs_is_prepared_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [f"document {i} has a sentence of words .\n\nand another line {i}" for i in range(900)]
    monkeypatch.setattr(pydocs, "docstrings", lambda _: iter(found))
    monkeypatch.setattr(pydocs, "topics", dict)
    monkeypatch.setattr(pydocs, "MIN_WORDS", 1000)
    corpus = open_corpus("pydocs")
    assert "Python" in corpus.description["source"] and corpus.best_perplexity("test") is None
    assert open_corpus("pydocs").sha256 == corpus.sha256
    assert corpus_info(corpus)["best_perplexity"] is None
