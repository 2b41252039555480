"""Making the table of a space: every cell with every seed, by processes of one thread each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rnnnas
from rnnnas.config.plain import from_plain, to_plain
from rnnnas.config.table import TableConfig
from rnnnas.data.corpus import Corpus, check_unchanged
from rnnnas.engine.computed_by import computed_by
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.plugins import load as plugins
from rnnnas.runs.files import Lock, disk_errors, json_plain, remove_temporaries
from rnnnas.runs.folder import first_free, is_empty
from rnnnas.runs.progress import Progress
from rnnnas.runs.sealed import read_sealed, write_sealed
from rnnnas.runs.signals import StopRequest
from rnnnas.tabular.plan import cells, train_config, train_words, training_settings
from rnnnas.tabular.rows import Row, RowFile
from rnnnas.tabular.table import Table, summary
from rnnnas.tabular.workers import Task, Workers, train_row
from rnnnas.training.run import TrainJob

PLAN, TABLE = "table.json", "table.csv"
_NEW = "give --fresh for a new table, or another folder with --out"


def tasks(config: TableConfig) -> list[Task]:
    """Every training, one seed after the other: a table that is cut short has all cells."""
    return [(cell, seed) for seed in config.seeds for cell in cells(config.space)]


def make_table(
    config: TableConfig,
    corpus: Corpus,
    folder: Path,
    *,
    workers: int = 1,
    fresh: bool = False,
    quiet: bool = False,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train every cell with every seed, or go on where the folder stands.

    The folder holds the plan (table.json), the trainings that are done (rows.jsonl) and, at the
    end, the table (table.csv).

    Returns:
        run (the folder), table (the path of the file), cells, trainings, noise, best and worst (of
        cell and test_perplexity, the geometric mean over seeds), arithmetic, seconds (of all
        trainings).

    Raises:
        Interrupted: on SIGINT and SIGTERM; the rows so far are kept.
        UsageError: where the folder holds something else, or a table with other settings.
        CheckpointError: where a file in it is damaged.
    """
    check_unchanged(corpus)
    folder = first_free(folder) if fresh else folder
    plan = plan_of(config, corpus)
    new = plan["arithmetic"]
    _enter(folder, plan, look=True)  # what it refuses leaves no trace
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder)
    try:
        remove_temporaries(folder)
        plan = _enter(folder, plan)
        file = RowFile(folder)
        every = tasks(config)
        left = [task for task in every if task not in file.rows]
        say(
            f"{len(every):,} trainings in {folder}"
            + (f", {len(every) - len(left):,} done" if len(left) < len(every) else "")
        )
        if left:
            _note_arithmetic(folder, plan, new, say)
            about = {
                "config": to_plain(config),
                "corpus": str(corpus.folder.absolute()),
                "name": corpus.name,
                "plugins": [str(path) for path in plugins.files()],
            }
            _train(left, len(every), file, Workers(about, workers), folder, quiet)
        table = assemble(plan, [file.rows[task] for task in every])
        table.write(folder / TABLE)
    finally:
        lock.release()
    return {"run": str(folder), "table": str(folder / TABLE), **told(table)}


def _train(
    left: list[Task], count: int, file: RowFile, workers: Workers, folder: Path, quiet: bool
) -> None:
    bar = Progress(
        "table of a space", count, done=count - len(left), unit="trainings",
        waits_for="starting the processes that train", quiet=quiet,
    )  # fmt: skip
    with StopRequest() as stop, bar:
        try:
            for row in workers.train(left):
                if row is not None:
                    file.add(row)
                    shown = {} if row.test is None else {"test_perplexity": row.test}
                    bar.update(len(file.rows), **shown)
                stop.check(lambda: None, folder)
        finally:
            workers.close()


def plan_of(config: TableConfig, corpus: Corpus) -> dict[str, Any]:
    """What a table is, as plain values: two tables with the same plan have the same rows."""
    with_one_thread = _one_thread(lambda: _computed_by(config, corpus))
    plan: dict[str, Any] = json_plain(
        {
            "kind": "table",
            "corpus": corpus.name,
            "corpus_sha256": corpus.sha256,
            "nodes": config.nodes,
            "ops": config.ops,
            "cells": config.space.count(),
            "seeds": config.seeds,
            "stretches": config.stretches,
            "preset": train_words(config)[0],
            "training": training_settings(config),
            "arithmetic": with_one_thread,
            "version": rnnnas.__version__,
        }
    )
    return plan


