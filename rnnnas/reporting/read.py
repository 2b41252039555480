"""What a report is made from: run folders and studies as they lie on disk, finished or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from rnnnas.cnn.dense.space import DenseConfig, Layout
from rnnnas.cnn.space import image_spaces
from rnnnas.engine.budget import read_plan
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.runs.files import parse_json, read_json
from rnnnas.runs.hub_folder import is_run
from rnnnas.runs.sealed import CONFIG_CHANGED, read_result, read_sealed
from rnnnas.studies.record import DAMAGED

Table = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A search after an epoch: the cell that its alphas stand for, and their (E, O) tables of
    shares by the name of the cell.
    """

    epoch: int
    cell: str
    genotype: Genotype | None
    tables: Mapping[str, Table]


@final
@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run folder. kind: "search" or "train"; config: its settings, nested; result: of a run that
    is finished, else None; lines: of metrics.jsonl, oldest first; plugins: names of the files that
    it was made with.
    """

    folder: Path
    kind: str
    config: Mapping[str, Any]
    version: str
    result: Mapping[str, Any] | None
    lines: tuple[Mapping[str, Any], ...]
    plugins: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def of(self, *kinds: str) -> list[Mapping[str, Any]]:
        """The lines of these kinds."""
        return [line for line in self.lines if line.get("kind") in kinds]

    def points(self, kind: str, name: str, x: str = "step") -> list[tuple[float, float]]:
        """(x, value) of a value's curve; what is missing or not finite is left out."""
        found = []
        for line in self.of(kind):
            at, value = number(line.get(x)), number(line.get(name))
            if at is not None and value is not None:
                found.append((at, value))
        return found

    @cached_property
    def measure(self) -> str:
        """ "perplexity", or "accuracy" of images."""
        known = [*self.lines, self.result or {}]
        return "accuracy" if any("valid_accuracy" in line for line in known) else "perplexity"

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        """The epochs that logged alphas, in order; none of runs before version 0.2."""
        found = []
        for line in self.of("alphas"):
            tables = {k: v for k, v in line.items() if isinstance(v, list)}
            cell = str(line.get("cell", ""))
            epoch = int(number(line.get("epoch")) or 0)
            found.append(Frame(epoch=epoch, cell=cell, genotype=genotype_from(cell), tables=tables))
        return tuple(found)

    @cached_property
    def genotype(self) -> Genotype | None:
        """The cell that was found or trained, or of a search under way the one of now."""
        for plain in ((self.result or {}).get("genotype"), self.config.get("genotype")):
            if isinstance(plain, Mapping) and plain:
                return Genotype.from_plain(plain)
        path = self.folder / "genotype.json"
        if path.is_file():
            return Genotype.from_plain(read_json(path))
        return self.frames[-1].genotype if self.frames else None

    @property
    def cell(self) -> str:
        """The cell in words: its short form, LSTM, GRU, or the names of its cells."""
        if self.genotype is None:
            kind = str(self.config.get("cell", ""))
            return kind.upper() if kind in ("lstm", "gru") else ""
        try:
            return self.genotype.to_text()
        except UsageError:
            return " and ".join(self.genotype.cells)

    def names_of(self, cell: str, table: Table) -> tuple[list[str], list[str]]:
        """The names of the rows and of the columns of a cell's table of shares."""
        space = self._space(cell)
        rows, columns = len(table), len(table[0]) if table else 0
        if space is not None:
            ops = self._operations(space) if cell == RECURRENT else list(space.ops)
            if (len(space.edges), len(ops)) == (rows, columns):
                return list(space.labels), ops
        return [f"row {i + 1}" for i in range(rows)], [f"option {i + 1}" for i in range(columns)]

    def _operations(self, space: CellSpace) -> list[str]:
        """The operations of a recurrent cell's edges; a plug-in's, too, that is not loaded."""
        own = self.config.get("space")
        ops = own.get("ops") if isinstance(own, Mapping) else None
        return [str(op) for op in ops] if isinstance(ops, list | tuple) else list(space.ops)

    def _space(self, cell: str) -> CellSpace | None:
        model = self.config.get("model", {})
        try:
            if cell == RECURRENT:
                return recurrent_space(int(model.get("nodes", 8)))
            if self.config.get("space") == "dense":
                given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v
                         for k, v in self.config["dense"].items()}  # fmt: skip
                return Layout(DenseConfig(**given)).spaces().get(cell)
            return image_spaces(int(model.get("nodes", 4))).get(cell)
        except (KeyError, TypeError, ValueError, UsageError):
            return None  # settings of another version: the shares are shown without names

    @property
    def noun(self) -> str:
        """What `epochs` counts: the rounds of a time budget take the place of epochs."""
        return "round" if self.config.get("seconds") else "epoch"

    @property
    def epochs(self) -> int:
        """How many epochs are planned; of a run with a time budget the rounds that its plan has, or
        that there were.
        """
        if self.config.get("seconds"):
            plan = read_plan(self.folder)
            planned = 0 if plan is None else plan.rounds
            seen = [int(number(line.get("epoch")) or 0) for line in self.lines]
            return max([planned, *seen])
        finetuned = self.config.get("weights", {}).get("finetune_epochs", 0)
        return int(self.config.get("epochs", 0)) + int(finetuned if self.kind == "train" else 0)


