"""The alpha gradients of the exact and of the published look-ahead, along searches.

python benchmarks/published_lookahead.py RUN...   (run folders of `rnnnas search --method darts`)

For a few windows of each run, where it began and where it ended, in float64 and under one set of
masks: how far the gradient of the finite difference, of the published look-ahead and of the first
order is from double backward's.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnnas.config.plain import from_plain
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus, open_corpus
from rnnnas.engine.job import Position
from rnnnas.engine.steps import generator
from rnnnas.lm.model import TIED, RecurrentLM
from rnnnas.nas.architect import hypergradient
from rnnnas.runs.checkpoint import load_content
from rnnnas.runs.files import read_json
from rnnnas.searching.supernet import SearchJob
from rnnnas.types import InnerStep

CPU = torch.device("cpu")
WINDOWS = 4
RULES = ("finite", "published", "first")


def gradients(job: SearchJob, start: int) -> dict[str, Tensor]:
    """The gradient in the alphas of every rule, of the windows from `start`."""
    config = job.config
    assert isinstance(config, SearchConfig) and isinstance(job.net, RecurrentLM)
    bptt = config.windows.bptt
    train = (job.train.window(start, bptt), None)
    valid = (job.alpha.window(start % (job.alpha.length - bptt), bptt), None)
    step = InnerStep(
        lr=config.weights.lr, clip=config.weights.clip, weight_decay=config.weights.weight_decay
    )
    found = {}
    for rule in ("exact", *RULES):
        order: Any = "finite" if rule == "published" else rule
        # One draw from the generator for each text, in this order, whatever the rule.
        draws = generator(1, "look-ahead", start, CPU)
        if rule == "first":
            job.net.noise(train[0], draws)
        grads, _ = hypergradient(
            job.net, job.alphas, job.relaxation, train=train, valid=valid,
            inner=replace(step, published=frozenset({TIED}) if rule == "published" else None),
            order=order, progress=1.0, generator=draws,
        )  # fmt: skip
        found[rule] = grads["recurrent"].flatten()
    return found


def search_of(folder: Path, ended: bool) -> SearchJob:
    """The search of a run folder, in float64 and differentiable twice: as it began, or ended."""
    plain = read_json(folder / "config.json")["config"]
    del plain["corpus_sha256"]
    plain["model"] |= {"path": "eager", "precision": "float32"}
    config = from_plain(SearchConfig, plain)
    corpus = open_corpus(config.corpus)
    assert isinstance(corpus, Corpus)
    job = SearchJob(config, corpus, CPU)
    if ended:
        job.restore(load_content(folder / "state.pt")["state"]["job"])
    job.begin_epoch(Position())
    job.net.double()
    job.alphas = {name: a.detach().double().requires_grad_() for name, a in job.alphas.items()}
    return job


def main(folders: list[Path]) -> None:
    print("run, window, |exact|; then per rule: |rule - exact| / |exact|, cosine")
    for folder in folders:
        for ended in (False, True):
            job = search_of(folder, ended)
            for k in range(WINDOWS):
                found = gradients(job, 400 * k)
                exact = found["exact"]
                parts = [f"{float(exact.norm()):.2e}"]
                for rule in RULES:
                    other = found[rule]
                    off = float((other - exact).norm() / exact.norm())
                    cosine = float(torch.cosine_similarity(other, exact, dim=0))
                    parts.append(f"{rule} {off:.1e} {cosine:+.3f}")
                where = "end" if ended else "start"
                print(f"{folder.name}, {where} {k}:", "; ".join(parts), flush=True)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
