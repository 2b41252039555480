"""Whole searches whose cell is read off by perturbation: resumes, tuning, texts, refusals."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import rank_work
import torch
from test_blackbox import outcome
from test_runs import CPU, Crash, metrics, run_through
from tiny_home import corpus as corpus
from tiny_home import find, search_config
from tiny_home import home as home

from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.distributed import ALONE
from rnnnas.engine.steps import evaluate
from rnnnas.errors import DivergedError, Interrupted, UsageError
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.methods import METHODS
from rnnnas.nas.perturbation import Perturbation
from rnnnas.nas.relax.base import Mixture
from rnnnas.runs.checkpoint import load_content
from rnnnas.searching import derive_by_perturbation
from rnnnas.searching.run import search
from rnnnas.searching.supernet import SearchJob

pytestmark = pytest.mark.usefixtures("undrawn")  # test_alphas_log looks at images

GRADIENT = [name for name, method in METHODS.items() if method.alphas == "gradient"]
SMALL = ["model.hidden=6", "model.nodes=3", "windows.streams=6", "valid_streams=6", "epochs=1"]
SMALL += ["windows.limit=6", "derive.by=perturbation", "derive.tune_windows=2"]
SMALL += ["model.precision=float32", "alphas.lr=0.5"]
MASKS, DECISIONS = 6 * 4 + 2 + 3, 6 + 2


def config(*settings: str) -> SearchConfig:
    return search_config(*SMALL, *settings, method="darts-1st")


def dying(patch: pytest.MonkeyPatch, name: str, numbers: list[int]) -> None:
    """Make a function of `perturb` die at those calls, counted over all processes."""
    original, calls, left = getattr(derive_by_perturbation, name), [0], list(numbers)

    def replaced(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if left and calls[0] == left[0]:
            left.pop(0)
            raise Crash
        return original(*args, **options)

    patch.setattr(derive_by_perturbation, name, replaced)


def test_a_derivation_resumes_exactly_wherever_it_dies(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find(config("save_seconds=1000"), corpus, tmp_path / "whole")
    for seconds in ("0", "1000"):
        with monkeypatch.context() as patch:
            dying(patch, "evaluate", [1, 3, 25])
            dying(patch, "weight_step", [1, 5, 16])
            result, crashes = run_through(
                search, config(f"save_seconds={seconds}"), corpus, tmp_path / seconds
            )
        assert crashes == 6
        for key in ("digest", "valid_perplexity", "cell"):
            assert result[key] == whole[key]
        assert outcome(tmp_path / seconds) == outcome(tmp_path / "whole")
    lines = [line for line in metrics(tmp_path / "whole") if line["kind"] == "decision"]
    assert [line["number"] for line in lines] == list(range(1, DECISIONS + 1))
    assert all(line["perplexity"] >= line["lowest"] for line in lines)
    state = load_content(tmp_path / "whole/state.pt")["state"]
    assert state["perturbed"]["tuned"] == 2 * (DECISIONS - 1)
    kept = {line["place"]: line["kept"] for line in lines}
    for number, (gene,) in enumerate(Genotype.from_plain(whole["genotype"]).recurrent.nodes, 1):
        edge = f"s{gene.source} > s{number}"
        assert kept[edge] == gene.op and kept.get(f"s{number}", edge) == edge


def test_a_signal_saves_between_two_masks(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("save_seconds=1000")
    whole = find(settings, corpus, tmp_path / "whole")
    original, calls = derive_by_perturbation.evaluate, [0]

    def stopped(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(derive_by_perturbation, "evaluate", stopped)
        with pytest.raises(Interrupted) as caught:
            find(settings, corpus, tmp_path / "cut")
    assert caught.value.exit_code == 143
    saved = load_content(tmp_path / "cut/state.pt")["state"]["perturbed"]
    assert len(saved["plan"]["kept"]) == 1 and len(saved["plan"]["losses"]) == 2
    assert find(settings, corpus, tmp_path / "cut")["digest"] == whole["digest"]


def test_weights_are_tuned_under_what_is_decided(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the windows after the search's own, at the settings' step size, or not at all."""
    original, seen = derive_by_perturbation.weight_step, []

    def spy(net: Any, optimizer: Any, batch: Any, hidden_state: Any, mixtures: Any, *rest: Any,
            **options: Any) -> Any:  # fmt: skip
        seen.append((batch.inputs.clone(), hidden_state is None, mixtures, options["lr"]))
        return original(net, optimizer, batch, hidden_state, mixtures, *rest, **options)

    monkeypatch.setattr(derive_by_perturbation, "weight_step", spy)
    tuned = find(config("windows.halved=0"), corpus, tmp_path / "tuned")
    assert len(seen) == 2 * (DECISIONS - 1)
    job = SearchJob(config(), corpus, CPU)
    for number, (inputs, begins, mixtures, lr) in enumerate(seen):
        assert torch.equal(inputs, job.train.window(number % 6 * 10, 10).inputs)
        assert begins == (number % 6 == 0) and lr == pytest.approx(0.1 * job.config.weights.lr)
        pure = mixtures["recurrent"].weights.max(-1).values > 0.999
        assert int(pure.sum()) == min(number // 2 + 1, 6) or number // 2 + 1 > 6
    seen.clear()
    fixed = find(config("derive.tune_windows=0"), corpus, tmp_path / "fixed")
    scored = find(config("derive.by=scores"), corpus, tmp_path / "scored")
    assert not seen
    weights = [
        load_content(tmp_path / name / "state.pt")["state"]["job"]["weights"]["nodes"]
        for name in ("tuned", "fixed", "scored")
    ]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])
    # Untuned, the two differ in the cell alone, which both ways of deriving may find.
    same = fixed["cell"] == scored["cell"]
    assert (fixed["digest"] == scored["digest"]) == same and tuned["digest"] != fixed["digest"]


