"""Files and folders that are no good text: refused, or taken with a line that says why."""

from __future__ import annotations

import gzip
import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

from attacks.harness import Sheet, run
from attacks.mutations import environment

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "house")


def lines(count: int, rng: random.Random) -> bytes:
    return "".join(
        " ".join(rng.choices(WORDS, k=rng.randint(3, 9))) + "\n" for _ in range(count)
    ).encode()


def _zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def sources(rng: random.Random) -> list[dict[str, bytes | None]]:
    """Each a set of files by path; None is a dangling link. The first is what is named."""
    good = lines(400, rng)
    image = b"\x89PNG\r\n\x1a\n" + rng.randbytes(2000)
    return [
        {"x.txt": b""}, {"x.txt": b"\n" * 5000}, {"x.txt": b" \t\n" * 5000},
        {"x.txt": rng.randbytes(50_000)}, {"x.txt": good + b"\x00" + good},
        {"x.txt": good.decode().encode("utf-16")},
        {"x.txt": good + "caf\u00e9\n".encode("latin-1")},
        {"x.txt": b"<!DOCTYPE html><html><body>" + good + b"</body></html>"},
        {"x.txt": b'{"text": "a b c"}\n' * 2000}, {"x.txt": b"id,text\n" + b"1,a b c\n" * 2000},
        {"x.txt": b"{\\rtf1\\ansi " + good + b"}"}, {"x.txt": b"%PDF-1.4\n" + good},
        {"x.txt": " ".join(f"w{i}" for i in range(20_000)).encode() + b"\n"},
        {"x.txt": b"a" * 3_000_000}, {"x.txt": "\u732b\u304c\u5bdd\u305f\u3002\n".encode() * 900},
        {"x.txt": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64
         + b"\nsize 12345\n"},
        {"x.docx": _zip({"word/document.xml": good})},
        {"x.zip": b"PK\x03\x04" + rng.randbytes(900)},
        {"x.zip": _zip({"a.exe": good})}, {"x.zip": _zip({"a.txt": b"\x00" * 300_000_000})},
        {"x.zip": _zip({f"{i}.log": b"x" for i in range(20_000)})},
        {"x.gz": gzip.compress(good)[:-200]}, {"x.txt": good[:80]},
        {"d/train.txt": good, "d/valid.txt": b"", "d/test.txt": good},
        {"d/valid.txt": good, "d/test.txt": good}, {"d/a.txt": good, "d/gone.txt": None},
        {"d/a.txt": good, "d/b.log": good, "d/c": good}, {"d/train.txt": good,
        "d/train2x.txt": good,
         "d/test.txt": good},
        {"d/train.txt": good, "d/test.txt": b"zzz qqq xxx\n" * 300, "d/valid.txt": good},
        {"d/a/1.png": image, "d/b/2.png": image}, {"d/a/1.png": image, "d/b/2.txt": good},
        {"d/x.parquet": b"PAR1" + rng.randbytes(500) + b"PAR1"}, {"d/.hidden.txt": good},
        {"x [1]*?::~.txt": b""}, {"corpora/x/notes.txt": good},
        {"x.txt": b"<?xml version='1.0'?>\n<doc>" + b"<p>a word and more</p>\n" * 900 + b"</doc>"},
        {"x.txt": b"%!PS-Adobe-3.0\n" + good}, {"x.txt": b'["a word", "and more"]\n' * 900},
    ]  # fmt: skip


def attempt(pristine: Path) -> Callable[..., None]:
    """The attempt of a campaign: one source, added; then whether the source is as it was."""

    def one(sheet: Sheet, rng: random.Random, place: Path, number: int) -> None:
        every = sources(rng)
        files = every[number % len(every)]
        home = place / f"bad-{number}"
        home.mkdir(parents=True)
        for name, data in files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            if data is None:
                (home / name).symlink_to("nowhere")
            else:
                (home / name).write_bytes(data)
        first = next(iter(files))
        named = "corpora/x" if first.startswith("corpora/") else first.split("/")[0]
        words = ("corpus", "add", "x", "--from", named, "--replace")
        outcome = run(words, place, env=environment(home), cwd=home)
        about = f"corpus {number}: {ascii(list(files))[:80]}"
        intact = all(
            os.path.islink(home / name) if data is None else (home / name).read_bytes() == data
            for name, data in files.items()
        )
        if not intact:
            sheet.note("lost", about, outcome)
        elif outcome.crashed:
            sheet.note("traceback", about, outcome)
        elif outcome.code == 0:
            told = outcome.err + outcome.out
            sheet.note("same" if len(told.splitlines()) > 2 else "silent", about, outcome)
        else:
            sheet.note("refused" if outcome.refused else "traceback", about, outcome)

    return one
