"""Exports against torch: ONNX, torch.export, the hub's layout, what they say, what they refuse."""

from __future__ import annotations

import dataclasses
import errno
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sample_models import LANGUAGE, language_model
from tiny_home import corpus, home

from rnnnas.cli import main
from rnnnas.config.plain import to_plain
from rnnnas.config.presets import resolve
from rnnnas.data.text_corpus import Corpus
from rnnnas.errors import CheckpointError, DiskError, RnnnasError, UsageError
from rnnnas.exporting import graphs, onnx_file, packing, run, source, verify
from rnnnas.exporting.run import export
from rnnnas.exporting.source import ExportError, read_source
from rnnnas.runs import hub_folder
from rnnnas.runs.checkpoint import content_digest, load_content

__all__ = ["corpus", "home"]  # fixtures

# Exporting loads some hundred operators: the kinds that differ most run always.
SOME = ["derived", pytest.param("lstm", marks=pytest.mark.slow)]
SOME += [pytest.param(kind, marks=pytest.mark.slow) for kind in LANGUAGE if kind not in SOME]

needs_onnx = pytest.mark.skipif(
    any(
        onnx_file.importlib.util.find_spec(n) is None for n in ("onnx", "onnxscript", "onnxruntime")
    ),
    reason="needs onnx, onnxscript and onnxruntime: pip install 'rnnnas[export]'",
)


def scores(path: Path, tokens: np.ndarray) -> np.ndarray:
    """log p of each next token of one stream, by the network's own path, in float64."""
    source = read_source(path)
    assert source.text is not None
    net = source.text.net.double()
    logits, _ = net.logits(torch.from_numpy(tokens)[:, None], None)
    return np.asarray(logits[:, 0].log_softmax(-1).detach().numpy())


@needs_onnx
@pytest.mark.parametrize("kind", SOME)
def test_onnx_gives_the_log_probabilities_of_torch(
    kind: str, corpus: Corpus, tmp_path: Path
) -> None:
    path = language_model(kind, corpus, tmp_path / "best.pt")
    result = export(path, format="onnx")
    assert result.path == tmp_path / "model.onnx"
    assert result.bytes == result.path.stat().st_size
    assert result.verified["batches"] == [1, 3] and result.verified["tokens"] > 200
    tokens = np.random.RandomState(1).randint(0, corpus.vocab.size, 30)
    step = onnx_file.OnnxRunner(result.path)
    states = [np.zeros((1, 36), np.float32) for _ in step.inputs[1:]]
    for token, expected in zip(tokens, scores(path, tokens), strict=True):
        log_probs, *states = step(np.array([token]), *states)
        np.testing.assert_allclose(log_probs[0], expected, atol=2e-5)
    about = step.session.get_modelmeta().custom_metadata_map
    assert about["digest"] == content_digest(load_content(path))
    assert json.loads(about["vocabulary"]) == corpus.vocab.to_plain()


@needs_onnx
def test_a_chunk_is_scanned_as_its_steps(corpus: Corpus, tmp_path: Path) -> None:
    path = language_model("derived", corpus, tmp_path / "best.pt")
    result = export(path, format="onnx", chunk=7, dtype="int8")
    chunk = onnx_file.OnnxRunner(result.path)
    tokens = np.random.RandomState(2).randint(0, corpus.vocab.size, (11, 2))  # any length
    log_probs, state = chunk(tokens, np.zeros((2, 36), np.float32))
    assert log_probs.shape == (11, 2, corpus.vocab.size)
    net = read_source(path).language_model()
    net.load_state_dict(packing.rounded(net.state_dict(), "int8"))
    expected, hidden_state = net.logits(torch.from_numpy(tokens), None)
    np.testing.assert_allclose(log_probs, expected.log_softmax(-1).detach(), atol=2e-5)
    np.testing.assert_allclose(state, hidden_state.detach(), atol=2e-5)


