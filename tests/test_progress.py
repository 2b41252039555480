"""The bar and the plain lines; time is given by the test."""

from __future__ import annotations

import io
import re
import sys

import pytest

from rnnnas.runs.progress import Pace, Progress, waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plain(text: str) -> str:
    """Without the terminal's control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm-256color")


def test_plain_lines_come_every_ten_seconds_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    with Progress("train ptb", 1000, stream=stream, clock=clock) as bar:
        for done in range(10, 1001, 10):
            clock.now += 0.5  # 20 steps a second, 50 s in all
            bar.update(done, perplexity=1312.456, tokens_per_second=5400.4, epoch="2/6")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == (
        "train ptb: 200/1,000 steps (20 %)  0:00:10 elapsed, 0:00:40 left  "
        "ppl 1,312.46  5,400 tok/s  epoch 2/6"
    )
    assert "1,000/1,000 steps (100 %)  0:00:50 elapsed, 0:00:00 left" in lines[-1]
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_the_last_line_comes_at_once_and_only_once():
    stream, clock = io.StringIO(), Clock()
    with Progress("t", 3, stream=stream, clock=clock) as bar:
        for done in (1, 2, 3):
            clock.now += 1
            bar.update(done)
        assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("3/3") == 1


def test_a_run_that_stops_early_says_how_far_it_came():
    stream, clock = io.StringIO(), Clock()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress("t", 100, stream=stream, clock=clock, unit="windows") as bar,
    ):
        clock.now += 1
        bar.update(7)
        raise KeyboardInterrupt
    assert "7/100 windows (7 %)" in stream.getvalue()


def test_steps_done_before_do_not_count_in_the_time_left():
    stream, clock = io.StringIO(), Clock()
    with Progress("t", 1000, done=900, stream=stream, clock=clock) as bar:
        clock.now += 10
        bar.update(910)  # one step a second
    assert "0:00:10 elapsed, 0:01:30 left" in stream.getvalue()


def test_pace_follows_a_change_of_speed_and_survives_going_back():
    pace = Pace(0, 0.0)
    assert pace.left(10) is None
    for second in range(1, 101):
        pace.add(10 * second, float(second))
    assert pace.left(100) == pytest.approx(10)
    for second in range(101, 401):  # 1 step a second from here, for five memories
        pace.add(1000 + second - 100, float(second))
    assert pace.left(100) == pytest.approx(100, rel=0.07)
    pace.add(50, 401.0)  # back to an earlier state
    left = pace.left(100)
    assert left is not None and 90 < left < 110
    assert pace.left(-5) == 0


def test_a_pause_is_not_forgotten_at_once():
    pace = Pace(0, 0.0)
    for second in range(1, 61):
        pace.add(second, float(second))
    pace.add(60, 90.0)  # 30 s of evaluation
    left = pace.left(60)
    assert left is not None and 80 < left < 140


def test_lines_and_values():
    stream, clock = io.StringIO(), Clock()
    with Progress("t", 10, stream=stream, clock=clock) as bar:
        bar.line("loss [not] finite")
        clock.now += 100_000
        bar.update(5, gradient_norm=0.123456, accuracy=91.2345, lr=20)
    first, second = stream.getvalue().splitlines()
    assert first == "loss [not] finite"
    assert second.endswith("gradient norm 0.1235  accuracy 91.23 %  lr 20")
    assert "1 d 3:46:40 elapsed" in second


def test_quiet_writes_nothing():
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        with Progress("t", 10, stream=stream, quiet=True, clock=clock) as bar:
            clock.now += 100
            bar.update(10, perplexity=3.0)
            bar.line("x")
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_live_bar():
    stream, clock = Terminal(), Clock()
    before = sys.stdout
    with Progress("train [ptb]", 1000, stream=stream, clock=clock) as bar:
        assert sys.stdout is before  # results on standard output are never caught
        clock.now += 50
        bar.update(500, perplexity=312.4, tokens_per_second=5400.0, epoch="3/6")
        shown = plain(stream.getvalue())
        for part in (
            "train [ptb]", "━", "50 %", "0:00:50 < 0:00:50",
            "ppl 312.40", "5,400 tok/s", "epoch 3/6",
        ):  # fmt: skip
            assert part in shown
        bar.line("epoch 3 [done]")
        assert "epoch 3 [done]\n" in plain(stream.getvalue())
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is given back


def test_the_bar_fits_eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream, clock = Terminal(), Clock()
    title = "search darts-1st on a-corpus-with-a-long-name"
    with Progress(title, 50_000, stream=stream, clock=clock) as bar:
        clock.now += 80
        bar.update(12_000, perplexity=312.4, tokens_per_second=5400.0, epoch="2/6")
        last = plain(stream.getvalue()).split("\r")[-1]
    assert title in plain(stream.getvalue())  # whole, above the bar
    for part in ("search", "━━━━━━", "24 %", "< 0:04:13", "ppl 312.40", "5,400 tok/s", "2/6"):
        assert part in last
    assert len(last) <= 80


def test_the_bar_is_drawn_at_most_ten_times_a_second():
    stream, clock = Terminal(), Clock()
    with Progress("t", 10_000, stream=stream, clock=clock) as bar:
        for done in range(1, 5001):
            clock.now += 0.001
            bar.update(done)
    assert 40 <= plain(stream.getvalue()).count(" %  ") <= 55
    assert "50 %  0:00:05 < 0:00:05" in plain(stream.getvalue())


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress("t", 1, stream=stream) as bar:
        bar.update(1)
    assert "\x1b" not in stream.getvalue() and "1/1 steps" in stream.getvalue()


def test_standard_error_is_the_default_and_no_total_is_no_error(capsys):
    with Progress("t", 0) as bar:
        bar.line("x")
        bar.update(0)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("x\n")


@pytest.mark.parametrize("columns", [60, 66, 80, 100])
def test_the_bar_fits_narrow_terminals(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream, clock = Terminal(), Clock()
    with Progress("perturbation of a corpus", 50_000, stream=stream, clock=clock) as bar:
        clock.now += 80_000
        bar.update(49_999, perplexity=1312.4, tokens_per_second=105400.0, epoch="12/60")
    for line in re.split(r"[\r\n]", plain(stream.getvalue())):
        assert len(line) <= columns
        if "99 %" in line:
            assert "22:13:20 < " in line and "━" in line
            assert "ppl" in line and ("epoch" in line) == (columns >= 80)
            assert ("tok/s" in line) == (columns >= 100)


def test_values_that_matter_most_are_shown_where_sixty_columns_are(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream, clock = Terminal(), Clock()
    with Progress("search darts", 50_000, stream=stream, clock=clock) as bar:
        clock.now += 80
        bar.update(12_000, perplexity=312.4, tokens_per_second=5400.0, epoch="2/6")
        last = plain(stream.getvalue()).split("\r")[-1]
    assert "24 %  0:01:20 < 0:04:13  ppl 312.40  epoch 2/6" in last and len(last) <= 60


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_finished_bar_is_at_one_hundred_percent(kind):
    """More steps than expected, as many as corrected, or fewer: it ended all the same."""
    for steps in (90, 100, 130):
        stream, clock = kind(), Clock()
        with Progress("t", 100, stream=stream, clock=clock) as bar:
            for done in range(1, steps + 1):
                clock.now += 11
                bar.update(done)
            bar.finish()
        shown = [int(p) for p in re.findall(r"(\d+) %", plain(stream.getvalue()))]
        assert shown[-1] == 100 and max(shown) == 100
        assert f"({shown[-1]} %)" in stream.getvalue() or isinstance(stream, Terminal)


def test_a_corrected_total_counts():
    stream, clock = io.StringIO(), Clock()
    with Progress("t", 100, stream=stream, clock=clock) as bar:
        bar.expect(200)
        clock.now += 11
        bar.update(50)
    assert "50/200 steps (25 %)" in stream.getvalue()


def test_a_bar_says_what_it_waits_for_at_the_start():
    stream, clock = io.StringIO(), Clock()
    with Progress("search x", 10, waits_for="preparing", stream=stream, clock=clock) as bar:
        assert stream.getvalue() == "search x: preparing ...\n"
        clock.now += 11
        bar.update(1)
    assert stream.getvalue().count("preparing") == 1
    live = Terminal()
    with Progress("search x", 10, waits_for="preparing", stream=live, clock=clock) as bar:
        assert "preparing" in plain(live.getvalue())
        clock.now += 11
        bar.update(1, perplexity=3.0)
        assert "preparing" not in plain(live.getvalue()).split("\r")[-1]
    with Progress("x", 1, waits_for="preparing", quiet=True, stream=stream) as bar:
        pass
    assert stream.getvalue().count("preparing") == 1


def test_what_is_waited_for_is_told_after_a_while_only():
    stream = io.StringIO()
    with waiting("compiling kernels", stream=stream, after=0) as timer:
        assert timer is not None
        timer.join()
        assert stream.getvalue() == "compiling kernels ...\n"
    with waiting("opening", stream=stream, after=3600), waiting("x", stream=stream, quiet=True):
        pass
    assert stream.getvalue() == "compiling kernels ...\n"
