"""Cells by perturbation: the algorithm against a second writing of it, and whole searches."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import rank_work
import torch
from sample_spaces import CNN, SPACES, seeded
from test_blackbox import outcome
from test_runs import CPU, Crash, metrics, run_through
from tiny_home import home as home
from torch import Tensor

from rnnnas import config as configs
from rnnnas import perturb
from rnnnas.data.corpus import Corpus, open_corpus
from rnnnas.data.streams import Streams
from rnnnas.errors import DivergedError, Interrupted, UsageError
from rnnnas.files import load_content
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas.genotype import CellGene, Gene, Genotype
from rnnnas.nas.methods import METHODS
from rnnnas.nas.perturbation import Decision, Perturbation
from rnnnas.nas.relax.base import Mixture, Mixtures
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.ranks import ALONE
from rnnnas.search import SearchJob, search
from rnnnas.steps import evaluate

DOUBLE = torch.float64
Tables = dict[str, Tensor]
GRADIENT = [name for name, method in METHODS.items() if method.alphas == "gradient"]


def allowed_scores(spaces: Mapping[str, CellSpace], seed: int) -> Tables:
    """Shares of the allowed operations that add up to 1 on an edge."""
    tables = {}
    for name, space in spaces.items():
        shares = torch.rand(len(space.edges), len(space.ops), generator=seeded(seed), dtype=DOUBLE)
        shares = shares * torch.tensor(space.allowed)
        tables[name] = shares / shares.sum(-1, keepdim=True).clamp_min(1e-9)
    return tables


def rough(tables: Tables) -> float:
    """Some loss that is not linear in the weights, and in which all of them meet."""
    flat = torch.cat([table.reshape(-1) for table in tables.values()])
    mix = torch.randn(20, len(flat), generator=seeded(7), dtype=DOUBLE)
    return float((mix @ flat).tanh().square().sum())


def by_hand(spaces: Mapping[str, CellSpace], tables: Tables) -> Genotype:
    """Algorithm 1 of the paper on `rough`, edges and nodes as they are numbered, no tuning."""
    now = {name: table.clone() for name, table in tables.items()}

    def without(name: str, edge: int, op: int | None) -> float:
        tried = {n: t.clone() for n, t in now.items()}
        if op is None:
            tried[name][edge] = 0
        else:
            tried[name][edge, op] = 0
        return rough(tried)

    picked: dict[tuple[str, int], str] = {}
    for name, space in spaces.items():
        for edge in range(len(space.edges)):
            able = [o for o, op in enumerate(space.ops) if space.allowed[edge][o] and op != "none"]
            if able:
                best = max(able, key=lambda o: without(name, edge, o))  # noqa: B023
                whole = float(now[name][edge].sum())
                now[name][edge] = 0
                now[name][edge, best] = whole
                picked[name, edge] = space.ops[best]
    cells = {}
    for name, space in spaces.items():
        nodes = []
        for node in range(space.nodes):
            rows = [e for e in space.rows(node) if (name, e) in picked]
            ranked = sorted(rows, key=lambda e: -without(name, e, None))  # noqa: B023
            for edge in ranked[space.keep :]:
                now[name][edge] = 0
            genes = [Gene(picked[name, e], space.edges[e][0]) for e in sorted(ranked[: space.keep])]
            nodes.append(tuple(genes))
        cells[name] = CellGene(nodes=tuple(nodes), concat=space.concat)
    return Genotype(cells=cells)


def weights_of(mixtures: Mixtures) -> Tables:
    return {name: m.weights for name, m in mixtures.items()}


def settle(plan: Perturbation, loss: Any = rough) -> Genotype:
    while not plan.done:
        while plan.open:
            plan.tell(loss(weights_of(plan.ask())))
        plan.decide()
    return plan.genotype()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", SPACES)
def test_the_algorithm_written_twice(kind: str, seed: int) -> None:
    spaces = SPACES[kind]
    tables = allowed_scores(spaces, seed)
    plan = Perturbation(spaces, tables, "node", seed)
    assert plan.tried == 0
    found = settle(plan)
    assert found == by_hand(spaces, tables)
    assert plan.tried == plan.total
    by_score = {n: space.discretise(tables[n].tolist()) for n, space in spaces.items()}
    if kind != "one node":
        assert found.cells != by_score, "the case must be one in which scores say something else"
    for name, space in spaces.items():
        for i, node in enumerate(found.cells[name].nodes):
            assert len(node) == space.keep and len({gene.source for gene in node}) == space.keep
            for op, source in node:
                assert op != "none" and space.allowed[space.rows(i)[source]][space.ops.index(op)]


@pytest.mark.parametrize("spaces", [{"r": recurrent_space(2)}, {"n": CNN, "e": CNN}])
def test_what_hurts_most_is_kept_though_its_score_is_small(spaces: dict[str, CellSpace]) -> None:
    """A loss in which one operation and `keep` edges of every node matter; random order."""
    tables, wanted = {}, {}
    for name, space in spaces.items():
        wanted[name] = {e: 1 + (e + 1) % (len(space.ops) - 1) for e in range(len(space.edges))}
        tables[name] = torch.full((len(space.edges), len(space.ops)), 0.3, dtype=DOUBLE)
        for edge, op in wanted[name].items():
            tables[name][edge, op] = 0.05  # the smallest of its edge

    def loss(weights: Tables) -> float:
        total = 0.0
        for name, space in spaces.items():
            for (edge, op), (source, _) in zip(wanted[name].items(), space.edges, strict=True):
                # Later sources matter more, and an edge at all only by its wanted operation.
                total += (1 + source) * math.exp(-float(weights[name][edge, op]))
        return total

    for seed in range(3):
        cell = settle(Perturbation(spaces, tables, "random", seed), loss).cells
        for name, space in spaces.items():
            for i, node in enumerate(cell[name].nodes):
                last = range(space.inputs + i)[-space.keep :]
                assert [gene.source for gene in node] == list(last)
                for op, source in node:
                    assert op == space.ops[wanted[name][space.rows(i)[source]]]


def test_a_masked_operation_has_no_weight_and_no_path() -> None:
    space = recurrent_space(2)
    table = allowed_scores({"r": space}, 1)["r"]
    plan = Perturbation({"r": space}, {"r": table}, "node", 0)
    masked = plan.ask()["r"]
    expected = table.clone()
    expected[0, 1] = 0
    assert torch.equal(masked.weights, expected)
    real = [(e, o) for e in range(3) for o in range(1, 5)]
    assert masked.paths == tuple(real[1:])
    for loss in (1.0, 3.0, 2.0, 0.0):
        plan.tell(loss)
    assert not plan.open and plan.decide().kept == (2,)  # relu
    decided = plan.mixtures()["r"]
    expected = table.clone()
    expected[0] = torch.tensor([0, 0, 1, 0, 0])
    torch.testing.assert_close(decided.weights, expected)
    assert decided.paths == ((0, 2), *real[4:])
    while plan.plan[len(plan.kept)].kind == "operation":
        while plan.open:
            plan.tell(0.0)
        assert plan.decide().kept == (1,)  # a tie: the first, tanh
    assert plan.plan[-1] == Decision("r", "edges", 1)
    without = plan.ask()["r"]
    assert without.paths == ((0, 2), (2, 1)) and float(without.weights[1].abs().sum()) == 0
    plan.tell(1.0)
    plan.tell(2.0)
    assert plan.decide().kept == (2,) and plan.done
    assert plan.genotype().cells["r"].nodes == ((Gene("relu", 0),), (Gene("tanh", 1),))


@pytest.mark.parametrize("path", ["fast", "eager", "reference"])
def test_skipped_paths_change_no_loss(path: Any, corpus: Corpus) -> None:
    net = SearchJob(config(f"model.path={path}"), corpus, CPU).net.double()
    assert isinstance(net, RecurrentLM)
    text = Streams(corpus.splits["valid"][:60], 6, CPU)
    plan = Perturbation(net.space, allowed_scores(net.space, 2), "random", 1)
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


def test_orders_and_what_is_no_decision() -> None:
    spaces = SPACES["two cells"]
    tables = allowed_scores(spaces, 0)
    plans = [Perturbation(spaces, tables, "random", seed).plan for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    for plan in (plans[0], Perturbation(spaces, tables, "node", 1).plan):
        kinds = [decision.kind for decision in plan]
        assert kinds == sorted(kinds, reverse=True), "operations come first"
        assert set(plan) == set(plans[2]) and len(set(plan)) == len(plan)
    assert Decision("normal", "edges", 0) not in plans[0]  # it has two edges, and keeps two
    single = recurrent_space(1).prune([[1, 0, 1, 0, 0]])  # type: ignore[list-item]
    lone = Perturbation({"r": single}, {"r": torch.tensor([[0.9, 0, 0.1, 0, 0]])}, "node", 0)
    assert lone.total == 0 and not lone.open
    assert lone.decide().losses == () and lone.genotype().cells["r"].nodes == ((Gene("relu", 0),),)


def test_lost_losses_hurt_most_and_all_lost_is_divergence() -> None:
    space = recurrent_space(1)
    plan = Perturbation({"r": space}, allowed_scores({"r": space}, 0), "node", 0)
    for loss in (5.0, math.nan, 7.0, 6.0):
        plan.tell(loss)
    assert plan.decide().kept == (2,)
    again = Perturbation({"r": space}, allowed_scores({"r": space}, 0), "node", 0)
    for _ in range(4):
        again.tell(math.inf)
    with pytest.raises(DivergedError, match="whatever was masked"):
        again.decide()


# Whole searches

SMALL = ["model.hidden=6", "model.nodes=3", "windows.streams=6", "valid_streams=6", "epochs=1"]
SMALL += ["windows.limit=6", "derive.by=perturbation", "derive.tune_windows=2"]
SMALL += ["model.precision=float32", "alphas.lr=0.5"]
MASKS, DECISIONS = 6 * 4 + 2 + 3, 6 + 2


@pytest.fixture
def corpus(home: Path) -> Corpus:
    return open_corpus("tiny")


def config(*settings: str) -> configs.SearchConfig:
    resolved: configs.SearchConfig = configs.resolve(
        "search", preset="smoke", file=None, settings=[*SMALL, *settings],
        flags={"corpus": "tiny", "seed": 3, "method": "darts-1st"},
    )  # fmt: skip
    return resolved


def find(settings: configs.SearchConfig, corpus: Corpus, folder: Path) -> dict[str, Any]:
    return search(settings, corpus, folder, device=CPU, quiet=True)


def dying(patch: pytest.MonkeyPatch, name: str, numbers: list[int]) -> None:
    """Make a function of `perturb` die at those calls, counted over all processes."""
    original, calls, left = getattr(perturb, name), [0], list(numbers)

    def replaced(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if left and calls[0] == left[0]:
            left.pop(0)
            raise Crash
        return original(*args, **options)

    patch.setattr(perturb, name, replaced)


def test_a_derivation_resumes_exactly_wherever_it_dies(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find(config("save_seconds=1000"), corpus, tmp_path / "whole")
    for seconds in ("0", "1000"):
        with monkeypatch.context() as patch:
            dying(patch, "evaluate", [1, 3, 7, 25])
            dying(patch, "weight_step", [1, 2, 5, 16])
            result, crashes = run_through(
                search, config(f"save_seconds={seconds}"), corpus, tmp_path / seconds
            )
        assert crashes == 8
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
    original, calls = perturb.evaluate, [0]

    def stopped(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(perturb, "evaluate", stopped)
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
    original, seen = perturb.weight_step, []

    def spy(net: Any, optimizer: Any, batch: Any, carry: Any, mixtures: Any, *rest: Any,
            **options: Any) -> Any:  # fmt: skip
        seen.append((batch.inputs.clone(), carry is None, mixtures, options["lr"]))
        return original(net, optimizer, batch, carry, mixtures, *rest, **options)

    monkeypatch.setattr(perturb, "weight_step", spy)
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
    assert len({tuned["digest"], fixed["digest"], scored["digest"]}) == 3


@pytest.mark.parametrize("method", GRADIENT)
def test_every_method_that_moves_alphas_by_gradients(
    method: str, corpus: Corpus, tmp_path: Path
) -> None:
    settings = config("derive.tune_windows=1", "derive.targets=60", "windows.limit=2")
    result = find(dataclasses.replace(settings, method=method), corpus, tmp_path / "run")
    cell = Genotype.from_plain(result["genotype"]).recurrent
    assert len(cell.nodes) == 3 and math.isfinite(result["valid_perplexity"])
    assert all(gene.op != "none" for node in cell.nodes for gene in node)


@pytest.mark.parametrize("method", ["darts-1st", "snas"])
def test_masks_are_scored_on_the_alphas_own_text(method: str, corpus: Corpus) -> None:
    job = SearchJob(dataclasses.replace(config(), method=method), corpus, CPU)
    train = corpus.splits["train"]
    text = train if method == "snas" else train[int(len(train) * 0.9) :]
    scored = perturb.LanguageSearch(job, corpus, MASKS, 1.0).scored
    assert scored.streams == 6
    assert scored.window(0, 5).inputs[:, 0].tolist() == text[:5].tolist()
    steps = max(sum(job.lengths(0)) // MASKS, 10)
    assert scored.length == steps + 1
    more = dataclasses.replace(job.config.derive, targets=120)
    job.config = dataclasses.replace(job.config, derive=more)
    assert perturb.LanguageSearch(job, corpus, MASKS, 1.0).scored.length == 21


def test_tuning_that_diverges_says_so(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perturb.LanguageSearch, "tune", lambda *_: math.nan)
    with pytest.raises(DivergedError, match="in tuning step 0"):
        find(config(), corpus, tmp_path / "run")


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
        flags = {"corpus": "tiny", "seed": 3}
        configs.resolve(
            "search", preset="smoke", file=None, settings=[*SMALL, *settings], flags=flags
        )
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
