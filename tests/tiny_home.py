"""A home folder with a small corpus, for tests of whole runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import rank_work

from rnnnas.data.corpus import VocabOptions, add_corpus


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
