"""Files, folders and archives that several tests make corpora of."""

from __future__ import annotations

import zipfile
from pathlib import Path

from rnnnas.data.corpus import SPLITS, Corpus, corpora_folder

TEXT = "".join(f"line {i} of words {i % 9} and more {i % 4} words\n" for i in range(400))


def left_behind() -> list[str]:
    folder = corpora_folder()
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def written(path: Path, text: str | bytes = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def three(folder: Path, **changed: str | bytes) -> Path:
    """A folder with the files of all splits."""
    for split in SPLITS:
        written(folder / f"x.{split}.txt", changed.get(split, TEXT))
    return folder


def zipped(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def text_of(corpus: Corpus, split: str) -> str:
    return corpus.vocab.decode(corpus.splits[split])
