"""The whole tool in three minutes: search a cell, train it, compare it with simpler ways."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rnnnas.config.presets import resolve
from rnnnas.data.corpus import corpus_info, open_corpus
from rnnnas.engine.budget import Stopwatch
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.zoo import genotype_of
from rnnnas.searching.run import search
from rnnnas.training.run import train

PRESET = "demo"
SHARES = {"search": 0.4, "train": 0.3}  # of a time budget, each; two cells are trained


def demo(
    corpus_name: str, folder: Path, *, seed: int, device: torch.device,
    say: Callable[[str], None], seconds: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Search on a corpus, train the found cell and a random one the same way, and compare.

    Args:
        folder: takes the three run folders; what is finished there is not done again.
        say: gets each headline of what goes on. seconds: a time budget for all of it.

    Returns:
        genotype, cell (its short text), test_perplexity of the found cell, random_cell and
        random_test_perplexity, bigram_perplexity and unigram_perplexity on the same test text,
        runs (folders), parameters (of the trained networks), seconds.
    """
    began = time.perf_counter()
    corpus = open_corpus(corpus_name)
    described = corpus_info(corpus)
    say(
        f"corpus {corpus_name}: {described['train']:,} training tokens, "
        f"vocabulary {described['vocabulary']:,}"
    )

    def settings(kind: str, **flags: Any) -> Any:
        flags = {"corpus": corpus_name, "seed": seed, **flags}
        if seconds is not None:
            flags["seconds"] = SHARES[kind] * seconds
        return resolve(kind, preset=PRESET, file=None, settings=(), flags=flags)

    watch = None if seconds is None else Stopwatch(began)
    name = f"demo-{corpus.folder.name}-s{seed}" + (f"-{seconds:g}s" if seconds else "")
    say("1/3 searching a cell")
    found = search(
        settings("search"), corpus, folder / f"{name}-search", device=device, stopwatch=watch
    )
    say(f"    found: {found['cell']}")
    runs = {"search": found["run"]}
    results = {}
    chosen = Genotype.from_plain(found["genotype"])
    random_cell = genotype_of("random", seed)
    steps = (("found", chosen, "2/3 training it"), ("random", random_cell, "3/3 training a random"))
    for which, genotype, headline in steps:
        say(f"{headline} ({genotype.to_text()})")
        config = settings("train", genotype=genotype.to_plain())
        results[which] = train(config, corpus, folder / f"{name}-{which}", device=device)
        runs[which] = results[which]["run"]
    return {
        "genotype": found["genotype"],
        "cell": found["cell"],
        "test_perplexity": results["found"]["test_perplexity"],
        "random_cell": random_cell.to_text(),
        "random_test_perplexity": results["random"]["test_perplexity"],
        "bigram_perplexity": described["bigram_perplexity"],
        "unigram_perplexity": described["unigram_perplexity"],
        "parameters": results["found"]["parameters"],
        "runs": runs,
        "seconds": found["seconds"] + sum(r["seconds"] for r in results.values()),
    }
