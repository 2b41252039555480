"""What people call from Python: results as objects, models as modules, errors with a remedy."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import rnnnas
from rnnnas.config.presets import resolve
from rnnnas.config.recipes import Reading, recipe
from rnnnas.data.corpus import Corpus
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.errors import UsageError
from rnnnas.evaluation import language_model
from rnnnas.evaluation.checkpoint_cell import trained_in
from rnnnas.evaluation.image_model import ImageModel
from rnnnas.evaluation.language_model import LanguageModel, draw_token
from rnnnas.evaluation.run import _beside
from rnnnas.lm.fast import cpu_library
from rnnnas.nas import methods
from rnnnas.nas.relax import base
from rnnnas.searching import run as searching
from rnnnas.studies import execute
from rnnnas.studies.local_jobs import LocalRunner
from rnnnas.training import reading
from rnnnas.training import run as training
from rnnnas.training.result import TrainResult
from rnnnas.training.start import read_start

LINES = ["the cat sat on the mat", "a dog ran to the cat", "the dog sat", "a cat ran", ""]
TINY = {
    "preset": "smoke", "epochs": 1, "hidden": 8, "windows": {"streams": 4, "bptt": 5, "limit": 3},
    "valid_streams": 2, "quiet": True, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def corpus(home: Path) -> Corpus:
    text = home / "book.txt"
    text.write_text("\n".join(LINES * 200), encoding="utf-8")
    added = rnnnas.add_corpus("book", text, vocab="words")
    assert isinstance(added, Corpus)
    return added


@pytest.fixture(scope="module")
def trained(corpus: Corpus) -> TrainResult:
    return rnnnas.train(corpus, "sigmoid0 relu1 tanh1", test_streams=2, **TINY)


@pytest.fixture(scope="module")
def lm(trained: TrainResult) -> LanguageModel:
    loaded = rnnnas.load(trained.run)
    assert isinstance(loaded, LanguageModel)
    return loaded


def test_importing_starts_nothing() -> None:
    code = """
import socket, sys, threading
import rnnnas
heavy = [name for name in ("torch", "numpy", "click", "tensorboard", "rich") if name in sys.modules]
assert not heavy and threading.active_count() == 1, heavy
assert {"search", "train", "load"} <= set(dir(rnnnas))
import torch
before = torch.backends.cuda.matmul.allow_tf32, torch.get_num_threads(), torch.get_default_dtype()
rnnnas.search, rnnnas.load
assert before == (
    torch.backends.cuda.matmul.allow_tf32, torch.get_num_threads(), torch.get_default_dtype())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_search_and_a_training_of_what_it_found(corpus: Corpus, home: Path) -> None:
    found = rnnnas.search(corpus, method="darts-1st", seed=3, **TINY)
    assert found.run == home / "checkpoints" / "search-book-darts-1st-s3"
    assert found.genotype == rnnnas.genotype(found.run) == rnnnas.genotype(found.cell)
    assert found._repr_svg_().startswith("<svg") and found.cell in repr(found)
    model = rnnnas.train("book", found, test_streams=2, out=home / "t", **TINY)
    assert model.test_perplexity == model.evaluate("test", quiet=True).perplexity
    assert rnnnas.load(model.checkpoint).genotype == found.genotype


def test_a_finished_run_is_silent_where_it_is_asked_to_be(
    corpus: Corpus, tmp_path: Path, capsys: Any
) -> None:
    for quiet, told in ((True, False), (False, True)):
        for _ in range(2):
            rnnnas.train(corpus, "tanh0", test_streams=2, out=tmp_path / "t",
                         **{**TINY, "quiet": quiet})  # fmt: skip
        assert ("is finished" in capsys.readouterr().err) is told


def test_the_same_call_repeats_its_result(corpus: Corpus, trained: TrainResult) -> None:
    again = rnnnas.train(corpus, "sigmoid0 relu1 tanh1", test_streams=2, **TINY)
    assert again == trained


class Begun(Exception):
    """Carries the settings that a run was begun with."""


def begins(config: Any, *more: Any, **rest: Any) -> None:
    raise Begun(config, rest)


