"""Hostile settings, genotypes, environment variables, files and names, each to be refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks.harness import Sheet, copied, run
from attacks.mutations import environment


@dataclass(frozen=True)
class Input:
    """A command with something in it that is not meant so.

    fine: whether it may as well be taken (exit code 0). files: written into the home before.
    """

    words: tuple[str, ...]
    fine: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


SEARCH = ("search", "--corpus", "mine", "--preset", "smoke", "--dry-run")
TRAIN = ("train", "--corpus", "mine", "--preset", "smoke", "--dry-run")

SETTINGS = (
    "model.layers=1000000", "model.hidden=1000000000", "model.hidden=0", "model.hidden=-5",
    "model.hidden=1e400", "model.hidden=nan", "model.hidden=", "model.hidden", "=5", "epochs=0",
    "epochs=-1", "epochs=1e99", "epochs=true", "weights.lr=nan", "weights.lr=inf", "weights.lr=-1",
    "weights.lr=[1]", "weights.lr='a'", "noise.dropout=1.0", "noise.dropout=2", "noise.dropout=-1",
    "windows.streams=0", "windows.streams=10000000", "windows.bptt=0", "windows.bptt=9999999999",
    "no.such=1", "model=5", "model.hidden.x=1", "__class__=1", "model.__init__=1", "seed=-1",
    "seed=1.5", "valid_streams=0", "valid_streams=99999999", "save_seconds=nan",
    "save_seconds=-1", "model.precision=float3", "model.path=../../etc",
    "model.hidden=" + "9" * 5000,
    "weights.lr=" + "[" * 5000, "model.hidden=\x1b[2J", "\ud800=1", "weights.clip=-inf",
)  # fmt: skip
SEARCH_SETTINGS = (
    "alphas.order=third", "alphas.lr=nan", "space.nodes=-1", "space.nodes=1000000",
    "space.ops=[]", 'space.ops=["tanh"]', 'space.ops=["\\ud800"]', 'space.ops=["no", "such"]',
    "method=none", "latency.table=/dev/zero", "latency.table=/dev/null", "latency.weight=nan",
    "space.edges_per_node=100000", "alphas.warmup=7",
)  # fmt: skip
GENOTYPES = (
    "", " ", "tanh", "tanh9", "tanh-1", "tanh0 relu5", "\ud8000", "tanh0\x00relu1", "x" * 100_000,
    "tanh0 " * 20_000, "[" * 60_000, "Genotype(recurrent=[], concat=range(1, 9))",
    "Genotype(recurrent=[('tanh', 0)], concat=range(10**12))",
    "Genotype(recurrent=[('tanh', 0)], concat=range(1, 10**9))",
    "Genotype(recurrent=__import__('os').system('id'), concat=range(1, 9))",
    "Genotype(recurrent=[('tanh', 10**10**10)], concat=range(1, 2))",
    "Genotype(recurrent=[('tanh', 0.5)], concat=range(1, 2))", "Genotype(", "Genotype()",
    "Genotype(normal=[('sep_conv_3x3', 1)], reduce=[])", "/dev/null", "/dev/zero", "/", ".", "..",
    "random:-1", "random:x", "no/such file.json", "tanh0 relu1 \u202e",
)  # fmt: skip
ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "x"}, {"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "2",
    "RANK": "x"},
    {"WORLD_SIZE": "2", "RANK": "2"}, {"WORLD_SIZE": "2", "RANK": "-1"},
    {"WORLD_SIZE": "2", "RANK": "0"}, {"WORLD_SIZE": "9" * 400, "RANK": "0"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"},
    {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "x"},
    {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "", "MASTER_PORT": ""},
    {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a..b", "MASTER_PORT": "29500"},
    {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "\x1b[2J", "MASTER_PORT": "29500"},
    {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
     "RNNNAS_RANKS_SECONDS": "2"},
    {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
     "RNNNAS_RANKS_SECONDS": "soon"},
)  # fmt: skip
HARMLESS: tuple[dict[str, str], ...] = (
    {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1"}, {"RANK": "0"}, {"CXX": "g++ 'half"},
    {"CXX": "/no/such/compiler"}, {"CXX": "false"}, {"RNNNAS_KERNELS": "perhaps"},
    {"XDG_CACHE_HOME": "/proc/no/such"}, {"XDG_CACHE_HOME": "/dev/null"}, {"COLUMNS": "x"},
    {"OMP_NUM_THREADS": "x"}, {"LANG": "xx_YY.no", "LC_ALL": "C"}, {"TMPDIR": "/no/such/folder"},
    {"HOME": "/no/such/home"}, {"RNNNAS_PARENT": ""},
)  # fmt: skip
FILES: tuple[bytes, ...] = (
    b"", b"[" * 60_000, b'{"a":' * 60_000, b"null", b"[]", b"3", b'"x"', b"{",
    b"\xff\xfe{\x00}\x00",
    b'{"recurrent": null}', b'{"recurrent": {"nodes": [[["tanh", 0]]], "concat": "x"}}',
    b'{"recurrent": {"nodes": [[["tanh", 1e999]]], "concat": [1]}}', b"a." * 20_000 + b"b = 1",
    b'{"recurrent": {"nodes": [[["\\ud800", 0]]], "concat": [1]}}',
    b'{"recurrent": {"nodes": [[["\\u001b[2J", 0]]], "concat": [1]}}',
    b'{"recurrent": {"nodes": ' + b"[" * 90 + b"]" * 90 + b', "concat": [1]}}',
    json.dumps({"recurrent": {"nodes": [[["tanh", 0]]] * 100_000, "concat": [1]}}).encode(),
    bytes(range(256)) * 40,
)  # fmt: skip


def inputs() -> list[Input]:
    """All of them, in a fixed order."""
    found = [Input((*TRAIN, "--genotype", "tanh0 relu1", "--set", s)) for s in SETTINGS]
    found += [Input((*SEARCH, "--set", s)) for s in SEARCH_SETTINGS]
    found += [Input((*TRAIN, "--genotype", text)) for text in GENOTYPES if "\x00" not in text]
    run = ("train", "--corpus", "mine", "--preset", "smoke", "--genotype", "tanh0", "--out", "none")
    found += [Input(run, env=env) for env in ENVIRONMENTS]
    show = (*TRAIN, "--genotype", "tanh0 relu1")
    found += [Input(show, fine=True, env=env) for env in HARMLESS]
    for data in FILES:
        found.append(Input(("show", "given.json"), files={"given.json": data}))
        found.append(Input((*TRAIN, "--config", "given.toml"), files={"given.toml": data}))
        found.append(Input(("eval", "given.pt"), files={"given.pt": data}))
    names = ("", "..", ".", "/", "a/b/c", "x" * 300, "\x1b[2J", "\ud800", "-", "con\nnul", "pydocs")
    text = {"t.txt": b"a word and a word\n" * 500}
    found += [Input(("corpus", "add", name, "--from", "t.txt"), files=text) for name in names]
    found += [
        Input(("corpus", "add", "x", "--from", way)) for way in ("", "/dev/zero", "/dev/null")
    ]
    found += [Input((kind, place)) for place in ("/", "/dev/null", "none", "mine.txt")
              for kind in ("eval", "sample", "report", "show")]  # fmt: skip
    return found


def attempt(every: list[Input], pristine: Path) -> Callable[..., None]:
    """The attempt of a campaign: one of the inputs."""

    def one(sheet: Sheet, rng: random.Random, place: Path, number: int) -> None:
        given = every[number % len(every)]
        home = copied(pristine, place / "home")
        for name, data in given.files.items():
            (home / name).write_bytes(data)
        env: dict[str, Any] = {**environment(home), **given.env}
        outcome = run(given.words, place, env=env, cwd=home)
        what = [
            word if len(word) < 80 else f"{word[:60]}... ({len(word):,})" for word in given.words
        ]
        about = ascii(" ".join(what)) + (
            f" with {ascii(dict(given.env))}"[:200] if given.env else ""
        )
        if given.files:
            about += f" of {ascii(next(iter(given.files.values()))[:50])}"
        raw = [c for c in outcome.err if ord(c) < 32 and c not in "\t\n\r" or 127 <= ord(c) < 160]
        if outcome.crashed or raw:
            sheet.note("traceback", about + (" (raw control characters)" if raw else ""), outcome)
        elif outcome.code == 0:
            sheet.note("same" if given.fine else "silent", about, outcome)
        else:
            sheet.note("refused" if outcome.refused else "traceback", about, outcome)

    return one