def _computed_by(config: TableConfig, corpus: Corpus) -> str:
    cell, seed = tasks(config)[0]
    return computed_by(TrainJob(train_config(config, cell, seed), corpus, torch.device("cpu")))


def _one_thread(work: Callable[[], Any]) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def _enter(folder: Path, plan: dict[str, Any], look: bool = False) -> dict[str, Any]:
    """Write the plan, or hold the one that is there against it; the plan that holds."""
    path = folder / PLAN
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", "give another folder with --out")
    if not path.exists():
        if folder.exists() and not is_empty(folder):
            raise UsageError(f"{folder} holds files but no table (no {PLAN})", _NEW)
        if not look:
            write_sealed(path, plan)
        return plan
    there = read_sealed(path, _NEW)
    if there.get("kind") != "table":
        raise CheckpointError(f"{path} is no plan of a table", _NEW)
    changed = [
        key for key in plan if _told_apart(key, there.get(key)) != _told_apart(key, plan[key])
    ]
    if changed:
        key = changed[0]
        raise UsageError(
            f"{folder} holds a table with other settings: {key} is {there.get(key)!r} there and "
            f"{plan[key]!r} here",
            _NEW,
        )
    return there


def _told_apart(key: str, value: Any) -> Any:
    """What tables of one folder must share: of the arithmetic the precision and the device alone,
    since another build of torch rounds otherwise, by far less than a seed changes.
    """
    if key == "arithmetic":
        return str(value).partition(",")[0]
    return None if key == "version" else value


def _note_arithmetic(
    folder: Path, plan: dict[str, Any], new: str, say: Callable[[str], None]
) -> None:
    """Where rows from here on are computed otherwise than those before, say so and keep it."""
    also = plan.get("arithmetic_also", [])
    if new in (plan["arithmetic"], *also):
        return
    say(f"note: the rows so far were computed by {plan['arithmetic']}, from here on by {new}")
    plan["arithmetic_also"] = [*also, new]
    write_sealed(folder / PLAN, plan)


def assemble(plan: dict[str, Any], rows: list[Row]) -> Table:
    """The table of a plan, its rows by cell, with its noise in the header."""
    order = {cell: place for place, cell in enumerate(dict.fromkeys(row.cell for row in rows))}
    ordered = sorted(rows, key=lambda row: (order[row.cell], plan["seeds"].index(row.seed)))
    return Table(about={**plan, "noise": summary(ordered, plan["seeds"])}, rows=tuple(ordered))


def told(table: Table) -> dict[str, Any]:
    """What is said of a table that is made."""
    means = table.means()
    ends = {}
    for name, choose in (("best", min), ("worst", max)):
        finite = {cell: mean for cell, mean in means.items() if math.isfinite(mean)}
        if finite:
            cell = choose(finite, key=lambda cell: finite[cell])
            ends[name] = {"cell": cell, "test_perplexity": math.exp(finite[cell])}
    return {
        "cells": len(means),
        "trainings": len(table.rows),
        "noise": table.about["noise"],
        **ends,
        "arithmetic": table.about["arithmetic"],
        "seconds": round(math.fsum(row.seconds for row in table.rows), 3),
    }


def estimate_table(config: TableConfig, corpus: Corpus, *, workers: int) -> dict[str, Any]:
    """What the table will take: one training of it is timed, after a short one that starts all up.

    Returns:
        cells, trainings, seconds_each (on one thread), seconds (with so many workers).
    """
    every = tasks(config)
    warm = from_plain(
        TableConfig,
        {**to_plain(config), "train": {**config.train, "epochs": 1, "windows": {"limit": 2}}},
    )

    def timed() -> float:
        train_row(warm, corpus, *every[0])
        began = time.perf_counter()
        train_row(config, corpus, *every[0])
        return time.perf_counter() - began

    each = _one_thread(timed)
    return {
        "cells": config.space.count(),
        "trainings": len(every),
        "seconds_each": round(each, 3),
        "seconds": round(each * len(every) / workers, 1),
    }
