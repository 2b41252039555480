"""The page: its data against torch, its kernels and its scripts in a headless Chromium."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from browser import AVAILABLE, REASON, Browser, browser
from sample_models import LANGUAGE, language_model
from tiny_home import corpus, home

from rnnnas.data.corpus import VocabOptions, add_corpus, open_corpus
from rnnnas.data.text_corpus import Corpus
from rnnnas.data.vocab import Vocab
from rnnnas.errors import UsageError
from rnnnas.exporting import page, tokeniser
from rnnnas.exporting.packing import rounded
from rnnnas.exporting.page_weights import Packing, PageRunner, int16_limit, shape_of
from rnnnas.exporting.run import export
from rnnnas.exporting.source import ExportError, read_source
from rnnnas.exporting.wasm import kernels
from rnnnas.lm.cell import step
from rnnnas.nas.genotype import CellGene, Gene

__all__ = ["browser", "corpus", "home"]  # fixtures

needs_browser = pytest.mark.skipif(not AVAILABLE, reason=REASON)


@torch.no_grad()
def nats(path: Path, dtype: Any, text: str) -> float:
    """Mean nats of a text's tokens after a line end, by torch in float64 on packed weights."""
    source = read_source(path)
    assert source.text is not None
    vocab = source.text.vocab
    net = source.language_model()
    net.load_state_dict(rounded(net.state_dict(), dtype))
    net = net.double()
    ids = torch.tensor([vocab.eos, *vocab.encode(text.split("\n")).tokens.tolist()[:-1]])
    logits, _ = net.logits(ids[:-1, None], None)
    log_probs = logits[:, 0].log_softmax(-1)
    return -float(log_probs.gather(1, ids[1:, None]).mean())


TEXT = "w1 w0 w3 w2 w0 w1\nw5 w0 w9 w0 w2 nowhere w1 w1 w4\n\nw0 w7"


@pytest.mark.parametrize("kind", LANGUAGE)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_is_written_computes_what_torch_does(
    kind: str, dtype: Any, corpus: Corpus, tmp_path: Path
) -> None:
    path = language_model(kind, corpus, tmp_path / "best.pt", hidden=40)
    result = export(path, format="html", dtype=dtype)
    assert result.verified["log_prob_error"] < (1e-4 if dtype == "float32" else 5e-3)
    header, blob = page.read_page(result.path)
    run = PageRunner(header["shape"], header["tensors"], blob)
    net = read_source(path).language_model()
    net.load_state_dict(rounded(net.state_dict(), dtype))
    tokens = np.random.RandomState(3).randint(0, corpus.vocab.size, (20, 2))
    logits, _ = net.double().logits(torch.from_numpy(tokens), None)
    expected = logits.log_softmax(-1).detach().numpy()
    states = [np.zeros((2, 40), np.float32)] * (len(run(tokens[0], *_zeros(net))) - 1)
    for row, theirs in zip(tokens, expected, strict=True):
        log_probs, *states = run(row, *states)
        np.testing.assert_allclose(log_probs, theirs, atol=1e-5 if dtype == "float32" else 5e-3)


def _zeros(net: Any) -> list[np.ndarray]:
    from rnnnas.exporting.graphs import state_names

    return [np.zeros((2, 40), np.float32) for _ in state_names(net)]


def test_the_page_holds_no_address_and_a_strict_policy(corpus: Corpus, tmp_path: Path) -> None:
    text = export(language_model("gru", corpus, tmp_path / "best.pt"), format="html").path
    source = text.read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', source)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy and "'unsafe-eval'" not in policy
    addresses = set(re.findall(r"https?://[^\s\"'<]+", source))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script[^>]+src=", source) and "@" not in re.sub(
        r"@media|<script.*?</script>", "", source, flags=re.S
    )


def test_a_vocabulary_cannot_end_its_element(home: Path, tmp_path: Path) -> None:
    (home / "nasty.txt").write_text("</script><b> a <!-- b\n" * 900, encoding="utf-8")
    nasty = add_corpus("nasty", home / "nasty.txt", VocabOptions())
    assert isinstance(nasty, Corpus)
    written = export(language_model("gru", nasty, tmp_path / "best.pt"), format="html").path
    header, _ = page.read_page(written)
    assert "</script><b>" in header["tokeniser"]["tokens"]


