"""A home folder with a small corpus, and searches on it, for tests of whole runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rank_work
import torch

from rnnnas.config.presets import resolve
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus, VocabOptions, add_corpus, open_corpus
from rnnnas.searching.run import search


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("RNNNAS_HOME")
    os.environ["RNNNAS_HOME"] = str(folder)
    (folder / "text.txt").write_text(rank_work.tiny_text(), encoding="utf-8")
    add_corpus("tiny", folder / "text.txt", VocabOptions())
    yield folder
    if before is None:
        del os.environ["RNNNAS_HOME"]
    else:
        os.environ["RNNNAS_HOME"] = before


@pytest.fixture
def corpus(home: Path) -> Corpus:
    return open_corpus("tiny")


def search_config(*settings: str, **flags: Any) -> SearchConfig:
    """A search on the corpus by preset smoke, seed 3."""
    config: SearchConfig = resolve(
        "search", preset="smoke", file=None, settings=settings,
        flags={"corpus": "tiny", "seed": 3, **flags},
    )  # fmt: skip
    return config


def find(settings: SearchConfig, corpus: Corpus, folder: Path) -> dict[str, Any]:
    return search(settings, corpus, folder, device=torch.device("cpu"), quiet=True)