@final
@dataclass(frozen=True, kw_only=True)
class StudyData:
    """A study's folder. plan, jobs, result: as study.json has them; runs: of its jobs, by name."""

    folder: Path
    version: str
    plan: Mapping[str, Any]
    jobs: Mapping[str, Any]
    result: Mapping[str, Any] | None
    runs: Mapping[str, RunData]

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def number(value: object) -> float | None:
    """`value` as a finite float, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def genotype_from(text: str) -> Genotype | None:
    """The genotype that `derive.cell_text` wrote, or None where it cannot be read."""
    try:
        return (
            Genotype.from_plain(parse_json(text)) if text[:1] == "{" else Genotype.from_text(text)
        )
    except (UsageError, ValueError):
        return None


def read_all(paths: Sequence[Path]) -> list[RunData | StudyData]:
    """What lies at `paths`: run folders, studies, or folders of such.

    Raises:
        UsageError: where a path holds neither.
        CheckpointError: where a file is damaged.
    """
    found: list[RunData | StudyData] = []
    seen: set[Path] = set()  # what is named twice counts once
    for path in paths:
        folder = path.parent if path.is_file() and _holds(path.parent) else path  # a run's file
        if not folder.is_dir():
            raise UsageError(f"there is no folder {path}", "give a run folder or a study's folder")
        inner = [folder] if _holds(folder) else sorted(p for p in folder.iterdir() if _holds(p))
        if not inner:
            raise UsageError(
                f"{folder} holds neither a run nor a study",
                "give the folder of a search, a training or a study, e.g. checkpoints/q",
            )
        found += [_read(one) for one in inner if one.resolve() not in seen]
        seen |= {one.resolve() for one in inner}
    return found


def _holds(folder: Path) -> bool:
    return is_run(folder) or (folder / "study.json").is_file()


def _read(folder: Path) -> RunData | StudyData:
    return read_study(folder) if (folder / "study.json").is_file() else read_run(folder)


def read_run(folder: Path) -> RunData:
    """A run folder, of a run that may be going on.

    Raises:
        CheckpointError: where a file is damaged.
    """
    about = read_sealed(folder / "config.json", CONFIG_CHANGED)
    config = about.get("config")
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{folder / 'config.json'} is damaged: it holds no configuration")
    return RunData(
        folder=folder,
        kind=str(about.get("kind", "")),
        config=config,
        version=str(about.get("version", "")),
        result=read_result(folder),
        lines=tuple(_lines(folder / "metrics.jsonl")),
        plugins=_plugins(about.get("plugins")),
    )


def _plugins(noted: object) -> tuple[str, ...]:
    """The names of a run's plug-in files; an installed package's need no naming."""
    known = noted if isinstance(noted, list) else []
    names = [str(one.get("name", "")) for one in known if isinstance(one, Mapping)]
    return tuple(name for name in names if name.endswith(".py"))


def read_study(folder: Path) -> StudyData:
    """A study and the runs of it that have begun.

    Raises:
        CheckpointError: where a file is damaged.
    """
    path = folder / "study.json"
    stored = read_sealed(path, DAMAGED)
    plan, jobs, result = stored.get("plan"), stored.get("jobs"), stored.get("result")
    if not isinstance(plan, Mapping) or not isinstance(jobs, Mapping) or "config" not in plan:
        raise CheckpointError(f"{path} is damaged: it holds no plan")
    runs = {n: read_run(folder / n) for n in jobs if (folder / n / "config.json").is_file()}
    return StudyData(
        folder=folder, version=str(stored.get("version", "")), plan=plan, jobs=jobs,
        result=result if isinstance(result, Mapping) else None, runs=runs,
    )  # fmt: skip


def _object(path: Path) -> dict[str, Any]:
    plain = read_json(path)
    if not isinstance(plain, dict):
        raise CheckpointError(f"{path} is damaged: not an object")
    return plain


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that another process may be writing: a half last one is not there yet."""
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
    found = []
    for at, line in enumerate(whole, 1):
        try:
            plain = parse_json(line)
        except ValueError as error:
            raise CheckpointError(
                f"{path} is damaged in line {at}: {error}",
                "take the line or the run out",
            ) from error
        if isinstance(plain, dict):
            found.append(plain)
    return found
