"""Searches with shared weights, run in the space of a table, and what they think of its cells."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rnnnas.config.presets import resolve
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.errors import DivergedError, RnnnasError
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.operations import NONE
from rnnnas.nas.space import CellSpace
from rnnnas.plugins import load as plugins
from rnnnas.runs.files import parse_json
from rnnnas.runs.progress import Progress
from rnnnas.runs.signals import StopRequest
from rnnnas.searching.run import search
from rnnnas.studies.local_jobs import LocalRunner, last_words
from rnnnas.tabular.plan import cells
from rnnnas.tabular.replay import Found
from rnnnas.tabular.table import Table

_LEAST = 1e-5  # a share that is told as 0 is below this


def search_settings(
    table: Table, method: str, seed: int, *, preset: str, settings: Iterable[str]
) -> SearchConfig:
    """The settings of a search in the table's space, and of its corpus.

    Raises:
        UsageError: for a setting that the search refuses.
    """
    flags = {"corpus": table.about["corpus"], "method": method, "seed": seed}
    resolved: SearchConfig = resolve(
        "search", preset=preset, file=None, settings=[*settings, *_space(table)], flags=flags
    )
    return resolved


def search_words(
    table: Table, method: str, seed: int, folder: Path, *, preset: str, settings: Iterable[str]
) -> tuple[str, ...]:
    """The words after `rnnnas` of the same search, in `folder`."""
    words = ["search", "--corpus", table.about["corpus"], "--method", method, "--seed", str(seed)]
    words += ["--preset", preset, "--device", "cpu", "--out", str(folder), "--json"]
    words += [word for text in (*settings, *_space(table)) for word in ("--set", text)]
    words += [word for path in plugins.files() for word in ("--plugin", str(path))]
    return tuple(words)


def _space(table: Table) -> list[str]:
    return [
        f"space.nodes={table.about['nodes']}",
        f"space.ops={json.dumps([NONE, *table.about['ops']])}",
    ]


def search_side_by_side(jobs: Mapping[str, tuple[str, ...]], folder: Path, slots: int) -> None:
    """Run searches below `folder`, by the names of their run folders, `slots` at a time, each as a
    process of its own; what is finished there is not run again.

    A search that diverges ends like the others: whoever looks at it is told.

    Raises:
        Interrupted: on SIGINT and SIGTERM, once all have saved and ended.
        RnnnasError: where one failed otherwise.
    """
    left = [name for name in jobs if not (folder / name / "result.json").exists()]
    runner = LocalRunner(folder, slots)
    running: set[str] = set()
    bar = Progress("searches", len(jobs), done=len(jobs) - len(left), unit="searches")
    with StopRequest() as stop, bar:
        try:
            while left or running:
                while left and runner.free() > 0:
                    name = left.pop(0)
                    runner.start({name: jobs[name]})
                    running.add(name)
                for name, code in runner.ended().items():
                    running.discard(name)
                    if code not in (0, DivergedError.exit_code):
                        raise RnnnasError(
                            f"{name} failed: {last_words(folder, name)}",
                            "the same command goes on with what is left",
                        )
                    bar.update(len(jobs) - len(left) - len(running))
                stop.check(runner.stop, folder)
                time.sleep(runner.poll_seconds)
        finally:
            runner.kill()


def search_cell(
    config: SearchConfig, corpus: Corpus, folder: Path, table: Table, training_steps: int
) -> Found:
    """Search in `folder`, or take what is finished there.

    Args:
        training_steps: of a training of the table, in which the cost is told.
    """
    result = search(config, corpus, folder, device=torch.device("cpu"), quiet=True)
    lines = _lines(folder / "metrics.jsonl")
    cost = steps_of(lines) / training_steps
    return Found(result["cell"], own_scores(lines, table.space), cost, result["seconds"])


def steps_of(lines: Sequence[Mapping[str, Any]]) -> int:
    """Weight steps of a search, those of the race behind it included."""
    own = max((line["step"] for line in lines if line["kind"] == "search"), default=0)
    heights: dict[tuple[int, int], int] = {}  # of the race's trainings
    for line in lines:
        if line["kind"] == "rung":
            key = line["number"], line["draw"]
            heights[key] = max(line["step"], heights.get(key, 0))
    return own + sum(heights.values())


def own_scores(lines: Sequence[Mapping[str, Any]], space: CellSpace) -> dict[str, float]:
    """What a search thinks of cells, less is better: the losses of those that it tried; else, of
    all cells, minus the log of the product of the shares of their genes.
    """
    tried = {
        line["cell"]: math.log(line["perplexity"])
        for line in lines
        if line["kind"] == "candidate" and line["perplexity"] is not None
    }
    if tried:
        return tried
    told = [line[RECURRENT] for line in lines if line["kind"] == "alphas" and RECURRENT in line]
    if not told or len(told[-1]) != len(space.edges):
        return {}
    shares = told[-1]
    # The table's space is without `none`, which the search's has in front.
    place = {op: len(shares[0]) - len(space.ops) + o for o, op in enumerate(space.ops)}
    scores = {}
    for cell in cells(space):
        total = 0.0
        for node, (gene,) in enumerate(Genotype.from_text(cell).recurrent.nodes):
            row = shares[space.rows(node)[gene.source]]
            total -= math.log(max(row[place[gene.op]], _LEAST))
        scores[cell] = total
    return scores


def _lines(path: Path) -> list[dict[str, Any]]:
    found = [parse_json(line) for line in path.read_bytes().splitlines()]
    return [line for line in found if isinstance(line, dict)]
