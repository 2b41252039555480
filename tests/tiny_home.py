"""A home folder with a small corpus, and searches on it, for tests of whole runs."""

from __future__ import annotations

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
def home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Holds the corpus `tiny`: the text that the test module calls HOME_TEXT, or the tiny one."""
    folder = tmp_path_factory.mktemp("home")
    text = getattr(request.module, "HOME_TEXT", "") or rank_work.tiny_text()
    (folder / "text.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        add_corpus("tiny", folder / "text.txt", VocabOptions())
        yield folder


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
