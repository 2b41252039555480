"""Which vocabulary a text gets, and the units that make vocabularies comparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_sources import text_of, written

from rnnnas.cli import main
from rnnnas.data.corpus import SPLITS, VocabOptions, add_corpus, corpus_info, open_corpus
from rnnnas.data.text_kind import kind_of
from rnnnas.data.vocab import EOS, UNK, Vocab, benchmark_words, frequent_words
from rnnnas.errors import DataError, UsageError

ENGLISH = "\n".join(
    f'"Society," said no. {i} of {i % 7}, "is well-known; isn\'t it? Anna\'s is."'
    for i in range(400)
)
GERMAN = "\n".join(
    f"Die Straße war naß, und Frau {n} ging über die Brücke; „Grüße!“, rief sie."
    for n in ("Müller", "Jäger", "Weiß", "Löwe", "Schäfer") * 80
)
CHINESE = "\n".join(f"今天天气很好，第{i}个孩子在公园里玩。老师说明天还要来。" for i in range(400))
ARABIC = "\n".join(f"مرحبا، كيف حالك يا {n}؟ هذا كتاب جيد." for n in ("سارة", "علي") * 200)
PLAIN = "\n".join(f"the no. {i} said that it is <unk> , and N more ." for i in range(400))
TEXTS = {"english": ENGLISH, "german": GERMAN, "chinese": CHINESE, "arabic": ARABIC}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def blocks(text: str) -> dict[str, list[str]]:
    lines = text.split("\n")
    return {"train": lines[:360], "valid": lines[360:380], "test": lines[380:]}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", ["auto", "words", "characters", "bytes"])
def test_units_of_every_vocabulary(tmp_path: Path, name: str, kind: str) -> None:
    text = TEXTS[name]
    corpus = add_corpus("own", written(tmp_path / "t.txt", text + "\n"), VocabOptions(kind=kind))
    assert corpus.vocab.kind == {"auto": "sentencepiece"}.get(kind, kind)
    info: dict[str, Any] = corpus_info(corpus)
    for split, lines in blocks(text).items():
        units = corpus.units(split)
        whole = "".join(f"{line}\n" for line in lines)
        assert units.bytes == len(whole.encode()) == info["bytes"][split]
        assert units.words == len(whole.split()) and units.lines == len(lines)
        assert units.tokens == len(corpus.splits[split]) == info[split]
        assert units.spaced == (name != "chinese")
        if kind in ("bytes", "auto"):
            assert text_of(corpus, split) == whole and units.unknown == 0
        if kind == "bytes":
            assert corpus.splits[split].tolist() == list(whole.encode())
    assert ("without spaces" in corpus.description["note"]) == (name == "chinese")
    assert open_corpus("own").vocab.to_plain() == corpus.vocab.to_plain()


def test_vocabularies_compare_by_words_and_bytes(tmp_path: Path) -> None:
    """The same nats over the whole text are the same numbers, whatever the tokens."""
    path = written(tmp_path / "t.txt", GERMAN + "\n")
    lines = blocks(GERMAN)["test"]
    whole = "".join(f"{line}\n" for line in lines)
    nats = np.log(3.0) * len(whole)  # of the text, whatever its tokens
    for kind in ("auto", "words", "characters", "bytes"):
        units = add_corpus(kind, path, VocabOptions(kind=kind)).units("test")
        mean = nats / units.tokens
        words = np.exp(nats / (len(whole.split()) + len(lines)))
        assert units.word_perplexity(mean) == pytest.approx(words, rel=1e-12)
        bits = nats / np.log(2) / len(whole.encode())
        assert units.bits_per_byte(mean) == pytest.approx(bits, rel=1e-12)
    assert units.word_perplexity(1e9) == np.inf


def test_words_of_raw_text_have_no_punctuation(tmp_path: Path) -> None:
    corpus = add_corpus("own", written(tmp_path / "t.txt", ENGLISH), VocabOptions(kind="words"))
    assert {"Society", "￭,", "well", "￭-￭", "known", "￭'s"} <= set(corpus.vocab.words)
    train = blocks(ENGLISH)["train"][:100]
    decoded = corpus.vocab.decode(corpus.vocab.encode(train).tokens)
    numbers = [line.split("no. ")[1].split(" ")[0] for line in train]
    for line, number, found in zip(train, numbers, decoded.split("\n"), strict=False):
        assert found == line.replace(f" {number} of", " <unk> of") or found == line


def test_pretokenised_text_stays_words(tmp_path: Path) -> None:
    corpus = add_corpus("own", written(tmp_path / "t.txt", PLAIN), VocabOptions())
    assert corpus.vocab.kind == "words" and not corpus.vocab.tokenizer
    assert "<unk> in the text itself counts as the unknown word" in corpus.description["note"]
    marked = written(tmp_path / "m.txt", PLAIN.replace("more .", "more . <eos>"))
    other = add_corpus("marked", marked, VocabOptions())
    assert "<eos> in the text itself is a word like others" in other.description["note"]
    assert other.vocab.decode(other.splits["test"]).endswith("more . <eos>\n")
    assert other.units("test").lines == 20
    assert "no." in corpus.vocab.words and corpus.description["pretokenised"] is True
    assert corpus.units("test").words == sum(map(len, map(str.split, PLAIN.split("\n")[380:])))


def test_kinds_of_text() -> None:
    kinds = {text: kind_of(text.split("\n")) for text in (*TEXTS.values(), PLAIN)}
    assert [kind.pretokenised for kind in kinds.values()] == [False] * 4 + [True]
    spaceless = {
        "Chinese": "今天天气很好，我们去公园玩。孩子们都很高兴。",
        "Japanese": "今日は天気がいいので、公園へ行きました。",
        "Thai": "วันนี้อากาศดีมากเราไปเที่ยวสวนสาธารณะ",
        "": "今天 天气 很 好 ， 我们 去 公园",
    }
    assert {kind_of([text] * 9).script for text in spaceless.values()} == set(spaceless)
    for name, text in spaceless.items():
        assert kind_of([text] * 9).script == name
    assert kind_of(["오늘은 날씨가 좋아서 공원에 갔습니다."] * 9).script == ""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]))))
def test_bytes_and_characters_round_trip(lines: list[str]) -> None:
    whole = "".join(f"{line}\n" for line in lines)
    letters = frequent_words([*lines, *lines], kind="characters", size=100_000)
    for vocab in (Vocab(kind="bytes"), letters):
        assert vocab.decode(vocab.encode(lines).tokens) == whole
        again = Vocab.from_plain(json.loads(json.dumps(vocab.to_plain())))
        assert again.encode(lines).tokens.tolist() == vocab.encode(lines).tokens.tolist()


def test_words_that_look_like_our_marks() -> None:
    line = rf"a {EOS} \{EOS} b \\{EOS} {UNK}"
    vocab = benchmark_words([[line]])
    found = vocab.encode([line])
    assert found.tokens.tolist().count(vocab.eos) == 1
    assert vocab.decode(found.tokens) == f"{line}\n"


def test_options_that_mean_nothing() -> None:
    with pytest.raises(UsageError, match="there are 256"):
        VocabOptions(kind="bytes", size=300)
    for plain in (
        {"kind": "words", "lower": False, "words": [EOS], "tokenizer": "other"},
        {"kind": "characters", "lower": False, "words": [EOS], "tokenizer": "rules"},
    ):
        with pytest.raises(DataError):
            Vocab.from_plain(plain)


def test_bytes_are_those_that_tokens_stand_for() -> None:
    """Words do not say how much white space parts them, nor which letters were capitals; bytes and
    pieces do.
    """
    lines = ["  if  a:\tB  ", "", "\t\tb"]
    whole = len("".join(f"{line}\n" for line in lines))
    vocab = Vocab(words=(EOS, "if", "a:", "b"), lower=True)
    encoded = vocab.encode(lines)
    assert encoded.bytes == len(vocab.decode(encoded.tokens.tolist())) == len("if a: b\n\nb\n")
    assert Vocab(kind="bytes").encode(lines).bytes == whole
    letters = Vocab(kind="characters", words=(EOS, *sorted(set("".join(lines)))))
    assert letters.encode(lines).bytes == whole


def test_the_share_of_unknown_words_is_said(tmp_path: Path) -> None:
    text = str(written(tmp_path / "t.txt", PLAIN))
    run = CliRunner().invoke(main, ["corpus", "add", "own", "--from", text])
    assert run.exit_code == 0, run.output
    vocab = {"the", "no.", "said", "that", "it", "is", "<unk>", ",", "and", "N", "more", "."}
    shares = []
    for lines in blocks(PLAIN).values():
        words = [word for line in lines for word in line.split()]
        # Those that the text itself calls <unk> are as unknown as what the vocabulary lacks.
        shares.append(
            sum(w not in vocab or w == "<unk>" for w in words) / (len(words) + len(lines))
        )
    said = " / ".join(f"{100 * share:.2f} %" for share in shares)
    assert (
        f"unknown (<unk>): {said} of train / valid / test, with those of the text itself"
        in run.output
    )
    assert "warning: more than 2 %" in run.output
    made = CliRunner().invoke(main, ["corpus", "add", "b", "--from", text, "--vocab", "bytes",
                                     "--json"])  # fmt: skip
    assert json.loads(made.output)["unknown_share"] == dict.fromkeys(SPLITS, 0.0)
