"""The model that is exported: read from a checkpoint or a hub folder, with where it comes from."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import rnnnas
from rnnnas.cnn.dense.network import DenseNet, derived_network
from rnnnas.cnn.model import ConvNet
from rnnnas.config.plain import to_plain
from rnnnas.config.presets import preset_names, preset_tables, resolve
from rnnnas.config.text import BY_BUDGET
from rnnnas.errors import RnnnasError
from rnnnas.evaluation.images import Classifier, is_classifier
from rnnnas.evaluation.images import rebuild as rebuild_images
from rnnnas.evaluation.run import Loaded, refuse_search
from rnnnas.evaluation.run import rebuild_language_model as rebuild_text
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas.genotype import Genotype
from rnnnas.runs.checkpoint import content_digest
from rnnnas.runs.differences import completed
from rnnnas.runs.hub_folder import model_path, trained_content
from rnnnas.runs.sealed import read_result

CPU = torch.device("cpu")


class ExportError(RnnnasError):
    """An exported file that does not compute what the model computes; nothing is left of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model to export.

    path: the checkpoint or hub folder. content: as `load_content` gives it. digest: of it. text:
    the language model, or None. images: the image network, or None. name: of the cell and the
    corpus, for titles. about: where it comes from, plain values; see `about_content`.
    """

    path: Path
    content: dict[str, Any]
    digest: str
    text: Loaded | None
    images: Classifier | None
    name: str
    about: dict[str, Any]

    @property
    def genotype(self) -> Genotype | None:
        """The cells; None of an LSTM or a GRU."""
        plain = self.content["genotype"]
        return Genotype.from_plain(plain) if plain else None

    def language_model(self) -> RecurrentLM:
        """The network on its reference path, which exporters can follow.

        The fast path is made of custom functions, which they refuse.
        """
        assert self.text is not None
        config, vocab = self.text.config, self.text.vocab
        sizes = replace(config.model, path="reference", precision="float32")
        net = RecurrentLM(
            sizes, vocab.size, config.network, noise=config.noise, penalty=config.penalty,
            generator=torch.Generator(),
        )  # fmt: skip
        net.load_state_dict(self.text.net.state_dict())
        return net.eval()

    def image_network(self) -> ConvNet | DenseNet:
        """The network on its reference path: the fast one splits large batches by their size."""
        assert self.images is not None
        config = self.images.config
        sizes = replace(config.model, path="reference", precision="float32")
        count = len(self.images.classes)
        net = derived_network(sizes, config.network, count, torch.Generator())
        net.load_state_dict(self.images.net.state_dict())
        return net.eval()


def read_source(checkpoint: Path) -> Source:
    """The model of a best.pt, of the run folder that holds it, or of a hub folder.

    Raises:
        CheckpointError: where it is missing, damaged or no trained model.
    """
    path = model_path(checkpoint)
    refuse_search(path)
    content = trained_content(path)
    text = images = None
    if is_classifier(content):
        images = rebuild_images(content, path, CPU)
    else:
        text = rebuild_text(content, path, CPU)
    about = about_content(content, path)
    name = f"{about['cell']} on {about['corpus']}"
    return Source(
        path=path,
        content=content,
        digest=about["digest"],
        text=text,
        images=images,
        name=name,
        about=about,
    )


def about_content(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Where a model comes from: cell (a published name, or the kind), genotype (its text or JSON,
    "" of an LSTM or GRU), corpus, corpus_sha256, digest, parameters, metrics (of best.pt, and the
    test figures of the run's result where it lies beside `path`), command and version.
    """
    digest = content_digest(content)
    weights = content["weights"].values()
    plain = content["genotype"]
    genotype = Genotype.from_plain(plain) if plain else None
    metrics = dict(content["metrics"]) | _result(path, digest)
    return {
        "cell": _cell_name(content, genotype),
        "genotype": _genotype_text(genotype),
        "corpus": content["corpus"]["name"],
        "corpus_sha256": content["corpus"]["sha256"],
        "digest": digest,
        "parameters": sum(w.numel() for w in weights),
        "metrics": metrics,
        "command": _command(content),
        "version": rnnnas.__version__,
    }


