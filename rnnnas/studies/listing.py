"""Runs and studies on disk: what each is, how far it came, and what it gave.

Nothing is opened for writing, and no network is loaded: a folder's JSON files say all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rnnnas.errors import RnnnasError, UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.zoo import ZOO, genotype_of
from rnnnas.runs.files import Lock, parse_json
from rnnnas.runs.hub_folder import is_run
from rnnnas.runs.sealed import CONFIG_CHANGED, read_result, read_sealed
from rnnnas.studies.record import DAMAGED
from rnnnas.studies.record import NAME as STUDY

State = Literal["finished", "running", "stopped", "failed", "damaged"]
PLAN = "plan.json"  # as in engine.budget, which needs torch
DEPTH = 3  # folders below the one that is looked through
_TAIL = 1 << 16  # bytes of metrics.jsonl in which its last epoch is looked for
_NO_FIGURES = ("seconds", "parameters")  # numbers of a result that say nothing of how good it is


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run or a study.

    kind: "search", "train", "image-search", "image-train" or "study". what: the method of a
    search, the cell of a training, the methods of a study. state: "stopped" for what ended before
    it was finished, or was killed. done, total: epochs, or what `unit` says; of a study, jobs.
    figures: what the result measured. seconds: it took. date: when it was last written, UTC.
    note: why it failed, or what is damaged.
    """

    path: Path
    kind: str
    corpus: str = ""
    what: str = ""
    seed: int | None = None
    state: State
    done: int = 0
    total: int = 0
    unit: str = "epoch"
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    date: str = ""
    note: str = ""

    def to_plain(self) -> dict[str, Any]:
        """As `rnnnas runs --json` prints it."""
        return {**asdict(self), "path": str(self.path), "figures": dict(self.figures)}

    def progress(self) -> str:
        """'finished', 'stopped at epoch 2 of 4', 'failed at epoch 1 of 4: ...'."""
        if self.state in ("finished", "damaged"):
            return self.state if not self.note else f"{self.state}: {self.note}"
        unit = "job" if self.kind == "study" else self.unit
        where = f"{self.state} at {unit} {self.done} of {self.total}"
        return f"{where}: {self.note}" if self.note else where


def list_runs(folder: Path) -> list[RunInfo]:
    """Every run and study under a folder, the one last written first.

    The runs of a study are listed where the folder is the study's own.

    Raises:
        UsageError: where there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}", "runs lie in checkpoints/, or where --out said"
        )
    found = [info_of(path) for path in _folders(folder, DEPTH, top=True)]
    return sorted(found, key=lambda one: (one.date, str(one.path)), reverse=True)


def _folders(folder: Path, depth: int, top: bool = False) -> Iterator[Path]:
    """The folders of runs and studies in a folder, itself among them."""
    study = (folder / STUDY).is_file()
    if study or is_run(folder):
        yield folder
        if not (study and top):
            return
    if depth:
        try:
            inner = sorted(path for path in folder.iterdir() if path.is_dir())
        except OSError:  # nobody may look into it
            return
        for path in inner:
            yield from _folders(path, depth - 1)


def info_of(folder: Path) -> RunInfo:
    """What is known of the run or study in a folder; damaged ones say so."""
    date = _date(folder)
    try:
        if (folder / STUDY).is_file():
            return _study(folder, date)
        return _run(folder, date)
    except (RnnnasError, KeyError, TypeError, AttributeError, ValueError) as error:
        why = error.cause if isinstance(error, RnnnasError) else f"not as expected: {error!r}"
        return RunInfo(path=folder, kind="?", state="damaged", date=date, note=why)


def _run(folder: Path, date: str) -> RunInfo:
    stored = read_sealed(folder / "config.json", CONFIG_CHANGED)
    config: dict[str, Any] = stored["config"]
    kind = ("image-" if "augment" in config else "") + stored["kind"]
    what = config["method"] if "method" in config else cell_name(config)
    result = read_result(folder)
    epoch, failed = _last_epoch(folder / "metrics.jsonl")
    state: State = "stopped"
    if result is not None:
        state, failed = "finished", ""
    elif Lock.is_held(folder):
        state, failed = "running", ""
    elif failed:
        state = "failed"
    result = result or {}
    total, unit = config.get("epochs", 0), "epoch"
    if stored["kind"] == "train":
        total += config.get("weights", {}).get("finetune_epochs", 0)
    if config.get("seconds"):  # its rounds take the place of epochs
        path = folder / PLAN
        total, unit = (read_sealed(path, DAMAGED)["rounds"] if path.is_file() else 0), "round"
    return RunInfo(
        path=folder, kind=kind, corpus=config["corpus"], what=what, seed=config.get("seed"),
        state=state, done=epoch, total=max(epoch, total), unit=unit,
        figures=figures_of(result), seconds=result.get("seconds"), date=date, note=failed,
    )  # fmt: skip


def _study(folder: Path, date: str) -> RunInfo:
    stored = read_sealed(folder / STUDY, DAMAGED)
    config, jobs = stored["plan"]["config"], stored["jobs"]
    result = stored["result"] or {}
    done = sum(job["state"] == "done" for job in jobs.values())
    broken = [name for name, job in jobs.items() if job["state"] == "failed"]
    state: State = "stopped"
    if stored["result"] is not None:
        state = "failed" if broken else "finished"
    elif Lock.is_held(folder):
        state = "running"
    figures = {
        f"{method}: test_{result.get('measure', 'perplexity')}": float(report["test"]["mean"])
        for method, report in result.get("methods", {}).items()
        if report["test"]["mean"] is not None
    }
    return RunInfo(
        path=folder, kind="study", corpus=config["corpus"], what=", ".join(config["methods"]),
        state=state, done=done, total=len(jobs), figures=figures, seconds=result.get("seconds"),
        date=date, note=f"{', '.join(broken)} failed" if broken else "",
    )  # fmt: skip


def cell_name(config: Mapping[str, Any]) -> str:
    """'LSTM', 'DARTS_V2', or a cell's nodes; of an image network, the names of its cells."""
    if config.get("cell", "derived") != "derived":
        return str(config["cell"]).upper()
    genotype = Genotype.from_plain(config["genotype"])
    for name in ZOO:
        if genotype == genotype_of(name, 1):
            return name
    if set(genotype.cells) == {"recurrent"}:
        return genotype.to_text()
    return "+".join(genotype.cells)


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a result that say how good it is."""
    return {
        name: float(value)
        for name, value in result.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and name not in _NO_FIGURES
    }


def _last_epoch(path: Path) -> tuple[int, str]:
    """How many epochs are over, and why the run failed where it did."""
    epoch, failed = 0, ""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().splitlines()
    except OSError:  # nothing was logged yet
        return 0, ""
    for line in lines:
        try:
            told = parse_json(line)
        except ValueError:  # the first one, cut; the last one of a run that was killed
            continue
        if isinstance(told, dict) and told.get("kind") == "epoch":
            epoch = int(told.get("epoch", epoch))
        failed = str(told.get("reason", "")) if told.get("kind") == "failed" else ""
    return epoch, failed


def _date(folder: Path) -> str:
    """When a run was last written: of its result, its metrics, or its beginning."""
    for name in ("result.json", "metrics.jsonl", STUDY, "config.json"):
        path = folder / name
        if path.exists():
            moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
    return ""