@pytest.mark.parametrize("method", GRADIENT)
def test_every_method_that_moves_alphas_by_gradients(
    method: str, corpus: Corpus, tmp_path: Path
) -> None:
    own = ("derive.tune_windows=1", "derive.targets=60", "windows.limit=2", "model.nodes=2")
    settings = config(*own)
    result = find(dataclasses.replace(settings, method=method), corpus, tmp_path / "run")
    cell = Genotype.from_plain(result["genotype"]).recurrent
    assert len(cell.nodes) == 2 and math.isfinite(result["valid_perplexity"])
    assert all(gene.op != "none" for node in cell.nodes for gene in node)


@pytest.mark.parametrize("method", ["darts-1st", "snas"])
def test_masks_are_scored_on_the_alphas_own_text(method: str, corpus: Corpus) -> None:
    job = SearchJob(dataclasses.replace(config(), method=method), corpus, CPU)
    train = corpus.splits["train"]
    text = train if method == "snas" else train[int(len(train) * 0.9) :]
    scored = derive_by_perturbation.LanguageSearch(job, corpus, MASKS, 1.0).scored
    assert scored.streams == 6
    assert scored.window(0, 5).inputs[:, 0].tolist() == text[:5].tolist()
    steps = max(sum(job.lengths(0)) // MASKS, 10)
    assert scored.length == steps + 1
    more = dataclasses.replace(job.config.derive, targets=120)
    job.config = dataclasses.replace(job.config, derive=more)
    assert derive_by_perturbation.LanguageSearch(job, corpus, MASKS, 1.0).scored.length == 21


def test_tuning_that_diverges_says_so(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive_by_perturbation.LanguageSearch, "tune", lambda *_: math.nan)
    with pytest.raises(DivergedError, match="in tuning step 0"):
        find(config(), corpus, tmp_path / "run")


@pytest.mark.slow
def test_two_processes_do_as_one_does(home: Path, tmp_path: Path) -> None:
    """Perturbation, and a stop with its cell."""
    both = ("model.nodes=2", "method=darts-1st", "weights.lr=2", "windows.bptt=4")
    perturbs = ("epochs=1", "windows.limit=4", "derive.by=perturbation", "derive.tune_windows=2")
    stops = ("epochs=6", "windows.limit=1", "stop.eigenvalue=true", "stop.every=1")
    stops += ("stop.window=1", "stop.earliest=0", "stop.ratio=1e-9")

    def calls(size: int) -> list[tuple[str, tuple[Any, ...]]]:
        return [
            ("a_run", (str(home), "search", str(tmp_path / f"{name}{size}"), (*both, *own), ""))
            for name, own in (("perturbs", perturbs), ("stops", stops))
        ]

    alone = rank_work.many(ALONE, calls(1))
    first, second = rank_work.together(rank_work.many, tmp_path / "start", calls(2))
    assert first == second
    assert [found["cell"] for found in first] == [found["cell"] for found in alone]
    assert first[1]["stopped_at_epoch"] == 5 and first[1]["genotype_epoch"] == 1
    decisions = [
        [line for line in metrics(tmp_path / f"perturbs{size}") if line["kind"] == "decision"]
        for size in (1, 2)
    ]
    for one, other in zip(*decisions, strict=True):
        assert one["kept"] == other["kept"] and one["place"] == other["place"]
        assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-5)
    bends = [
        [line["alpha_eigenvalue"] for line in metrics(tmp_path / f"stops{size}")
         if line["kind"] == "epoch"]
        for size in (1, 2)
    ]  # fmt: skip
    assert bends[0] == pytest.approx(bends[1], rel=1e-2) and len(bends[0]) == 5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method=enas"], "derive.by = 'perturbation' needs alphas that gradients move"),
        (["method=random"], "not 'random'"),
        (["derive.tune_windows=-1"], "derive.tune_windows = -1"),
        (["derive.targets=-1"], "derive.targets = -1"),
        (["derive.lr=0"], "derive.lr = 0"),
        (["derive.order=edge"], "derive.order"),
        (["stop.eigenvalue=true", "stop.every=1"], "leave one of them out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        search_config(*SMALL, *settings)
    assert said in f"{caught.value.cause} {caught.value.remedy}"


def test_the_seed_orders_the_edges(corpus: Corpus, tmp_path: Path) -> None:
    places = []
    for order in ("random", "node"):
        find(config(f"derive.order={order}", "derive.tune_windows=0"), corpus, tmp_path / order)
        lines = metrics(tmp_path / order)
        places.append([line["place"] for line in lines if line["kind"] == "decision"])
    rng = random.Random("3/perturbation")
    edges = ["s0 > s1", "s0 > s2", "s1 > s2", "s0 > s3", "s1 > s3", "s2 > s3"]
    nodes = ["s2", "s3"]
    assert places[1] == edges + nodes
    rng.shuffle(edges)
    rng.shuffle(nodes)
    assert places[0] == edges + nodes


@pytest.mark.parametrize("path", ["fast", "eager", "reference"])
def test_skipped_paths_change_no_loss(path: Any, corpus: Corpus) -> None:
    net = SearchJob(config(f"model.path={path}"), corpus, CPU).net.double()
    assert isinstance(net, RecurrentLM)
    text = Streams(corpus.splits["valid"][:60], 6, CPU)
    draws = torch.Generator().manual_seed(2)
    shares = torch.randn(6, 5, dtype=torch.float64, generator=draws).softmax(-1)
    plan = Perturbation(net.space, {"recurrent": shares}, "random", 1)
    seen = set()
    while not plan.done:
        while plan.open:
            asked = plan.ask()
            loss = evaluate(net, text, asked).loss
            every = {n: Mixture(m.weights) for n, m in asked.items()}
            assert loss == pytest.approx(evaluate(net, text, every).loss, rel=1e-12)
            seen.add(loss)
            plan.tell(loss)
        plan.decide()
    assert len(seen) > 20
