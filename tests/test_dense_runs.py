"""Whole runs on dense blocks: searched, priced, trained, shown, resumed wherever they stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from squares import CPU, squares, train_config
from test_image_runs import run
from test_runs import crashing, metrics, run_through

from rnnnas import config as configs
from rnnnas.cnn.dense_genes import parts_of
from rnnnas.data.images import ImageCorpus
from rnnnas.files import load_content
from rnnnas.nas.genotype import Genotype
from rnnnas.search import SearchJob, search
from rnnnas.train import TrainJob, train

__all__ = ["squares"]  # a fixture

TINY = [
    "dense.stem=4", "dense.widths=[4, 6, 8]", "dense.scales=[1, 2, 2]", "dense.layers=1",
    "dense.reach=2", "dense.kernels=[3]", "dense.expansions=[1, 2]", "dense.end=8",
    "batches.size=16", "batches.evaluated=20", "batches.limit=3", "epochs=2", "valid_images=0",
]  # fmt: skip


def search_config(*settings: str, method: str = "densenas") -> Any:
    return configs.resolve(
        "image-search", preset="cifar10-dense", file=None, settings=[*TINY, *settings],
        flags={"corpus": "squares", "seed": 3, "method": method},
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(squares: ImageCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search."""
    folder = tmp_path_factory.mktemp("found") / "run"
    search(search_config(), squares, folder, device=CPU, quiet=True)
    return folder


def test_train(found: Path, squares: ImageCorpus, tmp_path: Path) -> None:
    train(train_config(genotype=str(found)), squares, tmp_path / "run", device=CPU, quiet=True)
    print(run("show", str(found)).stdout)
    print(run("eval", "--checkpoint", str(tmp_path / "run")).stdout)
