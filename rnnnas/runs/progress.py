"""How far a run is: a live bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, final

from rnnnas.errors import visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_DRAW_SECONDS = 0.1  # between two drawings of the bar
_LINE_SECONDS = 10.0  # between two plain lines
_LARGE = 1e9  # from here on in powers of ten
_MEMORY_SECONDS = 60.0  # how far back the speed looks
_WAIT_SECONDS = 1.0  # of silence, after which what is waited for is told
_BAR, _LEAST_BAR = 24, 6  # characters of the bar; rich makes it narrower where text needs more
_NAME = 9  # characters of a title's first word that stand beside the bar

# How well-known values are written: (before, format, after); others by name.
_FORMS = {
    "perplexity": ("ppl ", ",.2f", ""),
    "tokens_per_second": ("", ",.0f", " tok/s"),
    "images_per_second": ("", ",.0f", " img/s"),
    "accuracy": ("accuracy ", ".2f", " %"),
}


@final
class Pace:
    """Steps a second, smoothed: what happened a minute ago counts 1/e of what happens now."""

    def __init__(self, done: int, now: float) -> None:
        self._done, self._now = done, now
        self._steps = self._seconds = 0.0

    def add(self, done: int, now: float) -> None:
        """Note that `done` steps are done at `now` seconds."""
        if done < self._done:  # gone back to an earlier state
            self._done = done
        elapsed = max(0.0, now - self._now)
        decay = math.exp(-elapsed / _MEMORY_SECONDS)
        self._steps = self._steps * decay + done - self._done
        self._seconds = self._seconds * decay + elapsed
        self._done, self._now = done, now

    def left(self, steps: int) -> float | None:
        """Seconds that `steps` more take; None as long as no step was seen."""
        if self._steps <= 0 or self._seconds <= 0:
            return None
        return max(0, steps) * self._seconds / self._steps


@contextmanager
def waiting(
    what: str, *, quiet: bool = False, stream: TextIO | None = None, after: float = _WAIT_SECONDS
) -> Iterator[threading.Timer | None]:
    """Say what is waited for where the block takes longer than `after` seconds, as
    'compiling kernels ...' on standard error.
    """
    if quiet:
        yield None
        return
    where = sys.stderr if stream is None else stream

    def say() -> None:
        where.write(f"{what} ...\n")
        where.flush()

    timer = threading.Timer(after, say)
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


@final
class Progress:
    """Progress of `total` steps, written to standard error.

    Args:
        total: steps as far as known; `expect` corrects it.
        waits_for: what happens before the first step is done; told until then.
        done: steps that were done before, e.g. by the run that is continued; they do not
            count in the time left.
        unit: what is counted, in the plural.
        quiet: write nothing at all.
        stream: where to write, standard error unless given.
        clock: the time in seconds; for tests.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        unit: str = "steps",
        waits_for: str = "",
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._unit, self._quiet = visible(title), total, unit, quiet
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._done = done
        self._waits_for = waits_for
        self._began = self._drawn = clock()
        self._pace = Pace(done, self._began)
        self._values: dict[str, float | str] = {}
        self._pending = False  # whether the last update has not been written yet
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        live = self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        if live and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            console = Console(file=self._stream, force_terminal=True)
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=_BAR),
                TextColumn("{task.fields[text]}", markup=False),
                console=console,
                auto_refresh=False,  # drawn from `update`: no thread beside the training
                # Standard output belongs to results; warnings go above the bar.
                redirect_stdout=False,
                redirect_stderr=self._stream is sys.stderr,
            )
            # The whole title once, above; beside the bar its first word, for narrow terminals.
            self._bar.console.print(self._title, markup=False, highlight=False)
            self._task = self._bar.add_task(
                self._title.split()[0][:_NAME],
                total=max(self._total, 1),
                completed=min(self._done, max(self._total, 1)),
                text=self._live(),
            )
            self._bar.start()
        elif self._waits_for and not self._quiet:
            self._write(f"{self._title}: {self._waits_for} ...")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pending:
            self._draw()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, done: int, **shown: float | str) -> None:
        """Say that `done` of `total` steps are done, and what to show beside it."""
        if self._quiet:
            return
        now = self._clock()
        self._pace.add(done, now)
        last = done >= self._total and self._done < self._total
        self._done = done
        self._waits_for = ""
        self._values = shown
        self._pending = True
        if last or now - self._drawn >= (_LINE_SECONDS if self._bar is None else _DRAW_SECONDS):
            self._draw()

    def expect(self, total: int) -> None:
        """Say how many steps there are, now that it is known better."""
        self._total = total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=max(total, 1))

    def finish(self) -> None:
        """Say that no more steps come: those that are done are all there are."""
        if self._done != self._total:
            self._total = self._done
            self._pending = not self._quiet

    def line(self, text: str) -> None:
        """Write a line of its own, above the bar where there is one."""
        if self._quiet:
            return
        text = visible(text)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(text)

    def _draw(self) -> None:
        self._drawn, self._pending = self._clock(), False
        if self._bar is not None and self._task is not None:
            total = max(self._total, self._done, 1)
            self._bar.update(self._task, total=total, completed=self._done, text=self._live())
            self._bar.refresh()
        else:
            self._write(self._plain())

    def _times(self) -> tuple[str, str]:
        """Time since the start, and time left where it is known."""
        left = self._pace.left(self._total - self._done)
        return _duration(self._drawn - self._began), "" if left is None else _duration(left)

    def _percent(self) -> int:
        return min(100, 100 * self._done // self._total) if self._total else 100

    def _live(self) -> str:
        """What stands beside the bar: of the values those that fit, speeds last."""
        if self._waits_for:
            return f"{self._percent()} %  {self._waits_for}"
        elapsed, left = self._times()
        text = f"{self._percent()} %  {elapsed} < {left or '-:--:--'}"
        if self._bar is None:
            return text
        name = len(self._title.split()[0][:_NAME])
        room = self._bar.console.width - name - _LEAST_BAR - 2 - len(text)
        forms = {key: _form(key, value) for key, value in self._values.items()}
        kept = set()
        for key in sorted(forms, key=lambda key: key.endswith("_per_second")):
            if len(forms[key]) + 2 <= room:
                room -= len(forms[key]) + 2
                kept.add(key)
        return "  ".join([text, *(form for key, form in forms.items() if key in kept)])

    def _plain(self) -> str:
        elapsed, left = self._times()
        share = (
            f"{self._done:,}/{max(self._done, self._total):,} {self._unit} ({self._percent()} %)"
        )
        times = f"{elapsed} elapsed" + (f", {left} left" if left else "")
        shown = "  ".join(_form(name, value) for name, value in self._values.items())
        return f"{self._title}: {share}  {times}  {shown}".rstrip()

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def _form(name: str, value: float | str) -> str:
    before, form, after = _FORMS.get(name, (name.replace("_", " ") + " ", ".4g", ""))
    if not isinstance(value, str) and abs(value) >= _LARGE:  # of a run that is about to diverge
        form = ".3g"
    return f"{before}{value}{after}" if isinstance(value, str) else f"{before}{value:{form}}{after}"


def _duration(seconds: float) -> str:
    """1:02:03, or 2 d 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour}:{minute:02}:{second:02}"
