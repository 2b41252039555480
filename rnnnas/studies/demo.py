"""The whole tool in three minutes: search a cell, train it, compare it with simpler ways."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rnnnas.config.presets import resolve
from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.data.corpus import Corpus, corpus_info, open_corpus
from rnnnas.errors import Interrupted, RnnnasError
from rnnnas.runs.sealed import read_result
from rnnnas.runs.signals import StopRequest
from rnnnas.searching.halving import HalvingJob
from rnnnas.searching.race_budget import race_seconds
from rnnnas.searching.run import search
from rnnnas.studies.local_jobs import LocalRunner, last_words
from rnnnas.training.run import train

PRESET = "demo"
SEARCHING = 0.45  # of a time budget
# Seconds of trainings, the race's and the last ones, that leave a demo within three
# minutes. A slower machine, or a longer text, gets one of these shares of the preset's steps.
SECONDS = 140.0
SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05)
RANDOMS = 3  # random cells that are trained to the end, the first that the race met


def demo(
    corpus_name: str, folder: Path, *, seed: int, device: torch.device,
    say: Callable[[str], None], seconds: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Search on a corpus; train the found cell, random ones and an LSTM the same way; compare.

    Args:
        folder: takes the run folders; what is finished there is not done again.
        say: gets each headline of what goes on.
        seconds: a time budget for all of it; None: what the preset takes, in steps that this
            machine does in three minutes.

    Returns:
        genotype, cell (its short text), test_perplexity of the found cell, random_cells (of each
        cell and test_perplexity) and random_mean_test_perplexity, lstm_test_perplexity,
        bigram_perplexity and unigram_perplexity, all on the same test text, runs (folders),
        parameters (of the trained networks), seconds (of this call).
    """
    began = time.perf_counter()
    corpus = open_corpus(corpus_name)
    described = corpus_info(corpus)
    say(
        f"corpus {corpus_name}: {described['train']:,} training tokens, "
        f"vocabulary {described['vocabulary']:,}"
    )
    name = f"demo-{corpus.folder.name}-s{seed}" + (f"-{seconds:g}s" if seconds else "")
    flags: dict[str, Any] = {"corpus": corpus_name, "seed": seed}
    if seconds is not None:
        flags["seconds"] = SEARCHING * seconds
    config = resolve("search", preset=PRESET, file=None, settings=(), flags=flags)
    settings: tuple[str, ...] = ()  # of the trainings, beside the preset's
    if seconds is None:
        share = share_of_steps(config, corpus, folder, name, device)
        if share < 1:
            name += f"-{100 * share:g}pc"
            config, settings = shortened(config, corpus, share)
            say(
                f"to stay within three minutes: {100 * share:g} % of the usual steps "
                "(--minutes N gives them more time)"
            )
    say("1/2 searching a cell: many are trained a little, the best of them further")
    found = search(config, corpus, folder / f"{name}-search", device=device)
    say(f"    found: {found['cell']}")
    randoms = found["random_cells"][:RANDOMS]
    cells = {"found": found["cell"], "lstm": "lstm"}
    cells |= {f"random-{number}": cell for number, cell in enumerate(randoms, 1)}
    say(f"2/2 training it, an LSTM and {len(randoms)} random cells of the race, all the same way")
    left = None if seconds is None else (1 - SEARCHING) * seconds
    results = _trained(cells, corpus, folder, name, seed, device, say, left, settings)
    tests = {which: float(result["test_perplexity"]) for which, result in results.items()}
    random_cells = [
        {"cell": cells[which], "test_perplexity": tests[which]}
        for which in cells
        if which.startswith("random")
    ]
    return {
        "genotype": found["genotype"],
        "cell": found["cell"],
        "test_perplexity": tests["found"],
        "random_cells": random_cells,
        "random_mean_test_perplexity": math.fsum(c["test_perplexity"] for c in random_cells)
        / len(random_cells),
        "lstm_test_perplexity": tests["lstm"],
        "bigram_perplexity": described["bigram_perplexity"],
        "unigram_perplexity": described["unigram_perplexity"],
        "parameters": results["found"]["parameters"],
        "runs": {"search": found["run"], **{w: r["run"] for w, r in results.items()}},
        "seconds": round(time.perf_counter() - began, 3),
    }


