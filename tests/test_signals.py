"""Asking a run to stop."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from rnnnas.errors import Interrupted
from rnnnas.runs.signals import StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(number, code, tmp_path):
    saved = []
    before = [signal.getsignal(watched) for watched in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        stop.check(lambda: saved.append(1), tmp_path)
        assert stop.signum is None and not saved
        os.kill(os.getpid(), number)
        assert stop.signum == number
        with pytest.raises(Interrupted, match=str(tmp_path)) as caught:
            stop.check(lambda: saved.append(2), tmp_path)
    assert saved == [2] and caught.value.exit_code == code
    assert caught.value.remedy == "the same command continues it"
    assert [signal.getsignal(watched) for watched in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_ends_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGTERM


def test_outside_the_main_thread_nothing_is_installed(tmp_path):
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with StopRequest() as stop:
            seen.append(signal.getsignal(signal.SIGINT))
            stop.check(lambda: None, tmp_path)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