def _genotype_text(genotype: Genotype | None) -> str:
    if genotype is None:
        return ""
    try:
        return genotype.to_text()
    except RnnnasError:
        return json.dumps(genotype.to_plain())


def _cell_name(content: Mapping[str, Any], genotype: Genotype | None) -> str:
    from rnnnas.cnn import zoo as images
    from rnnnas.cnn.dense.genotype import is_dense
    from rnnnas.nas.zoo import ZOO

    if genotype is None:
        return str(content["config"]["cell"]).upper()
    for zoo in (ZOO, images.ZOO):
        for name, known in zoo.items():
            if known.genotype == genotype:
                return str(name)
    return "A network of dense blocks" if is_dense(genotype.cells) else "A found cell"


def _result(path: Path, digest: str) -> dict[str, Any]:
    """The test figures in result.json of the run's folder, where it is this checkpoint's."""
    try:
        stored = read_result(path.parent)
    except RnnnasError:
        return {}  # of another tool, or damaged: the checkpoint is whole without it
    if not isinstance(stored, Mapping) or stored.get("digest") != digest:
        return {}
    found = {key: stored.get(key) for key in ("test_perplexity", "test_accuracy")}
    return {k: v for k, v in found.items() if isinstance(v, float) and math.isfinite(v)}


def _command(content: Mapping[str, Any]) -> str:
    """A command that repeats the training: the nearest preset, and what differs from it.

    "" where none does: the weights that a training went on from are known by their digest alone.
    """
    config = completed(content["config"])
    if config.get("start"):
        return ""
    kind = "image-train" if is_classifier(content) else "train"
    cell = config.get("cell", "derived")
    genotype = cell.upper() if cell != "derived" else _short(content)
    flags = {"corpus": config["corpus"], "genotype": config["genotype"] or genotype}
    best: tuple[str, list[str]] | None = None
    for preset in preset_names():
        if kind not in preset_tables(preset):
            continue
        try:
            there = to_plain(resolve(kind, preset=preset, file=None, settings=(), flags=flags))
            settings = _changes(config, there)
            reached = resolve(kind, preset=preset, file=None, settings=settings, flags=flags)
        except RnnnasError:
            continue  # a preset for other networks than this one
        again = not _changes(config, to_plain(reached))
        if again and (best is None or len(settings) < len(best[1])):
            best = preset, settings
    if best is None:
        return ""
    words = ["rnnnas", "train", "--corpus", str(config["corpus"]), "--genotype", genotype]
    words += ["--preset", best[0]]
    for setting in best[1]:
        key, _, value = setting.partition("=")
        words += ["--seed", value] if key == "seed" else ["--set", setting]
    return shlex.join(words)


def _short(content: Mapping[str, Any]) -> str:
    """A genotype as `--genotype` takes it: a published name, a cell's text, or a file's name."""
    genotype = Genotype.from_plain(content["genotype"])
    name = _cell_name(content, genotype)
    if " " not in name:
        return f"image:{name}" if is_classifier(content) else name
    text = _genotype_text(genotype)
    return "genotype.json" if text.startswith("{") else text


def _changes(here: Mapping[str, Any], there: Mapping[str, Any], prefix: str = "") -> list[str]:
    """'key=value' of every setting that differs, by dotted key; the genotype is given elsewhere,
    and a time stands for a number of epochs.
    """
    out = []
    for key, value in here.items():
        other = there.get(key)
        if key not in there or key in ("genotype", "cell", "corpus") and not prefix:
            continue
        if key in BY_BUDGET and not prefix and here.get("seconds"):
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            out += _changes(value, other, f"{prefix}{key}.")
        elif value != other:
            out.append(f"{prefix}{key}={json.dumps(value)}")
    return out