def share_of_steps(
    config: SearchConfig, corpus: Corpus, folder: Path, name: str, device: torch.device
) -> float:
    """The share of the preset's steps that `SECONDS` hold, or that a demo begun here has."""
    for share in SHARES:
        kept = name if share == 1 else f"{name}-{100 * share:g}pc"
        if (folder / f"{kept}-search").exists():
            return share
    job = HalvingJob(config, corpus, device)
    steps, epochs = usual_steps(corpus)
    rounds = math.ceil((RANDOMS + 2) / job.workers)
    race = race_seconds(job)
    # A race's steps are of the trainings' size, two at a time as well.
    trainings = race * rounds * job.workers * epochs * steps / job.plan.total_steps
    return next((share for share in SHARES if share * (race + trainings) <= SECONDS), SHARES[-1])


def usual_steps(corpus: Corpus) -> tuple[int, int]:
    """About how many steps a pass of the preset's trainings has, and how many passes they are."""
    config: TrainConfig = resolve(
        "train", preset=PRESET, file=None, settings=(),
        flags={"corpus": corpus.name, "genotype": "LSTM"},
    )  # fmt: skip
    tokens = corpus_info(corpus)["train"]
    return max(1, tokens // (config.windows.streams * config.windows.bptt)), config.epochs


def shortened(
    config: SearchConfig, corpus: Corpus, share: float
) -> tuple[SearchConfig, tuple[str, ...]]:
    """The search and the trainings' settings with a share of the steps."""
    steps, epochs = usual_steps(corpus)
    black = replace(config.blackbox, windows=max(20, round(share * config.blackbox.windows)))
    passes = math.ceil(share * epochs)
    settings = [f"epochs={passes}"]
    if share * epochs < passes:
        settings.append(f"windows.limit={max(1, round(share * epochs / passes * steps))}")
    return replace(config, blackbox=black), tuple(settings)


def _trained(
    cells: Mapping[str, str],
    corpus: Corpus,
    folder: Path,
    name: str,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
    seconds: float | None,
    settings: tuple[str, ...],
) -> dict[str, dict[str, Any]]:
    """The result of each cell's training, by its name in `cells`; seconds: for all of them.

    With one thread, or on a GPU, one after the other; else as many side by side as torch has
    threads, each in a process with its share of the cores.
    """
    slots = torch.get_num_threads() if device.type == "cpu" else 1
    rounds = -(-len(cells) // slots)
    each = None if seconds is None else seconds / rounds
    if slots == 1:
        results = {}
        for which, cell in cells.items():
            flags = {"corpus": corpus.name, "seed": seed, "genotype": cell, "seconds": each}
            config = resolve("train", preset=PRESET, file=None, settings=settings, flags=flags)
            say(f"    {which}: {cell}")
            results[which] = train(config, corpus, folder / f"{name}-{which}", device=device)
        return results
    waiting = {
        which: (
            *("train", "--corpus", corpus.name, "--preset", PRESET, "--seed", str(seed)),
            *("--genotype", cell, "--device", str(device), "--json"),
            *(word for setting in settings for word in ("--set", setting)),
            *(() if each is None else ("--seconds", f"{each:.1f}")),
            *("--out", str((folder / f"{name}-{which}").absolute())),
        )
        for which, cell in cells.items()
    }
    runner = LocalRunner(folder / f"{name}-search", min(slots, len(waiting)))
    left, results = list(waiting), {}
    with StopRequest() as stop:
        try:
            while len(results) < len(cells):
                while left and runner.free():
                    runner.start({left[0]: waiting[left.pop(0)]})
                for which, code in runner.ended().items():
                    if code:
                        words = last_words(folder / f"{name}-search", which)
                        raise RnnnasError(f"training {which} failed: {words}")
                    results[which] = read_result(folder / f"{name}-{which}") or {}
                    test = results[which]["test_perplexity"]
                    say(f"    {which}: test perplexity {test:.2f}  ({cells[which]})")
                stop.check(lambda: None, folder)
                time.sleep(runner.poll_seconds)
        except Interrupted:
            runner.stop()
            raise
        finally:
            runner.kill()
    return {which: results[which] for which in cells}
