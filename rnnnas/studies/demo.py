"""The whole tool in three minutes: search a cell, train it, compare it with simpler ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rnnnas.config.presets import resolve
from rnnnas.data.corpus import corpus_info, open_corpus
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.zoo import genotype_of
from rnnnas.searching.run import search
from rnnnas.training.run import train

PRESET = "demo"


def demo(
    corpus_name: str, folder: Path, *, seed: int, device: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    """Search on a corpus, train the found cell and a random one the same way, and compare.

    Args:
        folder: takes the three run folders; what is finished there is not done again.
        say: gets each headline of what goes on.

    Returns:
        genotype, cell (its short text), test_perplexity of the found cell, random_cell and
        random_test_perplexity, bigram_perplexity and unigram_perplexity on the same test text,
        runs (folders), parameters (of the trained networks), seconds.
    """
    corpus = open_corpus(corpus_name)
    described = corpus_info(corpus)
    say(
        f"corpus {corpus_name}: {described['train']:,} training tokens, "
        f"vocabulary {described['vocabulary']:,}"
    )

    def settings(kind: str, **flags: Any) -> Any:
        flags = {"corpus": corpus_name, "seed": seed, **flags}
        return resolve(kind, preset=PRESET, file=None, settings=(), flags=flags)

    name = f"demo-{corpus.folder.name}-s{seed}"
    say("1/3 searching a cell")
    found = search(settings("search"), corpus, folder / f"{name}-search", device=device)
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
