"""Checkpoints of small untrained models of every kind, for tests of what is done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rnnnas.cnn.dense.network import derived_network
from rnnnas.config.plain import to_plain
from rnnnas.config.presets import resolve
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.data.text_corpus import Corpus
from rnnnas.lm.model import RecurrentLM
from rnnnas.runs.checkpoint import save_content

CELL = "tanh0 relu1 sigmoid1 identity2 concat 2,3,4"
EDGES = {
    "recurrent": {
        "nodes": [[["tanh", 0]], [["relu", 0], ["sigmoid", 1]], [["identity", 2], ["tanh", 1]]],
        "concat": [2, 3],
        "inputs": 1,
    }
}
# Kinds of language models: genotype and settings.
LANGUAGE = {
    "derived": (CELL, []),
    "layers": (CELL, ["model.layers=2"]),
    "lstm": ("LSTM", ["model.layers=2"]),
    "gru": ("GRU", []),
    "softmaxes": (CELL, ["model.softmaxes=3"]),
    "edges": (EDGES, []),
}  # fmt: skip
DENSE = {
    "stem_w6_s1": {"nodes": [[["conv_3x3", 0]]], "concat": [1]},
    "block1_w8_s2": {
        "nodes": [[["mbconv_3x3_e2", 0]], [["mbconv_5x5_e1", 1]]], "concat": [2]
    },
    "end_w12_s1": {"nodes": [[["conv_1x1", 0]]], "concat": [1]},
}  # fmt: skip
IMAGE = {
    "DARTS_V2": ("image:DARTS_V2", ["model.channels=4", "model.layers=3"]),
    "AmoebaNet": ("image:AmoebaNet", ["model.channels=4", "model.layers=3"]),
    "large": (
        "image:DARTS_V1", ["model.channels=4", "model.layers=2", "model.stem=imagenet"]
    ),
    "dense": (DENSE, []),
}  # fmt: skip


def language_model(kind: str, corpus: Corpus, path: Path, hidden: int = 36) -> Path:
    """A best.pt of an untrained language model on a corpus; weights large enough to matter."""
    genotype, settings = LANGUAGE[kind]
    config = resolve(
        "train", preset="smoke", file=None, settings=[*settings, f"model.hidden={hidden}"],
        flags={"corpus": corpus.name, "genotype": genotype},
    )  # fmt: skip
    draws = torch.Generator().manual_seed(5)
    net = RecurrentLM(
        config.model, corpus.vocab.size, config.network, noise=config.noise,
        penalty=config.penalty, generator=draws,
    )  # fmt: skip
    weights = {
        name: w + 0.25 * (36 / hidden) ** 0.5 * torch.randn(w.shape, generator=draws)
        for name, w in net.state_dict().items()
    }
    described = {"vocabulary": corpus.vocab.to_plain()}
    return _saved(path, "recurrent", config, corpus, weights, described)


def image_network(kind: str, corpus: ImageCorpus, path: Path) -> Path:
    """A best.pt of an untrained image network, its running statistics random, too."""
    genotype, settings = IMAGE[kind]
    config = resolve(
        "image-train", preset="cifar10-quick", file=None, settings=settings,
        flags={"corpus": corpus.name, "genotype": genotype},
    )  # fmt: skip
    draws = torch.Generator().manual_seed(5)
    net = derived_network(config.model, config.network, len(corpus.classes), draws)
    weights = {
        name: w + 0.3 * torch.rand(w.shape, generator=draws) for name, w in net.state_dict().items()
    }
    described = {
        "classes": list(corpus.classes), "mean": list(corpus.mean), "std": list(corpus.std),
        "size": list(corpus.size),
    }  # fmt: skip
    return _saved(path, "convolutional", config, corpus, weights, described)


def _saved(
    path: Path, kind: str, config: Any, corpus: Any, weights: Any, described: dict[str, Any]
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "kind": kind, "config": to_plain(config), "genotype": config.genotype, **described,
        "corpus": {"name": corpus.name, "sha256": corpus.sha256}, "weights": weights,
        "metrics": {"epoch": 1, "step": 5, "valid_perplexity": 99.5},
    }  # fmt: skip
    save_content(path, content)
    return path
