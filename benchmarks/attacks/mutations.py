"""Files of the tool, each altered at random, and read by the command that believes it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.harness import Outcome, Sheet, copied, run


@dataclass(frozen=True)
class Target:
    """A file, relative to the home, and a command that reads it. baseline: what it said."""

    file: str
    words: tuple[str, ...]
    baseline: Any = None


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def drop(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data)), rng.randint(1, 64)
    return data[:at] + data[at + size :]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 32)) + data[at:]


def digit(data: bytes, rng: random.Random) -> bytes:
    places = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return flip(data, rng)
    at = rng.choice(places)
    other = rng.choice([c for c in b"0123456789" if c != data[at]])
    return data[:at] + bytes([other]) + data[at + 1 :]


STRANGE: tuple[Any, ...] = (None, True, -1, 0, 1e308, 2**80, "", "\ud800", "x" * 5000, [], {}, [[]],
                            {"a": {"b": []}}, "\x1b[2J")  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, (dict, list)):
        pairs: Any = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            found += _places(item, (*path, key))
    return found


def structure(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text replaced by a strange one, or taken out."""
    lines = data.decode("utf-8", "replace").splitlines()
    try:
        value, whole = json.loads(data), True
    except ValueError:
        try:
            row = rng.randrange(len(lines))
            value, whole = json.loads(lines[row]), False
        except ValueError:
            return insert(data, rng)
    places = _places(value)
    if not places:
        return b"[]"
    *way, last = rng.choice(places)
    holder = value
    for key in way:
        holder = holder[key]
    if rng.random() < 0.3:
        del holder[last]
    else:
        holder[last] = rng.choice(STRANGE)
    if whole:
        return json.dumps(value, indent=2).encode()
    lines[row] = json.dumps(value)
    return ("\n".join(lines) + "\n").encode()


def deep(data: bytes, rng: random.Random) -> bytes:
    return b"[" * rng.choice((150, 5_000, 60_000))


def empty(data: bytes, rng: random.Random) -> bytes:
    return b""


WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip, flip, cut, drop, insert, digit, digit, digit, structure, structure, structure, deep, empty
)  # fmt: skip


def attempt(targets: list[Target], pristine: Path) -> Callable[..., None]:
    """The attempt of a campaign: one file altered in one way."""

    def one(sheet: Sheet, rng: random.Random, place: Path, number: int) -> None:
        target = targets[number % len(targets)]
        home = copied(pristine, place / "home")
        path = home / target.file
        before = path.read_bytes()
        way = rng.choice(WAYS)
        after = way(before, rng)
        if after == before:
            after = before + b"x"
        path.write_bytes(after)
        outcome = run(target.words, place, env=environment(home), cwd=home)
        about = f"{target.file} by {way.__name__} (attempt {number})"
        sheet.note(verdict(outcome, target.baseline), about, outcome)
        if not path.exists():
            sheet.note("lost", about, outcome)

    return one


def environment(home: Path) -> dict[str, str]:
    return {"RNNNAS_HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"),
            "CXX": "./c++"}  # fmt: skip


def verdict(outcome: Outcome, baseline: Any) -> str:
    if outcome.crashed:
        return "traceback"
    if outcome.code == 0:
        same = outcome.told() == baseline
        return "same" if same else "refused" if outcome.said else "silent"
    return "refused" if outcome.refused else "traceback"


def quick_compiler(home: Path) -> None:
    """A compiler that hands out the library that the real one made: c++ in `home`.

    The real one takes a minute, and would run after every mutation of the cache.
    """
    number = os.fork()  # what is forked from here later must not have loaded it
    if not number:
        from rnnnas.lm.fast.cpu_library import built

        library = built().library
        if library is not None:
            shutil.copy(library._name, home / "made.so")
        os._exit(0)
    os.waitpid(number, 0)
    if not (home / "made.so").exists():
        return
    (home / "c++").write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo quick; exit; fi\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'cp "$(dirname "$0")/made.so" "$2"\n'
    )
    (home / "c++").chmod(0o755)
