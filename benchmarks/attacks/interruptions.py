"""Commands stopped at random moments, by a signal or a full disk, and then given again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.harness import Outcome, Sheet, copied, run, start, wait
from attacks.mutations import environment

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
TRIES = 12  # after which a run must have ended


@dataclass(frozen=True)
class Course:
    """A command, how long it takes undisturbed, and what it says at its end."""

    words: tuple[str, ...]
    seconds: float
    baseline: Any


def leftovers(folder: Path) -> list[str]:
    """Temporaries of atomic writes and hidden folders anywhere below."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")
            if path.name.endswith((".tmp", ".partial"))]  # fmt: skip


def by_signal(courses: list[Course], pristine: Path) -> Callable[..., None]:
    """The attempt of a campaign: one signal at a random moment, then the command again."""

    def one(sheet: Sheet, rng: random.Random, place: Path, number: int) -> None:
        course = courses[number % len(courses)]
        sign = SIGNALS[number // len(courses) % len(SIGNALS)]
        home = copied(pristine, place / "home")
        child = start(course.words, place, env=environment(home), cwd=home)
        time.sleep(rng.random() * course.seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, sign)
        outcome = wait(child, place)
        about = f"{' '.join(course.words[:3])} by {sign.name} (attempt {number})"
        # While Python starts, SIGTERM ends it as it ends any process.
        asked = {0, 128 + sign, 130, 143} | ({-sign} if sign != signal.SIGINT else set())
        if outcome.code not in asked or "Traceback" in outcome.err:
            sheet.note("traceback", about, outcome)
            return
        _go_on(sheet, course, place, home, about)

    return one


def by_full_disk(courses: list[Course], pristine: Path) -> Callable[..., None]:
    """The attempt of a campaign: files may not grow beyond a random size, then they may again."""

    def one(sheet: Sheet, rng: random.Random, place: Path, number: int) -> None:
        course = courses[number % len(courses)]
        home = copied(pristine, place / "home")
        most = rng.choice((0, 100, 1_000, rng.randrange(60_000), rng.randrange(20_000)))
        outcome = run(course.words, place, env=environment(home), cwd=home, most_bytes=most)
        about = f"{' '.join(course.words[:3])} with {most} bytes a file (attempt {number})"
        # With no bytes at all, what it says of that cannot be written either.
        if outcome.code not in (0, 5) or "Traceback" in outcome.err:
            sheet.note("traceback", about, outcome)
            return
        _go_on(sheet, course, place, home, about)

    return one


def _go_on(sheet: Sheet, course: Course, place: Path, home: Path, about: str) -> None:
    outcome: Outcome = run(course.words, place, env=environment(home), cwd=home)
    if outcome.crashed:
        sheet.note("traceback", f"{about}, given again", outcome)
    elif outcome.code != 0 or outcome.told() != course.baseline:
        sheet.note("lost", about, outcome)
    elif left := leftovers(home):
        sheet.note("lost", f"{about} left {left}", outcome)
    else:
        sheet.note("same", about)