def test_a_training_in_given_minutes_takes_the_sizes_that_fit(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", begins)
    monkeypatch.setattr(
        reading, "reading_of", lambda config, text, device: Reading(config.seconds / 10)
    )
    for minutes in (0.1, 10.0):
        with pytest.raises(Begun) as begun:
            rnnnas.train(corpus, "LSTM", minutes=minutes, quiet=True, device="cpu")
        config = begun.value.args[0]
        assert config.seconds == 60 * minutes
        assert config.model.hidden == recipe("train", Reading(6 * minutes), 60.0)["model"]["hidden"]
    with pytest.raises(Begun) as begun:
        rnnnas.train(corpus, "LSTM", minutes=1, preset="ptb-medium", quiet=True, device="cpu")
    assert begun.value.args[0].model.hidden == 256
    with pytest.raises(rnnnas.UsageError, match="minutes and seconds are one budget"):
        rnnnas.train(corpus, "LSTM", minutes=1, seconds=60.0)


def test_a_search_and_a_study_in_given_minutes(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "search", begins)
    monkeypatch.setattr(execute, "study", begins)
    with pytest.raises(Begun) as begun:
        rnnnas.search(corpus, minutes=11, quiet=True, device="cpu")
    config = begun.value.args[0]
    assert config.seconds == 660.0
    assert config.model.hidden == recipe("search", Reading(), 660.0)["model"]["hidden"]
    with pytest.raises(Begun) as begun:
        rnnnas.study(corpus, preset="study-quick", methods=["random"], minutes=20, quiet=True)
    config, rest = begun.value.args
    assert (config.methods, rest["pace"].seconds) == (("random",), 1200.0)


def test_jobs_of_a_study_know_its_plugins_and_its_home(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "study", begins)
    monkeypatch.setattr("rnnnas.plugins.load.files", lambda: [Path("/mine/ops.py")])
    with pytest.raises(Begun) as begun:
        rnnnas.study(corpus, preset="study-quick", quiet=True)
    assert begun.value.args[1]["more"] == ("--plugin", "/mine/ops.py")
    runner = LocalRunner(Path("/nowhere"), 1, Path("/elsewhere"))
    assert runner._environment["RNNNAS_HOME"] == "/elsewhere"


def test_what_is_given_from_python_counts_as_given(corpus: Corpus) -> None:
    """As `--set` does: a limit takes the place of the steps that a preset means."""

    def made(kind: str, **flags: Any) -> Any:
        given = {"corpus": "book", "seed": 1, **flags}
        if kind == "train":
            given["genotype"] = "LSTM"
        return resolve(kind, preset="quick", file=None, settings=(), flags=given)

    limited = made("train", windows={"limit": 100})
    assert (limited.windows.limit, limited.least_steps) == (100, 0)
    assert made("train", windows={"limit": 100}, seconds=60.0).windows.limit == 100
    assert made("train", seconds=60.0).windows.limit == 0
    with pytest.raises(rnnnas.UsageError, match=r"blackbox.budget has no place"):
        made("search", blackbox={"budget": 4.0}, seconds=60.0)


def test_a_seed_of_0_has_its_own_folder(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Path] = []

    def kept(folder: Path) -> None:
        places.append(folder)
        raise Begun

    monkeypatch.setattr(reading, "kept", kept)
    for seed in (0, None):
        with pytest.raises(Begun):
            rnnnas.train(corpus, "LSTM", seed=seed, minutes=1, quiet=True)
    assert [place.name for place in places] == ["train-book-LSTM-s0", "train-book-LSTM-s1"]


def test_a_home_that_is_told(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(rnnnas.DataError):
        rnnnas.open_corpus("book", home=tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(LINES * 200), encoding="utf-8")
    rnnnas.add_corpus("book", tmp_path / "a.txt", vocab="words", home=tmp_path)
    assert rnnnas.open_corpus("book", home=tmp_path).folder == tmp_path / "corpora" / "book"


# Models


def test_a_model_is_a_module_whose_state_goes_on(lm: LanguageModel) -> None:
    assert isinstance(lm, torch.nn.Module) and sum(1 for _ in lm.parameters()) > 0
    ids = lm.encode("the cat sat on the mat")
    whole, _ = lm(ids)
    first, state = lm(ids[:3])
    rest, state = lm(ids[3:-1], state)
    last, _ = lm.step(ids[-1:], state)
    torch.testing.assert_close(torch.cat([first, rest, last]), whole, rtol=1e-5, atol=1e-6)
    both, _ = lm(torch.stack([ids, ids.flip(0)], dim=1))
    torch.testing.assert_close(both[:, 0], whole, rtol=1e-5, atol=1e-6)


def test_log_probs_are_those_of_the_words_given_those_before(lm: LanguageModel) -> None:
    text = "the dog sat\na cat"
    found = lm.log_probs(text)
    before, state, expected = lm.vocab.eos, None, []
    for word in lm.encode(text).tolist():
        with torch.no_grad():
            logits, state = lm.step(torch.tensor([before]), state)
        scores = logits[0].double()
        expected.append(float(scores[word] - scores.logsumexp(0)))
        before = word
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert lm.perplexity(text) == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-6)
    assert lm.decode(lm.encode(text)) == text + "\n"


def test_a_sample_is_its_pieces_and_never_unknown(lm: LanguageModel) -> None:
    pieces = list(lm.stream("the cat", 30, seed=4))
    assert len(pieces) == 30
    text = lm.sample("the cat", 30, seed=4)
    assert text == "the cat" + "".join(pieces) and "<unk>" not in text
    assert lm.sample("the cat", 200, lines=2, seed=4).count("\n") == 2
    assert rnnnas.sample(lm, "the cat", 30, seed=4) == text


@pytest.mark.parametrize("text", ["Käse 中 €\n", "ä", "a\ufffdb"])
def test_characters_of_several_tokens_come_whole(
    home: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    source = home / "bytes.txt"
    source.write_text("\n".join(LINES * 200), encoding="utf-8")
    rnnnas.add_corpus("bytes", source, vocab="bytes", replace=True)
    made = rnnnas.train("bytes", "GRU", test_streams=2, out=home / "of-bytes", **TINY)
    lm = rnnnas.load(made.run)
    assert isinstance(lm, LanguageModel)
    ids = lm.encode(text)[: None if text.endswith("\n") else -1].tolist()
    left = iter(ids)
    monkeypatch.setattr(language_model, "draw_token", lambda *args, **options: next(left))
    pieces = list(lm.stream("", len(ids)))
    assert "".join(pieces).rstrip("\n") == text.rstrip("\n")


def test_a_folder_for_the_hub_is_a_model_everywhere(lm: LanguageModel, tmp_path: Path) -> None:
    folder = lm.export("hf", out=tmp_path / "my-model").path
    back = rnnnas.load(folder)
    assert isinstance(back, LanguageModel)
    assert back.evaluate("valid").perplexity == lm.evaluate("valid").perplexity
    assert rnnnas.evaluate(folder, "valid").perplexity == lm.evaluate("valid").perplexity
    assert rnnnas.sample(folder, "the cat", 9, seed=4) == lm.sample("the cat", 9, seed=4)
    assert read_start(folder).digest == lm.digest
    assert trained_in(str(folder)) == folder
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert _beside(Path(".")) == folder.with_name("my-model.dynamic.json")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip


def test_draws_keep_to_the_likeliest_tokens() -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    draws = torch.Generator().manual_seed(1)

    def seen(**options: float) -> set[int]:
        return {draw_token(scores, draws, temperature=1.0, **options) for _ in range(300)}  # type: ignore[arg-type]

    assert seen() == {0, 1, 2, 3}
    assert seen(top_k=2) == {0, 1}
    assert seen(top_p=0.5) == {0}  # the likeliest alone has that much
    assert seen(top_p=0.81) == {0, 1, 2}
    counts = [draw_token(scores, draws, temperature=1.0, top_k=2) for _ in range(4000)].count(0)
    assert counts / 4000 == pytest.approx(0.5 / 0.8, abs=0.04)


# Methods of one's own


def test_a_method_is_an_object_too(corpus: Corpus, home: Path) -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class ColdDarts(base.Softmax):
        """A softmax at a temperature of its own."""

        tau: float = 1.0

        def scores(self, alphas: base.Alphas, spaces: base.Spaces) -> dict[str, torch.Tensor]:
            return {n: base.allowed_softmax(alphas[n] / self.tau, s) for n, s in spaces.items()}

    try:
        found = rnnnas.search(corpus, method=ColdDarts(tau=0.25), out=home / "cold", **TINY)
        assert (found.run / "config.json").read_text(encoding="utf-8").count('"tau": 0.25') == 1
        assert methods.method_of("cold-darts").relaxation is ColdDarts
        with pytest.raises(rnnnas.UsageError, match="tua"):
            rnnnas.search(corpus, method="cold-darts", relax={"tua": 1.0}, **TINY)
    finally:
        methods.METHODS.pop("cold-darts", None)


# Errors


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: rnnnas.search("book", epohcs=2), rnnnas.UsageError, "epochs"),
        (lambda: rnnnas.search("book", hidden="x"), rnnnas.UsageError, "model.hidden"),
        (lambda: rnnnas.search("book", method="drats"), rnnnas.UsageError, "drnas"),
        (lambda: rnnnas.search("book", method=3), rnnnas.UsageError, "no search method"),
        (lambda: rnnnas.search("bok"), rnnnas.DataError, "book"),
        (lambda: rnnnas.search(3), rnnnas.UsageError, "no corpus"),  # type: ignore[arg-type]
        (lambda: rnnnas.train("book"), rnnnas.UsageError, "genotype"),
        (lambda: rnnnas.train("book", 3), rnnnas.UsageError, "no genotype"),  # type: ignore[arg-type]
        (lambda: rnnnas.train("book", "DARTS_V9"), rnnnas.UsageError, "DARTS_V2"),
        (lambda: rnnnas.load("nowhere"), rnnnas.CheckpointError, "nowhere"),
        (lambda: rnnnas.evaluate(3), rnnnas.UsageError, "no trained model"),  # type: ignore[arg-type]
        (lambda: rnnnas.show("DARTS_V2", "png"), rnnnas.UsageError, "svg"),
        (lambda: rnnnas.search("book", device="tpu"), rnnnas.UsageError, "tpu"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_told_as_a_wrong_flag(
    corpus: Corpus, call: object, kind: type[rnnnas.RnnnasError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    assert words in f"{caught.value} {caught.value.remedy}"


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"temperature": "hot"}, {"top_p": 0}, {"top_k": 1.5},
                {"tokens": 0}, {"lines": True}],
)  # fmt: skip
def test_options_of_a_sample_are_checked_before_it_begins(
    lm: LanguageModel, options: dict[str, object]
) -> None:
    with pytest.raises(rnnnas.UsageError, match=str(next(iter(options)))):
        lm.sample("the", **{"tokens": 5, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ids", [torch.zeros(2, 2, 2, dtype=torch.int64), torch.zeros(3), torch.tensor([9999])]
)
def test_ids_of_the_wrong_kind_are_refused(lm: LanguageModel, ids: torch.Tensor) -> None:
    with pytest.raises(rnnnas.UsageError):
        lm(ids)


# Images


def test_an_image_model_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    for name, colour in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
        folder = tmp_path / "set" / name
        folder.mkdir(parents=True)
        for k in range(30):
            Image.new("RGB", (8, 8), tuple(min(255, c + k) for c in colour)).save(
                folder / f"{k}.png"
            )
    corpus = rnnnas.add_corpus("colours", tmp_path / "set")
    result = rnnnas.train(
        corpus, "random:1", preset="cifar10-quick", epochs=6, quiet=True, device="cpu",
        model={"channels": 4, "layers": 2, "nodes": 2}, batches={"size": 8},
        augment={"crop_padding": 0}, weights={"lr": 0.02},
    )  # fmt: skip
    model = rnnnas.load(result.run)
    assert isinstance(model, ImageModel) and set(model.classes) == {"red", "blue"}
    assert model.evaluate().accuracy == result.test_accuracy
    path = tmp_path / "set" / "red" / "3.png"
    one = model.predict(path)
    several = model.predict([path, Image.open(path)])
    # Convolutions may round an image differently by its place among others.
    for again in several:
        assert [p.label for p in again] == [p.label for p in one]
        known = [p.probability for p in one]
        assert [p.probability for p in again] == pytest.approx(known, rel=1e-5)
    assert sum(p.probability for p in one) == pytest.approx(1)  # type: ignore[union-attr]
    with pytest.raises(rnnnas.DataError):
        model.predict(tmp_path / "none.png")
    with torch.no_grad():
        next(model.parameters()).mul_(3.0)
    for taken in (model.evaluate, lambda: rnnnas.evaluate(model), lambda: model.export("onnx")):
        with pytest.raises(UsageError, match="weights were changed"):
            taken()


def test_a_line_says_that_there_are_no_kernels(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(cpu_library, "built", lambda: cpu_library.Built(None, "no compiler"))
    loud = {**TINY, "quiet": False}
    rnnnas.train(corpus, "sigmoid0 relu1 tanh1", test_streams=2, out=tmp_path / "t", **loud)
    assert "note: without compiled kernels, hence slower: no compiler\n" in capsys.readouterr().err
    rnnnas.search(corpus, method="darts-1st", out=tmp_path / "s", **loud)
    assert "note: without compiled kernels, hence slower: no compiler\n" in capsys.readouterr().err
    rnnnas.train(corpus, "sigmoid0 relu1 tanh1", test_streams=2, out=tmp_path / "q", **TINY)
    assert "kernels" not in capsys.readouterr().err


def test_a_model_that_was_changed_is_not_evaluated_by_its_file(
    trained: TrainResult, tmp_path: Path
) -> None:
    model = rnnnas.load(trained.run)
    assert isinstance(model, LanguageModel)
    assert model.evaluate("test").perplexity == trained.test_perplexity
    with torch.no_grad():
        next(model.parameters()).mul_(3.0)
    for taken in (
        lambda: model.evaluate("test"), lambda: rnnnas.evaluate(model),
        lambda: rnnnas.load(trained.run).export("pt2") and model.export("pt2", out=tmp_path / "m"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="weights were changed"):
            taken()
    assert math.isfinite(model.perplexity("the cat"))


def test_a_model_whose_file_was_replaced_is_not_evaluated_by_it(
    trained: TrainResult, corpus: Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(trained.checkpoint.read_bytes())
    model = rnnnas.load(path)
    assert isinstance(model, LanguageModel)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # by which sums differ, and weights do not
    try:
        assert model.evaluate("test").perplexity == trained.test_perplexity
    finally:
        torch.set_num_threads(threads)
    other = rnnnas.train(corpus, "LSTM", out=tmp_path / "l", test_streams=2, **TINY)
    path.write_bytes(other.checkpoint.read_bytes())
    with pytest.raises(UsageError, match="was replaced"):
        model.evaluate("test")


def test_dynamic_evaluation_needs_no_gradients_of_its_caller(lm: LanguageModel) -> None:
    with torch.no_grad():
        found = rnnnas.evaluate(lm.path, dynamic=True, quiet=True, **{"dynamic.lr": 1e-3})
    assert math.isfinite(found.perplexity or math.inf)


def test_every_way_to_evaluate_takes_the_same(trained: TrainResult, lm: LanguageModel) -> None:
    asked: dict[str, Any] = {"corpus": "book", "dynamic": True, "dynamic.lr": 1e-3, "quiet": True}
    expected = rnnnas.evaluate(trained, **asked)
    assert trained.evaluate(**asked) == lm.evaluate(**asked) == expected
    for evaluate in (trained.evaluate, lm.evaluate, lambda **more: rnnnas.evaluate(lm, **more)):
        with pytest.raises(UsageError, match="is no corpus"):
            evaluate(corpus=Path("corpora/book"))
        with pytest.raises(UsageError, match="no argument"):
            evaluate(**{"dynamics.lr": 1.0})
    images = object.__new__(ImageCorpus)
    object.__setattr__(images, "name", "squares")
    with pytest.raises(UsageError, match="squares is a set of images"):
        lm.evaluate(corpus=images)


def test_a_corpus_of_another_home_is_evaluated(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("\n".join(LINES * 200), encoding="utf-8")
    mine = rnnnas.add_corpus("elsewhere", text, vocab="words", home=tmp_path / "home")
    result = rnnnas.train(mine, "tanh0", test_streams=2, out=tmp_path / "t", **TINY)
    assert result.evaluate("test").perplexity == result.test_perplexity
    assert rnnnas.evaluate(result, "test").perplexity == result.test_perplexity
    model = rnnnas.load(result.run)
    assert model.evaluate("test", corpus=mine).perplexity == result.test_perplexity
    with pytest.raises(rnnnas.RnnnasError, match="elsewhere"):
        model.evaluate("test")


def test_an_evaluation_takes_what_the_command_takes(lm: LanguageModel, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_bytes("the cat sat\n".encode("utf-16"))
    found = rnnnas.evaluate(lm.path, text=str(text), encoding="utf-16")
    assert found.perplexity == lm.evaluate(text=str(text), encoding="utf-16").perplexity
    adapted = rnnnas.evaluate(lm.path, dynamic=True, quiet=True, **{"dynamic.lr": 1e-3})
    assert adapted["dynamic"]["lr"] == 1e-3
    for wrong in ({"dynamic.lr": 1e-3}, {"dynamic": True, "lr": 1e-3}):
        with pytest.raises(UsageError):
            rnnnas.evaluate(lm.path, **wrong)  # type: ignore[arg-type]


def test_a_line_end_begins_no_line_of_its_own(lm: LanguageModel, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("the cat sat\na dog ran\n", encoding="utf-8")
    found = lm.log_probs(text.read_text())
    assert len(found) == 8 and torch.equal(found, lm.log_probs("the cat sat\na dog ran"))


def test_a_checkpoint_is_a_genotype_too(
    trained: TrainResult, corpus: Corpus, tmp_path: Path
) -> None:
    wanted = rnnnas.genotype("sigmoid0 relu1 tanh1")
    assert rnnnas.genotype(trained.checkpoint) == wanted == rnnnas.genotype(trained.run)
    lstm = rnnnas.train(corpus, "LSTM", out=tmp_path / "l", test_streams=2, **TINY)
    with pytest.raises(UsageError, match="LSTM of one layer"):
        rnnnas.genotype(lstm.run)


def test_settings_without_effect_are_told_from_python(
    corpus: Corpus, tmp_path: Path, capsys: Any
) -> None:
    loud = {**TINY, "quiet": False, "out": tmp_path / "t", "test_streams": 2}
    rnnnas.train(corpus, "LSTM", **{**loud, "noise.dropoutx": 0.5})
    told = capsys.readouterr().err
    assert "warning: noise.dropoutx has no effect on this training" in told
    assert told.count("no effect") == 1


def test_a_study_needs_a_job_at_a_time(corpus: Corpus) -> None:
    for jobs in (0, -1):
        with pytest.raises(UsageError, match="jobs"):
            rnnnas.study(corpus, preset="study-smoke", jobs=jobs)


def test_a_model_leaves_and_comes_back(trained: TrainResult, tmp_path: Path) -> None:
    lm = rnnnas.load(trained.run)
    written = lm.export("hf", out=tmp_path / "hub")
    back = rnnnas.load(tmp_path / "hub")
    assert isinstance(back, LanguageModel) and back.digest == trained.digest == written.digest
    assert back.perplexity("the cat sat") == pytest.approx(
        trained.load().perplexity("the cat sat"),
        rel=1e-6,  # type: ignore[union-attr]
    )
    assert trained.sample("the", 5, seed=2) == lm.sample("the", 5, seed=2)  # type: ignore[union-attr]


def test_a_study_from_a_file(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "study", begins)
    file = tmp_path / "mine.toml"
    file.write_text(
        'extends = "study-quick"\n[study]\nmethods = ["gdas@warm"]\nretries = 3\n'
        '[study.own."gdas@warm".alphas]\nwarmup = 0.5\n'
    )
    with pytest.raises(Begun) as begun:
        rnnnas.study(corpus, config=file, seeds=2, quiet=True)
    config = begun.value.args[0]
    assert (config.methods, config.seeds, config.retries) == (("gdas@warm",), (1, 2), 3)
    with pytest.raises(rnnnas.UsageError, match="int is no corpus"):
        rnnnas.study(3, quiet=True)  # type: ignore[arg-type]
