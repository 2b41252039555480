"""An attack on the whole tool: files altered, commands stopped, disks full, inputs hostile.

python benchmarks/attack.py [--seed 1] [--share 1.0] [--only NAME] [--out attack.md]

Each attempt is a process of its own on a copy of a small home (forked, so that none waits for its
imports). What may come of it: refused with a reason; the same result as undisturbed, or one that
is computed anew and says so. What may not: silent (another result without a word), a traceback (or
a crash, or no answer), lost (a run that does not end as it would have, a file that is gone).
Exit code 1 where there is one of the latter three.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: what is forked computes with one thread
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # as the command sets it
os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from attacks import bad_corpora, hostile, interruptions, mutations  # noqa: E402
from attacks.harness import FAULTS, VERDICTS, Sheet, campaign, preload, run  # noqa: E402
from attacks.interruptions import Course  # noqa: E402
from attacks.mutations import Target, environment  # noqa: E402

SMALL = ("--preset", "smoke", "--seed", "3", "--json", "--device", "cpu", "--hidden", "8",
         "--set", "windows.streams=4", "--set", "windows.limit=12", "--set", "valid_streams=4",
         "--set", "model.precision=float32", "--set", "save_seconds=0.2")  # fmt: skip
TRAIN = ("train", "--corpus", "mine", *SMALL, "--set", "test_streams=4", "--epochs", "3")
CELL = "sigmoid0 relu1 tanh1"
TRAINED = (*TRAIN, "--genotype", CELL, "--out", "t")
SEARCHED = ("search", "--corpus", "mine", *SMALL, "--out", "s", "--set", "model.nodes=3")
PRICED = (*SEARCHED[:-3], "l", "--set", "model.nodes=3", "--set", "latency.weight=0.1")
STOPPED = (*TRAINED[:-1], "half")
EVAL = ("eval", "t", "--json", "--device", "cpu")
ADDED = ("corpus", "add", "more", "--from", "mine.txt")


def prepared(home: Path, place: Path) -> tuple[list[Target], list[Course]]:
    """A home with a corpus, runs finished and half done; what is attacked in it."""
    home.mkdir(parents=True)
    (home / "mine.txt").write_bytes(bad_corpora.lines(1200, random.Random(1)))
    env = environment(home)

    def do(*words: str) -> tuple[float, object]:
        began = time.monotonic()
        print(f"  {' '.join(words[:3])} ...", flush=True)
        outcome = run(words, place, env=env, cwd=home)
        if outcome.code:
            raise SystemExit(f"{' '.join(words)} failed: {outcome.err}")
        return time.monotonic() - began, outcome.told()

    do("corpus", "add", "mine", "--from", "mine.txt", "--vocab", "words")
    mutations.quick_compiler(home)
    # The kernels lie in the cache: a run that cannot write them there says so, goes without, and
    # ends with other digits.
    do(*TRAINED)
    shutil.rmtree(home / "t")
    courses = []
    bare = place / "bare"
    shutil.copytree(home, bare)
    for words in (TRAINED, SEARCHED, ADDED):
        seconds, told = do(*words)
        courses.append(Course(words, seconds, told))
    shutil.rmtree(home / "corpora" / "more")
    do(*EVAL)
    do(*PRICED)
    do(*TRAINED[:-1], "half")
    (home / "half" / "result.json").unlink()
    (home / "l" / "result.json").unlink()
    do(*DYNAMIC_KEPT)
    cache = sorted(str(path.relative_to(home)) for path in (home / "cache/rnnnas").iterdir())
    targets = [
        Target("corpora/mine/corpus.json", ("corpus", "info", "mine", "--json")),
        Target("corpora/mine/vocab.json", EVAL),
        Target("corpora/mine/test.bin", EVAL),
        Target("corpora/mine/train.bin", TRAINED),
        Target("t/result.json", TRAINED),
        Target("t/result.json", ("runs", "compare", "t", "s", "--json")),
        Target("t/config.json", TRAINED),
        Target("t/metrics.jsonl", TRAINED),
        Target("t/best.pt", EVAL),
        Target("t/best.dynamic.json", DYNAMIC_KEPT),
        Target("t/genotype.json", ("show", "t")),
        Target("s/result.json", SEARCHED),
        Target("s/result.json", ("show", "s")),
        Target("s/metrics.jsonl", SEARCHED),
        Target("s/state.pt", SEARCHED),
        Target("half/state.pt", STOPPED),
        Target("half/metrics.jsonl", STOPPED),
        Target("half/best.pt", STOPPED),
        Target("l/latency.json", PRICED),
        *(Target(file, EVAL) for file in cache),
    ]
    known = []
    for target in targets:
        copy = place / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(home, copy)
        outcome = run(target.words, place, env=environment(copy), cwd=copy)
        if outcome.code:
            raise SystemExit(f"{' '.join(target.words)} failed: {outcome.err}")
        known.append(replace(target, baseline=outcome.told()))
    return known, courses


# All is given, or every mutation would cost a search for the best.
DYNAMIC_KEPT = (*EVAL, "--dynamic", "--set", "dynamic.lr=0.001", "--set", "dynamic.epsilon=0.0002",
                "--set", "dynamic.decay=0.003", "--set", "dynamic.steps=20",
                "--set", "dynamic.windows=5")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of the attempts of a campaign")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="campaigns whose name holds this")
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    began = time.monotonic()
    preload()
    sheets: list[Sheet] = []
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        work = Path(folder)
        home, bare = work / "home", work / "first" / "bare"
        targets, courses = prepared(home, work / "first")
        print(f"prepared in {time.monotonic() - began:.0f} s", flush=True)
        every = hostile.inputs()
        plans = {
            "mutations": (250, mutations.attempt(targets, home)),
            "interruptions": (55, interruptions.by_signal(courses, bare)),
            "full disks": (24, interruptions.by_full_disk(courses, bare)),
            "hostile inputs": (len(every), hostile.attempt(every, home)),
            "bad corpora": (38, bad_corpora.attempt(home)),
        }
        for name, (count, attempt) in plans.items():
            if options.only in name:
                count = max(1, round(count * options.share))
                sheets.append(
                    campaign(name, count, attempt, work, seed=options.seed, workers=options.workers)
                )
    table = [
        "| campaign | tried | " + " | ".join(VERDICTS) + " |", "|---|" + "---|" * 6,
        *(sheet.row() for sheet in sheets),
    ]  # fmt: skip
    faults = sum(sheet.counts[verdict] for sheet in sheets for verdict in FAULTS)
    minutes = (time.monotonic() - began) / 60
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    told = "\n".join(
        [*table, "", f"Seed {options.seed}, {minutes:.1f} minutes, {options.workers} processes at "
         f"a time, {today}, on {processor()}.", ""]
    )  # fmt: skip
    print(told)
    if options.out is not None:
        options.out.write_text(
            f"# The tool under attack\n\n`python benchmarks/attack.py`\n\n{told}"
        )
    return 1 if faults else 0


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unknown processor"


if __name__ == "__main__":
    sys.exit(main())
