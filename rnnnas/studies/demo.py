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
from rnnnas.nas.genotype import Genotype
from rnnnas.runs.files import read_object
from rnnnas.runs.sealed import CONFIG, read_result, read_sealed, write_sealed
from rnnnas.runs.signals import StopRequest
from rnnnas.searching.halving import HalvingJob
from rnnnas.searching.race_budget import race_seconds
from rnnnas.searching.run import search
from rnnnas.studies.local_jobs import LocalRunner, last_words
from rnnnas.training.run import train

PRESET = "demo"
TRAININGS = "trainings.json"  # in the search's folder: which, and how long
_ANEW = "remove it, and the demo's runs of this seed, to begin anew"
SEARCHING = 0.45  # of a time budget
# Seconds that a race and the trainings may take together, by what a timed step lets expect: with
# the start before and the tests after, a demo is within three minutes. On a slower machine, or with
# a longer text, the race gets the share of the preset's steps that takes so long, and the trainings
# the share that ends by then.
WHOLE_SECONDS, RACE_SECONDS, END_SECONDS = 150.0, 40.0, 165.0
# None between one pass and one and a half: it would read the beginning of the text twice.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.45, 0.4, 0.35, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05)
# Of the race's best and of the random cells that it met first so many are trained to the end, the
# most for which there is time. With an LSTM they make four, three and two rounds on two cores. The
# least has longer trainings where time is short: after fewer steps a network is behind a bigram
# model, and after as many two cells more tell hardly anything (benchmarks/halving.md).
FIELDS = ((4, 3), (2, 3), (1, 2))
SHORT, LONGER = "to stay within three minutes:", "(--minutes N gives more)"


