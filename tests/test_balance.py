"""Balanced alphas: no operation ahead on all edges, and what is left untouched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_spaces import CNN, DOUBLE, pruned
from test_runs import CPU, corpus, home, search_config

from rnnnas.config.presets import preset_names, preset_tables
from rnnnas.data.corpus import Corpus
from rnnnas.engine.job import Position
from rnnnas.nas.balance import balance
from rnnnas.nas.space import NONE, CellSpace, recurrent_space
from rnnnas.optim import AlphaConfig
from rnnnas.runs.sealed import SEAL, write_sealed
from rnnnas.searching.run import search
from rnnnas.searching.supernet import SearchJob

__all__ = ["corpus", "home"]  # fixtures


def means(table: np.ndarray, space: CellSpace) -> list[float]:
    """Of every operation but `none`, its mean over the edges that may have it."""
    allowed = np.array(space.allowed)
    return [
        float(table[allowed[:, o], o].mean())
        for o, op in enumerate(space.ops)
        if op != NONE and allowed[:, o].any()
    ]


@pytest.mark.parametrize(
    "space", [recurrent_space(5), CNN, pruned(recurrent_space(4), 3), pruned(CNN, 1)]
)
def test_operations_are_level_and_edges_keep_their_differences(space: CellSpace) -> None:
    draws = torch.Generator().manual_seed(2)
    shape = (len(space.edges), len(space.ops))
    table = torch.randn(shape, generator=draws, dtype=DOUBLE) + torch.arange(shape[1])
    other = torch.randn(3, generator=draws, dtype=DOUBLE)
    alphas = {"cell": table.clone().requires_grad_(), "edges": other.clone().requires_grad_()}
    balance(alphas, {"cell": space})
    got, before = alphas["cell"].detach().numpy(), table.numpy()
    level = np.mean(means(before, space))
    assert means(got, space) == pytest.approx([level] * len(means(before, space)))
    shift = got - before
    assert np.ptp(shift, axis=0) == pytest.approx(np.zeros(shape[1]), abs=1e-12)
    if NONE in space.ops:
        none = space.ops.index(NONE)
        assert (got[:, none] == before[:, none]).all()
    assert torch.equal(alphas["edges"].detach(), other)
    assert alphas["cell"].requires_grad


@pytest.mark.parametrize("method", ["darts-1st", "darts", "pc-darts", "gdas", "drnas"])
def test_a_balanced_search_stays_level(corpus: Corpus, method: str) -> None:
    spread = {}
    for asked in ("true", "false"):
        settings = search_config(f"method={method}", f"alphas.balanced={asked}", "alphas.lr=0.1",
                                 "alphas.warmup=0")  # fmt: skip
        job = SearchJob(settings, corpus, CPU)
        start = job.alphas["recurrent"].detach().clone()
        job.begin_epoch(Position())
        for step in range(3):
            job.step(Position(progress=0.5, window=step, step=step, start=5 * step), 5, 1.0)
        table = job.alphas["recurrent"].detach()
        assert not torch.equal(table, start)
        spread[asked] = np.ptp(means(table.double().numpy(), job.net.space["recurrent"]))
    assert spread["true"] < 1e-6 < 1e-3 < spread["false"]


def test_nothing_is_balanced_unless_asked() -> None:
    assert not AlphaConfig().balanced
    papers = [n for n in preset_names() if n.startswith(("ptb", "wikitext", "cifar10", "imagenet"))]
    assert "ptb-darts" in papers and "cifar10-darts" in papers
    for name in papers:
        assert "balanced" not in repr(preset_tables(name))


def test_it_is_idle_where_no_gradient_moves_alphas() -> None:
    for method, idle in (("darts", False), ("gdas", False), ("enas", True), ("random-ws", True),
                         ("halving", True), ("proxyless-reinforce", True)):  # fmt: skip
        settings = search_config(f"method={method}", "alphas.balanced=true")
        assert ("alphas.balanced" in settings.idle) is idle


def test_a_run_from_before_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    settings = search_config("epochs=1", "method=darts-1st")
    result = search(settings, corpus, tmp_path / "run", device=CPU, quiet=True)
    path = tmp_path / "run/config.json"
    stored = json.loads(path.read_text())
    del stored["config"]["alphas"]["balanced"], stored[SEAL]
    write_sealed(path, stored)
    assert search(settings, corpus, tmp_path / "run", device=CPU)["digest"] == result["digest"]
