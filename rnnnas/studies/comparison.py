"""Runs side by side: settings that differ, figures, and the cells."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rnnnas.config.plain import leaves
from rnnnas.draw.text_svg_dot import as_text
from rnnnas.errors import RnnnasError, UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.runs.files import read_json
from rnnnas.runs.sealed import CONFIG_CHANGED, read_result, read_sealed
from rnnnas.studies.listing import RunInfo, info_of

_CELL = ("genotype", "cell")  # settings that are the cell itself, which is drawn
_ABSENT = None
# Of a result's figures those by which models of several vocabularies are compared.
OF_TEXT = (
    "bits_per_byte", "word_perplexity", "unigram_perplexity", "bigram_perplexity", "unknown_share",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs compared; what stands for one of them is in their order, None for what it lacks.

    settings: by dotted key, those that differ. figures: what any of them measured. cells: their
    genotypes.
    """

    runs: tuple[RunInfo, ...]
    settings: dict[str, tuple[Any, ...]]
    figures: dict[str, tuple[float | None, ...]]
    cells: tuple[Genotype | None, ...]

    def to_plain(self) -> dict[str, Any]:
        """As `rnnnas runs compare --json` prints it."""
        return {
            "runs": [one.to_plain() for one in self.runs],
            "settings": {key: list(each) for key, each in self.settings.items()},
            "figures": {name: list(each) for name, each in self.figures.items()},
            "cells": [None if cell is None else cell.to_plain() for cell in self.cells],
        }


def compare_runs(*paths: Path) -> Comparison:
    """Compare runs by their folders, or by a file in them.

    Raises:
        UsageError: where there are not two, or one is no run, or is a study.
        CheckpointError: where its files are damaged.
    """
    if len(paths) < 2:
        raise UsageError("one run is not compared with itself", "give two runs or more")
    folders = [_folder(path) for path in paths]
    runs = tuple(info_of(folder) for folder in folders)
    for one in runs:
        if one.kind == "study" or one.state == "damaged":
            why = "is a study" if one.kind == "study" else f"is damaged: {one.note}"
            raise UsageError(f"{one.path} {why}", "give runs: rnnnas runs lists them")
    flat = [dict(leaves(_settings(folder))) for folder in folders]
    keys = dict.fromkeys(key for one in flat for key in one)
    settings = {key: tuple(one.get(key, _ABSENT) for one in flat) for key in keys}
    numbers = [_numbers(folder, one) for folder, one in zip(folders, runs, strict=True)]
    names = dict.fromkeys(name for one in numbers for name in one)
    return Comparison(
        runs=runs,
        settings={
            key: each for key, each in settings.items() if any(v != each[0] for v in each[1:])
        },
        figures={name: tuple(one.get(name) for one in numbers) for name in names},
        cells=tuple(_cell(folder) for folder in folders),
    )


def _folder(path: Path) -> Path:
    folder = path.parent if path.is_file() else path
    if not any((folder / name).is_file() for name in ("config.json", "study.json")):
        raise UsageError(f"{path} is no run", "give a run folder: rnnnas runs lists them")
    return folder


def _settings(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_sealed(folder / "config.json", CONFIG_CHANGED)["config"]
    return {key: value for key, value in config.items() if key not in _CELL}


def _numbers(folder: Path, one: RunInfo) -> dict[str, float]:
    numbers = dict(one.figures)
    result = read_result(folder) or {}
    for name in ("parameters", "seconds", *OF_TEXT):
        if isinstance(result.get(name), int | float):
            numbers[name] = result[name]
    return numbers | {"epochs": one.done}


def _cell(folder: Path) -> Genotype | None:
    path = folder / "genotype.json"
    if not path.is_file():
        return None
    try:
        return Genotype.from_plain(read_json(path))
    except RnnnasError:
        return None


def side_by_side(comparison: Comparison, columns: int) -> str:
    """The cells as text, beside each other where they fit, else one below the other."""
    texts = []
    for one, cell in zip(comparison.runs, comparison.cells, strict=True):
        drawn = one.what if cell is None else as_text(cell).rstrip("\n")
        texts.append([str(one.path), "", *drawn.splitlines()])
    widths = [max(len(line) for line in text) for text in texts]
    if sum(widths) + 3 * (len(widths) - 1) > columns:
        return "\n\n".join("\n".join(text) for text in texts)
    rows = zip_longest(*texts, fillvalue="")
    return "\n".join(
        "   ".join(f"{part:{width}}" for part, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
