"""Two runs side by side: settings that differ, figures, and the cells."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rnnnas.draw.text_svg_dot import as_text
from rnnnas.errors import RnnnasError, UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.runs.files import read_json
from rnnnas.runs.sealed import CONFIG_CHANGED, read_result, read_sealed
from rnnnas.studies.listing import RunInfo, info_of
from rnnnas.studies.plan import leaves

_CELL = ("genotype", "cell")  # settings that are the cell itself, which is drawn
_ABSENT = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs compared; every pair is (of the first, of the second), None for what one lacks.

    settings: by dotted key, those that differ. figures: what both or either measured. cells: their
    genotypes, in the order of the runs.
    """

    runs: tuple[RunInfo, RunInfo]
    settings: dict[str, tuple[Any, Any]]
    figures: dict[str, tuple[float | None, float | None]]
    cells: tuple[Genotype | None, Genotype | None]

    def to_plain(self) -> dict[str, Any]:
        """As `rnnnas runs compare --json` prints it."""
        return {
            "runs": [one.to_plain() for one in self.runs],
            "settings": {key: list(pair) for key, pair in self.settings.items()},
            "figures": {name: list(pair) for name, pair in self.figures.items()},
            "cells": [None if cell is None else cell.to_plain() for cell in self.cells],
        }


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare two runs by their folders, or by a file in them.

    Raises:
        UsageError: where one is no run, or is a study.
        CheckpointError: where its files are damaged.
    """
    folders = [_folder(path) for path in (first, second)]
    runs = (info_of(folders[0]), info_of(folders[1]))
    for one in runs:
        if one.kind == "study" or one.state == "damaged":
            why = "is a study" if one.kind == "study" else f"is damaged: {one.note}"
            raise UsageError(f"{one.path} {why}", "give two runs: rnnnas runs")
    flat = [dict(leaves(_settings(folder))) for folder in folders]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    settings = {
        key: (flat[0].get(key, _ABSENT), flat[1].get(key, _ABSENT))
        for key in keys
        if flat[0].get(key, _ABSENT) != flat[1].get(key, _ABSENT)
    }
    numbers = [_numbers(folder, one) for folder, one in zip(folders, runs, strict=True)]
    names = dict.fromkeys([*numbers[0], *numbers[1]])
    return Comparison(
        runs=runs,
        settings=settings,
        figures={name: (numbers[0].get(name), numbers[1].get(name)) for name in names},
        cells=(_cell(folders[0]), _cell(folders[1])),
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
    for name in ("parameters", "seconds"):
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
    """Both cells as text, beside each other where they fit, else one below the other."""
    texts = []
    for one, cell in zip(comparison.runs, comparison.cells, strict=True):
        drawn = one.what if cell is None else as_text(cell).rstrip("\n")
        texts.append([str(one.path), "", *drawn.splitlines()])
    width = max(len(line) for line in texts[0])
    if width + 3 + max(len(line) for line in texts[1]) > columns:
        return "\n".join([*texts[0], "", *texts[1]])
    rows = zip_longest(*texts, fillvalue="")
    return "\n".join(f"{left:{width}}   {right}".rstrip() for left, right in rows)
