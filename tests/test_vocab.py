"""Vocabularies: round trips, counts, plain forms, what a small text gives."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnnas.data import vocab as module
from rnnnas.data.vocab import (
    EOS,
    UNK,
    Vocab,
    benchmark_words,
    frequent_words,
    sentence_pieces,
)
from rnnnas.errors import DataError

HALVES = ["a \ud800", "\udcff"]  # the latter is a byte that is not UTF-8, on a command line
LINES = [f"the cat number {i % 40} sat on the mat, æther {i * 7 % 30}." for i in range(300)]


@pytest.fixture(scope="module")
def pieces() -> Vocab:
    return sentence_pieces(LINES, size=300)


def test_benchmark_words_stand_in_order_of_first_appearance() -> None:
    vocab = benchmark_words([["b a", "a c"], ["", "d a"], ["e <unk>"]])
    assert vocab.words == ("b", "a", EOS, "c", "d", "e", UNK)
    assert (vocab.size, len(vocab), vocab.eos, vocab.unk) == (7, 7, 2, 6)


def test_words_encode_with_an_end_after_every_line() -> None:
    vocab = benchmark_words([["a b"]])
    found = vocab.encode(["a b", "", "  b\ta "])
    assert found.tokens.tolist() == [0, 1, 2, 2, 1, 0, 2] and found.tokens.dtype == np.int32
    assert (found.unknown, found.words) == (0, 7)
    assert vocab.decode(found.tokens) == "a b\n\nb a\n"
    assert vocab.encode_line("b") == [1, 2]
    assert vocab.encode([]).tokens.shape == (0,)


def test_unseen_words_are_counted_and_become_unk() -> None:
    vocab = benchmark_words([["a <unk>"]])
    found = vocab.encode(["a zebra <unk>", "yak"])
    assert found.tokens.tolist() == [0, 1, 1, 2, 1, 2] and found.unknown == 2
    with pytest.raises(DataError, match="'zebra'"):
        benchmark_words([["a"]]).encode(["a zebra"])


def test_frequent_words_are_capped() -> None:
    lines = ["c b a", "b a", "a once"]
    assert frequent_words(lines).words == (EOS, UNK, "a", "b")
    assert frequent_words(lines, size=5).words == (EOS, UNK, "a", "b", "c")
    assert frequent_words(lines, size=50).words == (EOS, UNK, "a", "b", "c", "once")
    assert frequent_words([f"{UNK} {EOS}"] * 3).words == (EOS, UNK, f"\\{EOS}")


def test_default_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WORDS", 4)
    assert len(frequent_words(["a b c d"] * 3)) == 4


def test_lower_case_is_part_of_the_vocabulary() -> None:
    vocab = frequent_words(["The the THE"], lower=True)
    assert vocab.words == (EOS, UNK, "the")
    assert Vocab.from_plain(vocab.to_plain()).encode(["tHe"]).tokens.tolist() == [2, 0]


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, pieces: Vocab) -> None:
    for vocab in (benchmark_words([LINES]), pieces):
        whole = vocab.encode(LINES)
        monkeypatch.setattr(module, "CHUNK", 7)
        parts = vocab.encode(LINES)
        monkeypatch.undo()
        assert whole.tokens.tolist() == parts.tokens.tolist() and whole[1:] == parts[1:]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]))))
def test_sentencepiece_round_trips_any_text(pieces: Vocab, lines: list[str]) -> None:
    found = pieces.encode(lines)
    assert pieces.decode(found.tokens) == "".join(f"{line}\n" for line in lines)
    assert found.unknown == 0
    assert found.words == sum(len(line.split()) + 1 for line in lines)
    assert found.bytes == len("".join(f"{line}\n" for line in lines).encode())


def test_special_pieces_never_come_out_of_text(pieces: Vocab) -> None:
    ids = pieces.encode_line(f"{EOS} {UNK}")
    assert ids.count(pieces.eos) == 1 and ids[-1] == pieces.eos and pieces.unk not in ids


def test_sentencepiece_is_deterministic(pieces: Vocab) -> None:
    assert sentence_pieces(LINES, size=300).model == pieces.model
    assert pieces.size == 300


def test_sentencepiece_stands_lines_of_any_length() -> None:
    # The trainer drops lines above its limit; one huge line alone would leave it nothing.
    huge = " ".join(LINES)
    assert len(huge) > 8192
    vocab = sentence_pieces([huge, "x" * 20_000], size=300)
    assert vocab.decode(vocab.encode_line(huge)) == f"{huge}\n"


def test_sentencepiece_says_which_size_would_fit() -> None:
    with pytest.raises(DataError, match="too small for 8,000") as caught:
        sentence_pieces(LINES[:20], size=8000)
    fits = int(caught.value.remedy.split("at most ")[1].split()[0])
    assert sentence_pieces(LINES[:20], size=fits).size == fits
    # Where no size is asked for, that is the size.
    assert sentence_pieces(LINES[:20]).model == sentence_pieces(LINES[:20], size=fits).model
    with pytest.raises(DataError, match="too few") as caught:
        sentence_pieces(LINES[:20], size=100)
    least = int(caught.value.remedy.split("more than ")[1].split()[0])
    assert sentence_pieces(LINES[:20], size=least + 1).size == least + 1
    with pytest.raises(DataError):
        sentence_pieces(["", "  "])


def test_sentencepiece_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    sentence_pieces(LINES, size=300)
    sentence_pieces(LINES)  # twice: as many as there are
    with pytest.raises(DataError):
        sentence_pieces(LINES[:3], size=8000)
    assert capfd.readouterr() == ("", "")


def test_large_training_text_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRAIN_CHARACTERS", sum(map(len, LINES)) // 2 + 1)
    thinned = sentence_pieces(LINES, size=300)
    monkeypatch.undo()
    assert thinned.model == sentence_pieces(LINES[::2], size=300).model


def test_plain_forms_survive_json(pieces: Vocab) -> None:
    for vocab in (benchmark_words([LINES]), pieces):
        again = Vocab.from_plain(json.loads(json.dumps(vocab.to_plain())))
        assert again.kind == vocab.kind and again.size == vocab.size
        assert again.encode(LINES).tokens.tolist() == vocab.encode(LINES).tokens.tolist()


def test_malformed_plain_forms_are_refused(pieces: Vocab) -> None:
    model = base64.b64encode(b"no model").decode()
    cases: list[object] = [
        None,
        [],
        {},
        {"kind": "words", "words": [EOS]},
        {"kind": "words", "lower": False},
        {"kind": "words", "lower": False, "words": ["a"]},
        {"kind": "words", "lower": False, "words": [EOS, "a", "a"]},
        {"kind": "words", "lower": False, "words": [EOS, 3]},
        {"kind": "letters", "lower": False, "words": [EOS]},
        {"kind": "sentencepiece", "lower": False},
        {"kind": "sentencepiece", "lower": False, "model": ""},
        {"kind": "sentencepiece", "lower": False, "model": "**"},
        {"kind": "sentencepiece", "lower": False, "model": "ä"},
        {"kind": "sentencepiece", "lower": False, "model": model},
        {"kind": "sentencepiece", "lower": 1, "model": pieces.to_plain()["model"]},
    ]
    for plain in cases:
        with pytest.raises(DataError):
            Vocab.from_plain(plain)
    print(f"{len(cases)} malformed vocabularies refused")


def test_ids_outside_are_refused(pieces: Vocab) -> None:
    for vocab in (benchmark_words([["a"]]), pieces):
        for ids in ([-1], [vocab.size]):
            with pytest.raises(DataError, match="outside"):
                vocab.decode(ids)


@pytest.mark.parametrize("text", HALVES)
@pytest.mark.parametrize("kind", ["words", "characters", "bytes"])
def test_half_a_character_is_refused(kind: str, text: str) -> None:
    vocab = Vocab(kind=kind, words=() if kind == "bytes" else (EOS, "a", " "))
    with pytest.raises(DataError, match="half a character"):
        vocab.encode_line(text)