def test_damaged_weights_are_noticed(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = language_model("derived", corpus, tmp_path / "best.pt")
    put = Packing.put

    def turned(self: Packing, name: str, value: torch.Tensor, packs: bool) -> None:
        put(self, name, value.flip(0) if name == "0.node.1" else value, packs)

    monkeypatch.setattr(Packing, "put", turned)
    with pytest.raises(ExportError, match="differs from torch"):
        export(path, format="html")
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_sums_of_int8_products_fit_int32() -> None:
    for columns in (1, 100, 516, 517, 1700, 40_000):
        limit = int16_limit(columns)
        assert 0 < limit <= 32767 and 127 * limit * columns < 2**31
        assert limit == 32767 or 127 * (limit + 1) * columns >= 2**31 - 1


def test_an_unknown_vocabulary_is_refused_with_a_remedy() -> None:
    vocab = Vocab(words=("<eos>", "a"))
    vocab.kind = "runes"
    with pytest.raises(Exception, match="does not know how to cut text into runes"):
        tokeniser.tables(vocab)


@pytest.mark.parametrize("join", ["mean", "sum"])
def test_edges_of_a_node_are_joined_as_the_reference_does(join: str) -> None:
    cell = CellGene(
        nodes=((Gene("tanh", 0), Gene("relu", 0)), (Gene("sigmoid", 1), Gene("identity", 0))),
        concat=(1, 2), inputs=1, join=join,
    )  # fmt: skip
    draws = torch.Generator().manual_seed(2)
    first, nodes = torch.randn(12, 12, generator=draws), torch.randn(2, 6, 12, generator=draws)
    x, h = torch.randn(2, 3, 6, generator=draws)
    made = Packing("float32")
    for name, weight in (("0.first", first), ("0.node.0", nodes[0]), ("0.node.1", nodes[1])):
        made.put(name, weight.t(), packs=False)
    shape = {"cell": {
        "type": "derived", "join": join, "concat": [1, 2],
        "nodes": [[[gene.op, gene.source] for gene in node] for node in cell.nodes],
    }}  # fmt: skip
    (found,) = PageRunner(shape, made.table, bytes(made.blob))._layer(0, x.numpy(), [h.numpy()])
    expected = step(*(v.double() for v in (x, h, first, nodes)), cell, None, None)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_an_operation_of_a_plug_in_is_refused_with_a_remedy() -> None:
    cell = CellGene(nodes=((Gene("tanh", 0),), (Gene("bump", 0),)), concat=(1, 2))
    with pytest.raises(UsageError, match="no rule for the operation 'bump'") as caught:
        shape_of(SimpleNamespace(cell=cell))  # type: ignore[arg-type]
    assert "--format onnx" in str(caught.value.remedy)


def test_a_page_says_its_test_figure_first(corpus: Corpus, tmp_path: Path) -> None:
    path = language_model("gru", corpus, tmp_path / "best.pt")
    source = read_source(path)
    parameters = f"{source.about['parameters']:,} parameters"
    assert page.headline(source).endswith(parameters)
    source.about["metrics"] |= {"valid_perplexity": 118.478, "test_perplexity": 1125.14}
    assert page.headline(source) == f"test perplexity 1,125.14, {parameters}"
    text = export(path, format="html").path.read_text(encoding="utf-8")
    assert f"{parameters}</p>" in text


def test_kernels_are_small() -> None:
    assert len(kernels()) < 1200 and kernels().startswith(b"\0asm\x01\0\0\0")


@needs_browser
@pytest.mark.parametrize("kind", LANGUAGE)
def test_the_browsers_perplexity_is_torchs(
    kind: str, corpus: Corpus, tmp_path: Path, browser: Browser
) -> None:
    path = language_model(kind, corpus, tmp_path / "best.pt")
    for dtype in ("int8", "float32", "float16") if kind == "derived" else ("int8",):
        browser.console(), browser.requests()
        written = export(path, format="html", dtype=dtype, out=tmp_path / f"{dtype}.html").path
        browser.open(written)
        assert browser.run("return rnnnas.simd && rnnnas.check.good")
        expected = math.exp(nats(path, dtype, TEXT))
        found = browser.run("return rnnnas.perplexity(arguments[0])", TEXT)
        assert found == pytest.approx(expected, rel=5e-5)
        assert browser.console() == []
        assert browser.requests() == [written.resolve().as_uri()]


@needs_browser
def test_without_webassembly_the_page_computes_the_same(
    corpus: Corpus, tmp_path: Path, browser: Browser
) -> None:
    path = language_model("lstm", corpus, tmp_path / "best.pt")
    written = export(path, format="html").path
    (made,) = [browser.command("Page.addScriptToEvaluateOnNewDocument",
                               source="delete window.WebAssembly")["identifier"]]  # fmt: skip
    browser.open(written)
    browser.command("Page.removeScriptToEvaluateOnNewDocument", identifier=made)
    assert browser.run("return rnnnas.simd") is False
    found = browser.run("return rnnnas.perplexity(arguments[0])", TEXT)
    assert found == pytest.approx(math.exp(nats(path, "int8", TEXT)), rel=5e-5)


@needs_browser
def test_typing_clicking_and_writing(corpus: Corpus, tmp_path: Path, browser: Browser) -> None:
    path = language_model("derived", corpus, tmp_path / "best.pt")
    browser.open(export(path, format="html").path)
    done = "return document.getElementById('count').textContent"
    browser.run("const t = document.getElementById('text'); t.value = arguments[0];"
                "t.dispatchEvent(new Event('input'))", TEXT)  # fmt: skip
    expected = math.exp(nats(path, "int8", TEXT))
    _until(browser, done, "20")
    shown = float(browser.run("return document.getElementById('perplexity').textContent"))
    assert shown == pytest.approx(expected, abs=0.006)
    assert browser.run("return document.getElementById('unknown').textContent") == "1"
    # The best next token by torch stands first, and a click adds it.
    word = browser.run("return document.querySelector('#next button span').textContent")
    browser.run("document.querySelector('#next button').click()")
    _until(browser, done, "21")
    text = browser.run("return document.getElementById('text').value")
    assert text == TEXT + ("\n" if word == "\u21b5" else f" {word}")
    browser.run("document.getElementById('write').click()")
    _until(browser, "return document.getElementById('stop').disabled", True)
    _until(browser, done, "51")
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def _until(browser: Browser, script: str, value: object) -> None:
    import time

    for _ in range(300):
        if browser.run(script) == value:
            return
        time.sleep(0.05)
    raise AssertionError(f"{script}: {browser.run(script)!r}, not {value!r}")


@needs_browser
def test_subwords_are_cut_as_sentencepiece_does(
    home: Path, tmp_path: Path, browser: Browser
) -> None:
    (home / "sub.txt").write_text("the cat sat on the mat\nthe dog ate the cat\n" * 80)
    add_corpus("sub", home / "sub.txt", VocabOptions(kind="sentencepiece"))
    sub = open_corpus("sub")
    browser.open(export(language_model("gru", sub, tmp_path / "best.pt"), format="html").path)
    for text in ("the cat sat", "  two  spaces ", "a dog\nthat ate", "Ünïcode 猫 🙂!", ""):
        expected = [int(i) for i in sub.vocab.encode(text.split("\n")).tokens][:-1]
        assert browser.run("return rnnnas.tokens(arguments[0])", text) == expected


@needs_browser
def test_words_at_white_space_are_the_vocabularys(
    home: Path, tmp_path: Path, browser: Browser
) -> None:
    (home / "plain.txt").write_text("the cat <unk> on the mat\nN dogs ate the cat\n" * 400)
    own = add_corpus("plain", home / "plain.txt", VocabOptions(kind="words"))
    assert isinstance(own, Corpus) and not own.vocab.tokenizer
    browser.open(export(language_model("gru", own, tmp_path / "best.pt"), format="html").path)
    for line in ("the  cat", "a <eos> b", "\\<eos> N", "x \ufeff y"):
        expected = [int(i) for i in own.vocab.encode([line]).tokens][:-1]
        assert browser.run("return rnnnas.tokens(arguments[0])", line) == expected
    # A vocabulary that has no <unk> refuses a word that it lacks, as Python does.
    told = browser.run(
        "rnnnas.header.tokeniser.unk = null; try { rnnnas.tokens('dragon'); return ''; }"
        " catch (error) { return error.message; }"
    )
    assert "dragon" in told


@needs_browser
@pytest.mark.parametrize("kind", ["words", "characters", "bytes"])
def test_tokens_and_texts_are_the_vocabularys(
    kind: str, home: Path, tmp_path: Path, browser: Browser
) -> None:
    text = 'The "well-known" cat, said 1,234.5 dogs: don\'t é!\nA mat (of U.S. make).\n' * 300
    (home / "own.txt").write_text(text, encoding="utf-8")
    try:
        options = VocabOptions(kind=kind)
    except UsageError:
        pytest.skip(f"there are no vocabularies of {kind}")
    own = add_corpus(f"own-{kind}", home / "own.txt", options)
    assert isinstance(own, Corpus)
    browser.open(export(language_model("gru", own, tmp_path / "best.pt"), format="html").path)
    for line in ("The cat", "don't (say) é", "mat well-known 1,234.5"):
        expected = [int(i) for i in own.vocab.encode([line]).tokens][:-1]
        assert browser.run("return rnnnas.tokens(arguments[0])", line) == expected
        known = [i for i in expected if i != own.vocab.unk]
        assert browser.run("return rnnnas.decode(arguments[0])", known) == own.vocab.decode(known)
