"""A corpus of coloured squares, whose class is the colour, and runs on it that take a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_images import encoded, put

from rnnnas.config.presets import resolve
from rnnnas.data.corpus import VocabOptions, add_corpus
from rnnnas.data.image_corpus import ImageCorpus

CPU = torch.device("cpu")
SIDE = 16
COLOURS = {
    "black": (0, 0, 0), "red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1),
    "yellow": (1, 1, 0), "white": (1, 1, 1),
}  # fmt: skip
SMALL = ["model.channels=4", "model.layers=3", "batches.size=16", "batches.evaluated=20"]
SEARCH = [*SMALL, "model.nodes=2", "epochs=2", "batches.limit=2", "valid_images=0",
          "alphas.warmup=0", "alphas.lr=0.05"]  # fmt: skip
TRAIN = [*SMALL, "epochs=2", "batches.limit=3"]


def square(colour: tuple[int, int, int], seed: int) -> np.ndarray:
    """A square of a colour, anywhere on noise. (3, h, w) uint8."""
    rng = np.random.RandomState(seed)
    pixels = rng.randint(96, 160, (3, SIDE, SIDE), dtype=np.uint8)
    top, left = rng.randint(0, SIDE - 8, 2)
    pixels[:, top : top + 8, left : left + 8] = 255 * np.array(colour)[:, None, None]
    return pixels


def make(folder: Path) -> Path:
    for split, each in (("train", 24), ("test", 10)):
        for c, (name, colour) in enumerate(COLOURS.items()):
            for i in range(each):
                pixels = square(colour, 1000 * (split == "test") + 100 * c + i)
                put(folder / split / name / f"{i}.png", encoded(pixels))
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageCorpus]:
    """The corpus `squares` in a home of its own, where `tiny`, a text, lies too."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("RNNNAS_HOME")
    os.environ["RNNNAS_HOME"] = str(home)
    lines = ["a b c d e f g", "b c d a", "g f e d c"] * 200
    (home / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    add_corpus("tiny", home / "text.txt", VocabOptions())
    made = add_corpus("squares", make(home / "squares"), VocabOptions())
    assert isinstance(made, ImageCorpus)
    yield made
    if before is None:
        del os.environ["RNNNAS_HOME"]
    else:
        os.environ["RNNNAS_HOME"] = before


def search_config(*settings: str, method: str = "darts-1st", preset: str = "cifar10-quick") -> Any:
    flags = {"corpus": "squares", "seed": 3, "method": method}
    return resolve(
        "image-search", preset=preset, file=None, settings=[*SEARCH, *settings], flags=flags
    )


def train_config(*settings: str, genotype: Any = "random:4") -> Any:
    flags = {"corpus": "squares", "seed": 3, "genotype": genotype}
    return resolve(
        "image-train", preset="cifar10-quick", file=None, settings=[*TRAIN, *settings], flags=flags
    )