def demo(
    corpus_name: str, folder: Path, *, seed: int, device: torch.device,
    say: Callable[[str], None], seconds: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Search on a corpus; train the race's best cells, random ones and an LSTM the same way.

    The found cell is, of the race's best and the random cells beside them, the one that its whole
    training left the best on the validation text, so that no demo ends with a cell that it has seen
    to be worse than chance; all are compared on the test text.

    Args:
        folder: takes the run folders; what is finished there is not done again.
        say: gets each headline of what goes on.
        seconds: a time budget for all of it; None: what the preset takes, in steps that this
            machine does in three minutes.

    Returns:
        genotype, cell (its short text), test_perplexity and valid_perplexity of the found cell,
        its origin ("race", or "random" where a random cell was better than the race's best),
        finalists and random_cells (of each cell and both perplexities; one of these is the
        found one), random_mean_test_perplexity, lstm_test_perplexity,
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
    if seconds is None:
        config = shortened_race(config, corpus, folder / f"{name}-search", device, say)
    say("1/2 searching a cell: many are trained a little, the best of them further")
    found = search(config, corpus, folder / f"{name}-search", device=device)
    say(f"    found: {found['cell']}")
    settings: tuple[str, ...] = ()  # of the trainings, beside the preset's
    best_cells, others = FIELDS[1]
    if seconds is None:
        job = HalvingJob(config, corpus, device)
        step = float(found["seconds"]) * job.workers / job.plan.total_steps
        left = END_SECONDS - (time.perf_counter() - began)
        settings, (best_cells, others) = shortened_trainings(
            corpus, folder / f"{name}-search" / TRAININGS, left / step, job.workers, say
        )
    randoms = found["random_cells"][:others]
    finalists = found.get("finalists", [found["cell"]])[:best_cells]  # older results name one
    cells = {f"finalist-{number}": cell for number, cell in enumerate(finalists, 1)}
    cells["lstm"] = "lstm"
    cells |= {f"random-{number}": cell for number, cell in enumerate(randoms, 1)}
    say(
        f"2/2 training the race's best ({len(finalists)}), an LSTM and random cells "
        f"({len(randoms)}), all the same way"
    )
    given = None if seconds is None else (1 - SEARCHING) * seconds
    first = {cell: which for which, cell in reversed(cells.items())}  # one cell may be both
    each = {which: cell for which, cell in cells.items() if first[cell] == which}
    trained = _trained(each, corpus, folder, name, seed, device, say, given, settings)
    results = {which: trained[first[cell]] for which, cell in cells.items()}
    measured = {
        which: {
            "cell": cells[which],
            **{key: float(result[key]) for key in ("valid_perplexity", "test_perplexity")},
        }
        for which, result in results.items()
    }
    best = min(
        (which for which in cells if which != "lstm"),
        key=lambda which: measured[which]["valid_perplexity"],
    )
    random_cells = [measured[which] for which in cells if which.startswith("random")]
    return {
        "genotype": Genotype.from_text(cells[best]).to_plain(),
        **measured[best],
        "origin": "random" if best.startswith("random") else "race",
        "finalists": [measured[which] for which in cells if which.startswith("finalist")],
        "random_cells": random_cells,
        "random_mean_test_perplexity": math.fsum(c["test_perplexity"] for c in random_cells)
        / len(random_cells),
        "lstm_test_perplexity": measured["lstm"]["test_perplexity"],
        "bigram_perplexity": described["bigram_perplexity"],
        "unigram_perplexity": described["unigram_perplexity"],
        "parameters": results[best]["parameters"],
        "runs": {
            "search": found["run"],
            "found": results[best]["run"],
            **{which: result["run"] for which, result in results.items()},
        },
        "seconds": round(time.perf_counter() - began, 3),
    }


def shortened_race(
    config: SearchConfig,
    corpus: Corpus,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
) -> SearchConfig:
    """The search with as many steps a training as the machine does in time.

    Args:
        folder: of the search; one that was begun there keeps its steps.
    """
    usual, windows = config.blackbox.windows, config.blackbox.windows
    if (begun := _begun(folder)) is not None:
        windows = int(begun["blackbox"]["windows"])
    else:
        job = HalvingJob(config, corpus, device)
        takes = race_seconds(job)
        trained, a_pass = _preset(corpus)
        # Steps of the same size, a process a core as well.
        rounds = _rounds(FIELDS[-1], job.workers)
        trainings = takes * job.workers * rounds * trained.epochs * a_pass / job.plan.total_steps
        if takes + trainings > WHOLE_SECONDS:
            windows = round(_share(RACE_SECONDS / takes) * usual)
    if windows == usual:
        return config
    say(f"{SHORT} in the search {windows} steps a training instead of {usual} {LONGER}")
    rung = min(config.blackbox.rung, round(0.3 * windows))
    return replace(config, blackbox=replace(config.blackbox, windows=windows, rung=rung))


def shortened_trainings(
    corpus: Corpus, kept: Path, steps: float, workers: int, say: Callable[[str], None]
) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Settings of the trainings where they cannot have all of the preset's steps, else none; and
    which of `FIELDS` is trained.

    Args:
        kept: the file that keeps what is decided; trainings that were begun go on by it.
        steps: that one process does in the time that is left. workers: processes.
    """
    config, a_pass = _preset(corpus)
    usual = config.epochs * a_pass
    if kept.exists():
        there = read_sealed(kept, _ANEW)
        epochs, limit, field = there["epochs"], there["limit"], (there["best"], there["random"])
    else:
        epochs, limit = config.epochs, config.windows.limit
        whole = (field for field in FIELDS if steps >= _rounds(field, workers) * usual)
        field = next(whole, FIELDS[-1])
        share = _share(steps / (_rounds(field, workers) * usual))
        if share < 1:
            epochs = math.ceil(share * config.epochs)
            limit = max(1, round(share * usual / epochs)) if share * config.epochs < epochs else 0
        decided = {"epochs": epochs, "limit": limit, "best": field[0], "random": field[1]}
        write_sealed(kept, decided)
    if (epochs, limit) == (config.epochs, config.windows.limit):
        return (), field
    say(f"{SHORT} {epochs * (limit or a_pass):,} steps a training instead of {usual:,} {LONGER}")
    return (f"epochs={epochs}", f"windows.limit={limit}"), field


def _rounds(field: tuple[int, int], workers: int) -> int:
    """How often `workers` trainings run side by side until those of a field and an LSTM's end."""
    return math.ceil((sum(field) + 1) / workers)


def _preset(corpus: Corpus) -> tuple[TrainConfig, int]:
    """The preset's training, and about how many steps a pass over the text has."""
    config: TrainConfig = resolve(
        "train", preset=PRESET, file=None, settings=(),
        flags={"corpus": corpus.name, "genotype": "LSTM"},
    )  # fmt: skip
    window = config.windows.streams * config.windows.bptt
    return config, max(1, corpus_info(corpus)["train"] // window)


def _share(most: float) -> float:
    """The largest of `SHARES` that is not above `most`, or the least of them."""
    return next((share for share in SHARES if share <= most), SHARES[-1])


def _begun(folder: Path) -> dict[str, Any] | None:
    """The settings of a run that was begun."""
    if not (folder / CONFIG).exists():
        return None
    kept: dict[str, Any] = read_object(folder / CONFIG)["config"]
    return kept


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