def test_pt2_files_run_without_rnnnas(corpus: Corpus, tmp_path: Path) -> None:
    path = language_model("derived", corpus, tmp_path / "best.pt")
    result = export(path, format="pt2", out=tmp_path / "deep" / "m.pt2")
    module = torch.export.load(result.path).module()
    tokens = np.arange(6) % corpus.vocab.size
    state = torch.zeros(1, 36)
    for token, expected in zip(tokens, scores(path, tokens), strict=True):
        log_probs, state = module(torch.tensor([token]), state)
        np.testing.assert_allclose(log_probs[0].detach(), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_hub_folder_is_read_back(dtype: Any, corpus: Corpus, tmp_path: Path) -> None:
    path = language_model("layers", corpus, tmp_path / "best.pt")
    result = export(path, format="hf", dtype=dtype)
    assert sorted(p.name for p in result.path.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    back = hub_folder.read_folder(result.path)
    same = content_digest(back) == content_digest(load_content(path))
    assert same == (dtype == "float32")
    card = (result.path / "README.md").read_text(encoding="utf-8")
    assert result.digest in card and "rnnnas train --corpus tiny" in card
    again = export(result.path, format="hf", out=tmp_path / "again")  # from a folder, too
    assert (again.digest == result.digest) == (dtype == "float32")


def test_a_changed_hub_folder_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    folder = export(language_model("gru", corpus, tmp_path / "best.pt"), format="hf").path
    weights, config = folder / hub_folder.WEIGHTS, folder / hub_folder.CONFIG
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="bytes have changed"):
        hub_folder.read_folder(folder)
    weights.write_bytes(whole)
    config.write_text(config.read_text().replace('"step": 5', '"step": 6'))
    with pytest.raises(CheckpointError, match="changed since it was written"):
        hub_folder.read_folder(folder)


def test_only_an_export_is_replaced(corpus: Corpus, tmp_path: Path) -> None:
    path = language_model("gru", corpus, tmp_path / "best.pt")
    other = tmp_path / "gpt2"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    (other / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UsageError, match="holds other files"):
        export(path, format="hf", out=other)
    own = export(path, format="hf", out=tmp_path / "own").path
    (own / ".git").mkdir()
    with pytest.raises(UsageError, match="holds other files"):
        export(path, format="hf", out=own)
    (own / ".git").rmdir()
    assert export(path, format="hf", out=own).path == own
    assert (other / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("chunk", [35, 64])
def test_both_sides_of_a_chunk_score_the_same_targets(
    chunk: int, corpus: Corpus, tmp_path: Path
) -> None:
    """In float32 both perplexities are one, whether or not the text is a multiple of T."""
    path = language_model("derived", corpus, tmp_path / "best.pt")
    told = export(path, format="pt2", chunk=chunk).verified
    assert told["tokens"] % chunk == 0 and abs(told["perplexity_change"]) < 1e-5


def test_a_full_disk_is_told_as_one(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = language_model("gru", corpus, tmp_path / "best.pt")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskError, match="No space left"):
        export(path, format="pt2", out=tmp_path / "m.pt2")


def test_the_folder_that_one_is_in_is_not_replaced(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = language_model("gru", corpus, tmp_path / "best.pt")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="folder that you are in"):
        export(path, format="hf", out=".")


def test_a_chunk_may_be_longer_than_the_text(corpus: Corpus, tmp_path: Path) -> None:
    path = language_model("gru", corpus, tmp_path / "best.pt")
    assert len(corpus.splits["test"]) < 3 * 900
    result = export(path, format="onnx", chunk=900)
    assert result.verified["tokens"] >= 900 and result.verified["log_prob_error"] < 1e-4


@pytest.mark.parametrize("more", [{}, {"seconds": 600.0, "epochs": 7}, {"start": "d1" * 32}])
def test_the_command_that_is_told_repeats_the_training(more: dict[str, Any]) -> None:
    flags = {"corpus": "tiny", "genotype": "LSTM", "seed": 4}
    config = resolve("train", preset="quick", file=None, settings=["model.hidden=33"], flags=flags)
    plain = to_plain(dataclasses.replace(config, **more))
    told = source._command({"kind": "recurrent", "config": plain, "genotype": {}})
    if "start" in more:  # known by its digest alone
        assert told == ""
        return
    words = shlex.split(told)
    older = {key: value for key, value in plain.items() if key != "output_bias"}
    began = shlex.split(source._command({"kind": "recurrent", "config": older, "genotype": {}}))
    assert 'output_bias="zeros"' in began  # what runs did before there was a choice
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    again = resolve("train", preset=words[words.index("--preset") + 1], file=None, settings=sets,
                    flags={**flags, "seed": int(words[words.index("--seed") + 1])})  # fmt: skip
    wanted = dataclasses.replace(config, **more)
    if "seconds" in more:  # which takes the place of epochs
        again = dataclasses.replace(again, epochs=wanted.epochs, least_steps=wanted.least_steps)
    assert again == wanted


def test_a_row_is_one_output(corpus: Corpus, tmp_path: Path) -> None:
    """int8: every output's largest weight keeps its value, and none is off by more than half a
    step of its own row.
    """
    net = read_source(language_model("softmaxes", corpus, tmp_path / "best.pt")).language_model()
    for name, value in net.state_dict().items():
        if not packing.packs(name, value):
            continue
        quantised, scale = packing.to_int8(name, value)
        right = name.rpartition(".")[2] in ("first", "nodes", "projections")
        outputs = value.transpose(-1, -2) if right else value
        steps = outputs.abs().amax(-1) / 127
        torch.testing.assert_close(scale.flatten(), steps.flatten())
        widened = quantised.float() * scale
        assert ((widened - value).abs() <= scale / 2 * 1.001).all()


def test_what_differs_is_refused_and_nothing_is_left(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = language_model("derived", corpus, tmp_path / "best.pt")
    kept = tmp_path / "model.pt2"
    kept.write_bytes(b"of before")

    class Wrong(graphs.Step):
        def forward(self, tokens: torch.Tensor, *states: torch.Tensor) -> Any:
            log_probs, *after = super().forward(tokens, *states)
            return (log_probs + 1e-3, *after)

    monkeypatch.setattr(run, "Step", Wrong)
    ended = CliRunner().invoke(main, ["export", str(path), "--format", "pt2"])
    assert ended.exit_code == 1 and "differs from torch by 0.001" in ended.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "model.pt2"]
    assert kept.read_bytes() == b"of before"


def test_too_coarse_weights_are_refused(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = language_model("derived", corpus, tmp_path / "best.pt")
    monkeypatch.setitem(verify.WORSE, "int8", -1.0)
    with pytest.raises(ExportError, match="int8 changes the perplexity"):
        export(path, format="html", dtype="int8")


def test_without_its_corpus_a_model_is_verified_on_its_own_text(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = language_model("gru", corpus, tmp_path / "best.pt")
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    result = export(path, format="hf")
    assert "wrote itself" in result.verified["text"] and result.verified["tokens"] == 1000


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"format": "tflite"}, "not known"),
        ({"format": "html", "opset": 18}, "--opset is for"),
        ({"format": "html", "chunk": 3}, "--chunk is for"),
        ({"format": "hf", "dtype": "int8"}, "not int8"),
        ({"format": "pt2", "dtype": "int4"}, "not known"),
        ({"format": "pt2", "chunk": 0}, "must lie between"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=cause):
        export(tmp_path / "best.pt", **options)


def test_a_folder_of_other_files_is_not_overwritten(corpus: Corpus, tmp_path: Path) -> None:
    path = language_model("gru", corpus, tmp_path / "best.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(RnnnasError, match="holds other files"):
        export(path, format="hf", out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_the_command_repeats_the_training(corpus: Corpus, tmp_path: Path) -> None:
    command = read_source(language_model("layers", corpus, tmp_path / "best.pt")).about["command"]
    assert command.startswith("rnnnas train --corpus tiny --genotype ")
    assert command.endswith("--preset smoke --set model.hidden=36 --set model.layers=2")


def test_the_command_line_prints_json(corpus: Corpus, tmp_path: Path) -> None:
    path = language_model("gru", corpus, tmp_path / "best.pt")
    ended = CliRunner().invoke(main, ["export", str(path), "--format", "hf", "--json"])
    assert ended.exit_code == 0, ended.output
    plain = json.loads(ended.output)
    assert plain["format"] == "hf" and plain["verified"]["log_prob_error"] == 0
    assert plain["verified"]["perplexity"] == pytest.approx(plain["verified"]["torch_perplexity"])
