"""A corpus with the vocabulary of another, on which the other's models can be tuned."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sample_sources import text_of, written

import rnnnas
from rnnnas.cli import main
from rnnnas.data.corpus import SPLITS, Corpus, VocabOptions, add_corpus, open_corpus
from rnnnas.data.tokenizer import tokenize
from rnnnas.errors import DataError, UsageError

FIRST = "".join(f"Erste Zeile {i % 50}: ein Wort, noch ein Wort.\n" for i in range(400))
SECOND = "".join(f"Zweite Zeile {i % 50}: kein Wort, ein Ωmega!\n" for i in range(400))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def two(tmp_path: Path, kind: str) -> tuple[Corpus, Corpus]:
    first = add_corpus("first", written(tmp_path / "1.txt", FIRST), VocabOptions(kind=kind))
    second = rnnnas.add_corpus("second", written(tmp_path / "2.txt", SECOND), vocab_of="first")
    assert isinstance(first, Corpus) and isinstance(second, Corpus)
    return first, second


@pytest.mark.parametrize("kind", ["words", "sentencepiece", "characters", "bytes"])
def test_the_vocabulary_is_the_other_ones(tmp_path: Path, kind: str) -> None:
    first, second = two(tmp_path, kind)
    assert second.vocab.to_plain() == first.vocab.to_plain() and second.vocab.kind == kind
    assert "the vocabulary is that of first" in second.description["note"]
    assert open_corpus("second").description["options"]["like"] == "first"
    assert "like" not in first.description["options"]
    whole = "".join(text_of(second, split) for split in SPLITS)
    unknown = sum(second.units(split).unknown for split in SPLITS)
    if kind in ("sentencepiece", "bytes"):
        assert whole == SECOND and unknown == 0
    else:
        rows = [tokenize(line) if kind == "words" else list(line) for line in SECOND.splitlines()]
        assert unknown == sum(entry not in first.vocab.words for row in rows for entry in row) > 400
    assert sum(second.units(split).bytes or 0 for split in SPLITS) == len(SECOND.encode())


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "1.txt", FIRST)
    assert run("corpus", "add", "first", "--from", source).exit_code == 0
    for more in (["--vocab", "bytes"], ["--vocab-size", 500], ["--lower"]):
        told = run("corpus", "add", "x", "--from", source, "--vocab-of", "first", *more)
        assert told.exit_code == 2 and "Leave out --vocab" in told.stderr
    told = run("corpus", "add", "x", "--from", source, "--vocab-of", "fist")
    assert told.exit_code == 3 and "did you mean 'first'?" in told.stderr
    with pytest.raises(UsageError, match="is what it is"):
        VocabOptions(kind="words", like="first")
    with pytest.raises(DataError, match="no corpus 'none'"):
        add_corpus("x", source, VocabOptions(like="none"))


def test_a_model_is_tuned_by_the_remedy(tmp_path: Path) -> None:
    """The command that the refusal of another vocabulary names, followed."""
    one, other = written(tmp_path / "1.txt", FIRST), written(tmp_path / "2.txt", SECOND)
    assert run("corpus", "add", "first", "--from", one).exit_code == 0
    assert run("corpus", "add", "second", "--from", other).exit_code == 0
    small = ["--epochs", 1, "--hidden", 4, "--set", "windows.limit=2"]
    folder = tmp_path / "lm"
    assert run("train", "--corpus", "first", "--genotype", "LSTM", *small,
               "--out", folder).exit_code == 0  # fmt: skip
    tune = ["train", "--from", folder, "--epochs", 1, "--out", tmp_path / "tuned", "--corpus"]
    refused = run(*tune, "second")
    assert refused.exit_code == 3
    assert "rnnnas corpus add NAME --from TEXT --vocab-of first" in refused.stderr
    assert run("corpus", "add", "third", "--from", other, "--vocab-of", "first").exit_code == 0
    tuned = run(*tune, "third")
    assert tuned.exit_code == 0, tuned.output
