"""A run folder that several processes share: rank 0 writes it, and all know what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, final

from rnnnas.ranks import Ranks
from rnnnas.run import Run

if TYPE_CHECKING:
    import numpy as np

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

        told = ranks.led(enter)
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
        return self._ranks.led(lambda: None if self._run is None else work(self._run))

    def due(self) -> bool:
        """Whether rank 0 would save now; the others never ask for it."""
        return self._run is not None and self._run.due()

    def log(self, kind: str, step: int, /, **values: float | int | str | None) -> None:
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

    def finish(self, result: Mapping[str, Any]) -> None:
        self._by_first(lambda run: run.finish(result))

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
