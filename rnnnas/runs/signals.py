"""Asking a run to stop: signals are noted, and acted on between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, final

from rnnnas.errors import Interrupted

_WATCHED = (signal.SIGINT, signal.SIGTERM)


@final
class StopRequest:
    """While it is entered, SIGINT and SIGTERM set `signum` instead of ending the process.

    A SIGINT after that raises KeyboardInterrupt at once. Outside the main thread, where Python
    allows no handlers, nothing is installed.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not installed from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = signum

    def check(self, save: Callable[[], object], folder: Path, signum: int | None = None) -> None:
        """Do nothing, or, where a signal came, call `save` and raise.

        Args:
            signum: the signal that all processes of a run agree on, 0 for none; else our own.

        Raises:
            Interrupted: with exit code 130 (SIGINT) or 143 (SIGTERM), after `save` returned.
        """
        signum = self.signum if signum is None else signum
        if not signum:
            return
        save()
        raise Interrupted(
            f"stopped by {signal.Signals(signum).name}; the state is saved in {folder}",
            "the same command continues it",
            128 + signum,
        )
