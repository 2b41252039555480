"""The run folder: one run's configuration, metrics, state, best checkpoint and result.

config.json     what the run is; written once
metrics.jsonl   one line an event; state.pt says how many bytes of it belong to the state
events.*        curves and images for TensorBoard
state.pt        all that an exact resume needs
best.pt         the checkpoint to use
result.json     what a finished run reported
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, final

import rnnnas
from rnnnas.distributed import Ranks
from rnnnas.errors import CheckpointError, DiskError, UsageError
from rnnnas.plugins import load as plugins
from rnnnas.runs.checkpoint import load_content, save_content
from rnnnas.runs.differences import differences, flattened
from rnnnas.runs.files import (
    Lock,
    disk_errors,
    is_read_only,
    is_temporary,
    json_plain,
    remove_temporaries,
)
from rnnnas.runs.sealed import RESULT, read_result, read_sealed, write_result, write_sealed
from rnnnas.runs.tensorboard import Board, curve_name, has_events

if TYPE_CHECKING:
    import numpy as np

# A value of a line of metrics.jsonl; tables are for lines of kind "alphas".
Logged: TypeAlias = float | int | str | Sequence[Sequence[float]] | None
_NEW = "give --fresh for a new run, or another folder with --out"


@final
class Run:
    """A run folder that this process writes, or, where `result` is set, one that is finished.

    Make one with `Run.open`; leave it with `close`, `finish` or as a context manager.
    """

    def __init__(self, folder: Path, lock: Lock | None, save_seconds: float) -> None:
        self.folder = folder
        self.result: dict[str, Any] | None = None
        self._lock = lock
        self._save_seconds = save_seconds
        self._id: str | None = None  # of the run; None in folders from before runs had one
        self._saved = time.monotonic()
        self._metrics: int | None = None  # a file descriptor
        self._hashed = Prefix()
        self._board: Board | None = None
        self._step = 0  # the largest step logged or shown
        self._purge: int | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        kind: str,
        config: Mapping[str, Any],
        *,
        fresh: bool = False,
        save_seconds: float = 60.0,
        idle: Collection[str] = (),
        grows: Collection[str] = (),
    ) -> Run:
        """Create the run `folder`, or continue the run of the same kind and config in it.

        Args:
            config: plain values, nested; it is compared key by key with a run that is there.
            fresh: leave a run that is there alone and use the first free of folder-2, -3, ...
            save_seconds: how often `due` says that the state should be saved.
            idle: dotted keys of settings that change no result: they may differ from what is
                there.
            grows: keys of numbers that may be larger than what is there, and above 0 both: the
                run is then extended, and no longer finished.

        Raises:
            UsageError: where the folder holds another run or other files, or is in use.
            CheckpointError: where the run's config.json or result.json is damaged.
            DiskError: where the folder cannot be written.
        """
        folder = first_free(Path(folder)) if fresh else Path(folder)
        with disk_errors(folder):
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{folder} is a file, not a run folder", _NEW)
            folder.mkdir(parents=True, exist_ok=True)
            is_run = (folder / "config.json").exists()
            if not is_run and not is_empty(folder):
                raise UsageError(f"{folder} holds files but no run (no config.json)", _NEW)
        try:
            run = cls(folder, Lock(folder), save_seconds)
        except DiskError as error:
            # Where nothing can be written, what a finished run reported can still be read.
            if not is_read_only(error) or not os.path.lexists(folder / RESULT):
                raise
            return cls._repeat(folder, kind, json_plain(config), idle, grows, error)
        try:
            run._enter(kind, json_plain(config), idle, grows)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def _repeat(
        cls, folder: Path, kind: str, config: dict[str, Any], idle: Collection[str],
        grows: Collection[str], error: DiskError,
    ) -> Run:  # fmt: skip
        """The finished run in a folder that cannot be written; `error` where it has to go on."""
        run = cls(folder, None, 0.0)
        path = folder / "config.json"
        run._id = _check_config(path, kind, config, {*idle, *grows})
        stored = read_sealed(path, _NEW)["config"]
        run.result = read_result(folder)
        if run.result is None or _grown(stored, config, grows):
            raise error
        return run

    def _enter(
        self, kind: str, config: dict[str, Any], idle: Collection[str], grows: Collection[str]
    ) -> None:
        """Under the lock: write config.json, or check the one that is there."""
        with disk_errors(self.folder):
            remove_temporaries(self.folder)
        path = self.folder / "config.json"
        if not path.exists():
            self._id = secrets.token_hex(16)
            about = {"kind": kind, "config": config, "version": rnnnas.__version__}
            used = plugins.loaded()
            more = {"plugins": used} if used else {}
            write_sealed(path, about | {"run": self._id} | more)
        else:
            self._id = _check_config(path, kind, config, {*idle, *grows})
            stored = read_sealed(path, _NEW)
            if _grown(stored["config"], config, grows):
                # The result first: a run without one goes on, whichever of the two lengths it has.
                self.result_path.unlink(missing_ok=True)
                about = {"kind": kind, "config": config, "version": rnnnas.__version__}
                more = {"plugins": stored["plugins"]} if "plugins" in stored else {}
                write_sealed(path, about | ({"run": self._id} if self._id else {}) | more)
        self.result = read_result(self.folder)
        if self.result is not None:
            self.close()  # nothing more is written: others may look as well

    @property
    def state_path(self) -> Path:
        return self.folder / "state.pt"

    @property
    def best_path(self) -> Path:
        return self.folder / "best.pt"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def result_path(self) -> Path:
        return self.folder / "result.json"

    # State

    def load_state(self) -> dict[str, Any] | None:
        """The content last given to `save_state`, or None; call it before the first `log`.

        Metrics and curves are cut back to that moment: what was logged after it will be logged
        again, so that a run that was killed has every line once.

        Raises:
            CheckpointError: where state.pt is damaged, or that of another run.
            DiskError: where the metrics cannot be cut.
        """
        stored: dict[str, Any] = {"state": None, "metrics": 0, "step": -1}
        lines: object = None
        if self.state_path.exists():
            stored = load_content(self.state_path) | {}
            theirs = stored.pop("run", None)
            lines = stored.pop("lines", None)  # version 0.1.0 had none
            stored.pop("events", None)  # version 0.1.0 noted how long its event files were
            if set(stored) != {"state", "metrics", "step"}:
                raise CheckpointError(f"{self.state_path} is not the state of a run", _NEW)
            if theirs != self._id:
                raise CheckpointError(
                    f"{self.state_path} is the state of run {theirs or 'without an id'}, and this "
                    f"folder's config.json is that of run {self._id or 'without an id'}",
                    "put this run's own state.pt back, or move this one away to begin anew",
                )
            self._check_metrics(stored["metrics"], lines)
        if self._lock is not None:
            self._close_files()
            self._hashed = Prefix()  # what is cut off may have been hashed
            _cut_lines(self.metrics_path, stored["metrics"])
            if has_events(self.folder):
                self._purge = stored["step"] + 1
            self._step = max(0, stored["step"])
        state: dict[str, Any] | None = stored["state"]
        return state

    def _check_metrics(self, size: object, digest: object) -> None:
        """Refuse metrics that are not those of the state; none at all begin anew."""
        if digest is None or not self.metrics_path.exists() or not isinstance(size, int):
            return
        with disk_errors(self.metrics_path):
            found = Prefix().digest(self.metrics_path, size)
        if found != digest:
            raise CheckpointError(
                f"{self.metrics_path} was changed since {self.state_path.name} was written",
                "restore it from a copy, or move it away: the run goes on without its earlier "
                "lines",
            )

    def save_state(self, content: Mapping[str, Any]) -> None:
        """Write state.pt: `content`, and how much of the metrics belongs to it.

        Raises:
            TypeError: where the content holds more than plain values and tensors.
            DiskError: where it cannot be written; the older state stays.
        """
        self._check_open()
        if self._board is not None:
            self._board.flush()
        with disk_errors(self.metrics_path):
            if self._metrics is not None:
                os.fsync(self._metrics)
            lines = self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
            digest = self._hashed.digest(self.metrics_path, lines)
        stored = {
            "state": content,
            "metrics": lines,
            "lines": digest,
            "step": self._step,
            "run": self._id,
        }
        save_content(self.state_path, stored)
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether `save_seconds` have passed since the last save, or since the run was opened."""
        return time.monotonic() - self._saved >= self._save_seconds

    def save_best(self, content: Mapping[str, Any]) -> str:
        """Write best.pt and return its digest; errors as in `save_state`."""
        self._check_open()
        return save_content(self.best_path, content)

    # Metrics

    def log(self, kind: str, step: int, /, **values: Logged) -> None:
        """Add one line to metrics.jsonl, and a point to each curve that `board.curve_name` names.

        Values that are not finite are written as null and leave a gap in the curve.

        Raises:
            DiskError: where a file cannot be written.
        """
        self._check_open()
        line = json.dumps(
            {"kind": kind, "step": step, **json_plain(values)}, ensure_ascii=False, allow_nan=False
        )
        with disk_errors(self.metrics_path):
            if self._metrics is None:
                _cut_lines(self.metrics_path)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
                self._metrics = os.open(self.metrics_path, flags, 0o666)
            data = (line + "\n").encode("utf-8")
            while data:
                data = data[os.write(self._metrics, data) :]
        self._step = max(self._step, step)
        points = {
            tag: float(value)
            for name, value in json_plain(values).items()
            if isinstance(value, (int, float)) and (tag := curve_name(kind, name))
        }
        self._writer().scalars(points, step)

    def image(self, tag: str, array: np.ndarray[Any, Any], step: int) -> None:
        """Show an image, (height, width, channels) uint8, on the board at `step`."""
        self._writer().image(tag, array, step)
        self._step = max(self._step, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Show a text on the board at `step`."""
        self._writer().text(tag, text, step)

    def chart(self, title: str, tags: Sequence[str]) -> None:
        """Show the curves `tags` in one chart on the board."""
        self._writer().chart(title, tags)

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Add the run to the board's table of hyper-parameters.

        Nested keys of `config` become dotted ones; what is no str, int, float or bool is shown
        as text. A genotype is left out: `cell`, its short text, says it better.
        """
        flat = {
            key: value if isinstance(value, (str, int, float, bool)) else str(value)
            for key, value in flattened(config)
            if not key.startswith("genotype")
        }
        self._writer().hparams(flat, metrics)

    def _writer(self) -> Board:
        self._check_open()
        if self._board is None:
            self._board = Board(self.folder, self._purge)
        return self._board

    # Ends

    def finish(self, result: Mapping[str, Any], by: str = "") -> None:
        """Write result.json, which marks the run as finished, and close it.

        by: what it was computed by, which the file says beside the result.

        Raises:
            DiskError: where it cannot be written.
        """
        self._check_open()
        self._close_files()
        write_result(self.folder, result, by)
        self.result = json_plain(result)
        self.close()

    def close(self) -> None:
        """Close the files and let other processes open the run; further calls do nothing."""
        try:
            self._close_files()
        finally:
            if self._lock is not None:
                self._lock.release()
            self._lock = None

    def _close_files(self) -> None:
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None
        if self._board is not None:
            board, self._board = self._board, None
            board.close()

    def _check_open(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"the run {self.folder} is closed")

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def is_empty(folder: Path) -> bool:
    """Whether nothing lies in `folder` but what a run killed at its very start leaves."""
    return all(path.name == Lock.NAME or is_temporary(path) for path in folder.iterdir())


def first_free(folder: Path) -> Path:
    """The first of folder, folder-2, folder-3, ... that is missing or empty."""
    number = 1
    candidate = folder
    with disk_errors(folder):
        while candidate.exists() and not (candidate.is_dir() and is_empty(candidate)):
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _check_config(
    path: Path, kind: str, config: dict[str, Any], idle: Collection[str]
) -> str | None:
    """Refuse a config.json of another kind or with other values, naming them; returns its id."""
    stored = read_sealed(path, _NEW)
    if not isinstance(stored.get("config"), dict):
        raise CheckpointError(f"{path} is damaged: it holds no configuration", _NEW)
    if stored.get("kind") != kind:
        raise UsageError(f"{path.parent} holds a {stored.get('kind')} run, not a {kind} run", _NEW)
    used = stored.get("plugins") or []
    plugins.require(used, str(path.parent))
    if changed := plugins.changed(used):
        raise UsageError(
            f"plug-in {', '.join(changed)} is not the one that {path.parent} was begun with", _NEW
        )
    if changes := differences(stored["config"], config, idle):
        raise UsageError(
            f"{path.parent} holds a run with another configuration: {'; '.join(changes)}", _NEW
        )
    return stored.get("run")


def _grown(there: Mapping[str, Any], here: Mapping[str, Any], grows: Collection[str]) -> bool:
    """Whether one of the keys `grows` is larger here.

    Raises:
        UsageError: where one is smaller, or was not set or is not any more.
    """
    grown = False
    for key in grows:
        before, now = there.get(key, 0), here.get(key, 0)
        if before != now and (not before or not now or now < before):
            raise UsageError(
                f"the run has {key} = {before:g}, and here {key} = {now:g}: it can be extended, "
                "not cut or counted otherwise",
                f"give more, or go on elsewhere with --from this run's folder; {_NEW}",
            )
        grown = grown or before != now
    return grown


class Prefix:
    """The SHA-256 of the first bytes of a file that grows: what was hashed is not read again."""

    def __init__(self) -> None:
        self._sha, self._size = hashlib.sha256(), 0

    def digest(self, path: Path, size: int) -> str:
        """Of the first `size` bytes, or of all where there are fewer; "" of none."""
        if not size or not path.exists():
            return ""
        if size < self._size:
            self._sha, self._size = hashlib.sha256(), 0
        with path.open("rb") as file:
            file.seek(self._size)
            while self._size < size and (block := file.read(min(1 << 20, size - self._size))):
                self._sha.update(block)
                self._size += len(block)
        return self._sha.hexdigest()


def _cut_lines(path: Path, size: int | None = None) -> None:
    """Cut a file of lines to at most `size` bytes, and a half-written last line off."""
    if not path.exists():
        return
    with disk_errors(path), path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end if size is None else min(size, end)
        while keep:
            file.seek(keep - 1)
            if file.read(1) == b"\n":
                break
            keep -= 1
        if keep < end:
            file.truncate(keep)


T = TypeVar("T")


@final
class SharedRun:
    """`Run` for each of several processes: the calls are the same, and every rank makes them.

    Rank 0 holds the lock and the files. What goes wrong there is raised on every rank, for the
    calls that all must have seen succeed: opening, states, checkpoints, the result.
    """

    def __init__(self, ranks: Ranks, folder: Path, kind: str, config: Any, **options: Any) -> None:
        self._ranks = ranks
        self._run: Run | None = None

        def enter() -> dict[str, Any]:
            self._run = Run.open(folder, kind, config, **options)
            return {"folder": str(self._run.folder), "result": self._run.result}

        told = ranks.on_rank_zero(enter)
        self.folder = Path(told["folder"])
        self.result: dict[str, Any] | None = told["result"]

    @property
    def best_path(self) -> Path:
        return self.folder / "best.pt"

    def load_state(self) -> dict[str, Any] | None:
        return self._by_first(lambda run: run.load_state())

    def save_state(self, content: Mapping[str, Any]) -> None:
        self._by_first(lambda run: run.save_state(content))

    def save_best(self, content: Mapping[str, Any]) -> None:
        self._by_first(lambda run: run.save_best(content))

    def _by_first(self, work: Callable[[Run], T]) -> T | None:
        return self._ranks.on_rank_zero(lambda: None if self._run is None else work(self._run))

    def due(self) -> bool:
        """Whether rank 0 would save now; the others never ask for it."""
        return self._run is not None and self._run.due()

    def log(self, kind: str, step: int, /, **values: Logged) -> None:
        if self._run is not None:
            self._run.log(kind, step, **values)

    def image(self, tag: str, array: np.ndarray[Any, Any], step: int) -> None:
        if self._run is not None:
            self._run.image(tag, array, step)

    def text(self, tag: str, text: str, step: int) -> None:
        if self._run is not None:
            self._run.text(tag, text, step)

    def chart(self, title: str, tags: Sequence[str]) -> None:
        if self._run is not None:
            self._run.chart(title, tags)

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        if self._run is not None:
            self._run.hparams(config, metrics)

    def finish(self, result: Mapping[str, Any], by: str = "") -> None:
        self._by_first(lambda run: run.finish(result, by))

    def close(self) -> None:
        if self._run is not None:
            self._run.close()

    def __enter__(self) -> SharedRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


AnyRun: TypeAlias = Run | SharedRun


def open_run(ranks: Ranks, folder: Path, kind: str, config: Any, **options: Any) -> AnyRun:
    """The run folder as this process sees it; arguments and errors as of `Run.open`."""
    if ranks.size == 1:
        return Run.open(folder, kind, config, **options)
    return SharedRun(ranks, folder, kind, config, **options)
