"""The price of image cells: edge by edge against enumeration, tables against networks, searches."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from squares import CPU, search_config, squares
from test_image_runs import run
from test_runs import Crash, crashing, metrics, run_through
from torch import Tensor

from rnnnas.cnn.cell import DerivedCell
from rnnnas.cnn.model import CnnConfig, ConvNet
from rnnnas.cnn.space import OPERATIONS, image_spaces
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.errors import UsageError
from rnnnas.latency.image_cells import edge_costs, measure_layers, places, report, seconds_of
from rnnnas.latency.layers import LayerTable, Timed
from rnnnas.nas.genotype import CellGene, Gene, Genotype
from rnnnas.nas.latency_price import EdgeCosts, LatencyConfig, LatencyPrice, mean_cost
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.policy import cell_mixture
from rnnnas.nas.space import CellSpace
from rnnnas.searching.run import SearchJob, search

__all__ = ["squares"]  # a fixture

DOUBLE = torch.float64
SPACE = CellSpace(inputs=2, nodes=2, ops=("none", "a", "b"), keep=2)
COSTS = EdgeCosts(
    space=SPACE,
    seconds=((0.0, 1e-4, 7e-4), (0.0, 2e-4, 3e-4), (0.0, 5e-4, 4e-4), (0.0, 9e-4, 8e-4),
             (0.0, 6e-4, 0.0)),
    fixed=3e-3,
)  # fmt: skip


def weights_of(seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    shape = len(SPACE.edges), len(SPACE.ops)
    return torch.rand(shape, dtype=DOUBLE, generator=draws).requires_grad_()


# Costs an edge


@pytest.mark.parametrize("seed", range(3))
def test_the_expectation_is_that_over_all_cells(seed: int) -> None:
    """Each node draws both edges by its weights but those of `none`: every outcome is counted."""
    weights = weights_of(seed).detach()
    nodes = [
        [(e, o) for e in SPACE.rows(node) for o in SPACE.choices(e)] for node in range(SPACE.nodes)
    ]
    total = chance = 0.0
    for drawn in itertools.product(*(itertools.product(node, node) for node in nodes)):
        share = 1.0
        for node, pairs in zip(nodes, drawn, strict=True):
            mass = sum(float(weights[e, o]) for e, o in node)
            for e, o in pairs:
                share *= float(weights[e, o]) / mass
        genes = tuple(
            tuple(Gene(SPACE.ops[o], SPACE.edges[e][0]) for e, o in pairs) for pairs in drawn
        )
        chance += share
        total += share * COSTS.of_cell(CellGene(nodes=genes, concat=SPACE.concat))
    assert chance == pytest.approx(1, rel=1e-12)
    assert float(COSTS.expected(weights, SPACE)) == pytest.approx(total, rel=1e-12)


def test_gradients_against_finite_differences() -> None:
    weights = weights_of(1)
    (gradient,) = torch.autograd.grad(1e3 * COSTS.expected(weights, SPACE), [weights])
    for edge, op in itertools.product(range(len(SPACE.edges)), range(len(SPACE.ops))):
        shift = torch.zeros_like(weights)
        shift[edge, op] = 1e-5
        with torch.no_grad():
            up, down = (1e3 * COSTS.expected(weights + s, SPACE) for s in (shift, -shift))
        assert float(gradient[edge, op]) == pytest.approx(float(up - down) / 2e-5, abs=1e-7)
        assert (float(gradient[edge, op]) == 0) == (op == 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_derived_cell_costs_what_its_one_hot_mixture_does(seed: int) -> None:
    cell = SPACE.sample(random.Random(seed))
    by_hand = 3e-3 + sum(
        COSTS.seconds[2 * node + gene.source][SPACE.ops.index(gene.op)]
        for node, genes in enumerate(cell.nodes)
        for gene in genes
    )
    assert COSTS.of_cell(cell) == pytest.approx(by_hand, rel=1e-12)
    mixture = cell_mixture(SPACE, cell, torch.zeros((), dtype=DOUBLE))
    assert float(COSTS.expected(mixture.weights, SPACE)) == pytest.approx(by_hand, rel=1e-12)


def test_the_floor_the_mean_and_the_refusal() -> None:
    rng = random.Random(0)
    drawn = [COSTS.of_cell(SPACE.sample(rng)) for _ in range(4000)]
    assert mean_cost(COSTS, SPACE) == pytest.approx(sum(drawn) / len(drawn), rel=0.01)
    assert COSTS.floor == 3e-3 < min(drawn)
    COSTS.check(SPACE.prune([[True] * 3] * 4 + [[True, True, False]]))
    for other in (replace(SPACE, nodes=3, allowed=()), replace(SPACE, ops=("none", "b", "a"))):
        with pytest.raises(UsageError, match="other edges or operations"):
            COSTS.check(other)


# Tables


def table_of(model: CnnConfig, size: tuple[int, int]) -> LayerTable:
    """A made-up second for every layer, of its own name."""
    names = measured_names(model, size)
    return LayerTable(
        device="cpu", processor="made up", images=8, size=size, date="",
        seconds={name: 1e-4 * (1 + (11 * k) % 37) for k, name in enumerate(sorted(names))},
        network={"channels": model.channels, "layers": model.layers, "stem": model.stem},
    )  # fmt: skip


@cache
def measured_names(model: CnnConfig, size: tuple[int, int]) -> set[str]:
    """What the table has is what is measured: here, by what networks of all cells compute."""
    return {str(timed) for op in OPERATIONS[1:] for timed in computed(model, all_of(op), size)}


def all_of(op: str) -> Genotype:
    """Both cells of one operation, on every kind of edge."""
    genes = (Gene(op, 0), Gene(op, 1)), (Gene(op, 1), Gene(op, 2))
    cell = CellGene(nodes=genes, concat=(2, 3))
    return Genotype(cells={"normal": cell, "reduce": cell})


def computed(model: CnnConfig, genotype: Genotype, size: tuple[int, int]) -> Counter[Timed]:
    """The layers of a derived network, watched while it evaluates an image."""
    net = ConvNet(model, genotype, 10, generator=torch.Generator().manual_seed(1))
    seen: Counter[Timed] = Counter()

    def eigenvalue_stop(module: Any, name: str) -> None:
        def hook(_: Any, given: tuple[Any, ...], out: Any) -> None:
            image, last = given[0], out[-1] if isinstance(out, tuple) else out
            stride = -(-image.shape[2] // last.shape[2])
            if name == "join":
                width = last.shape[1] // 2  # of two nodes
                seen[Timed(name, width, last.shape[1], 1, *last.shape[2:])] += 1
            elif name != "skip_connect" or stride > 1:
                seen[Timed(name, image.shape[1], last.shape[1], stride, *image.shape[2:])] += 1

        module.register_forward_hook(hook)

    eigenvalue_stop(net.stem, f"stem_{model.stem}")
    for kind, cell in zip(net.kinds, net.cells, strict=True):
        assert isinstance(cell, DerivedCell)
        eigenvalue_stop(cell, "join")
        eigenvalue_stop(cell.entries.older, "entry")
        eigenvalue_stop(cell.entries.last, "entry")
        genes = [gene for node in genotype.cells[kind].nodes for gene in node]
        for gene, edge in zip(genes, cell.edges, strict=True):
            eigenvalue_stop(edge, gene.op)
    with torch.no_grad():
        net.logits(torch.zeros(1, 3, *size))
    return seen


NETS = [
    (CnnConfig(channels=4, layers=layers, nodes=2), (16, 12)) for layers in (1, 2, 3, 5, 8)
] + [(CnnConfig(channels=4, layers=4, nodes=2, stem="imagenet"), (64, 48))]  # fmt: skip
IDS = [f"{model.stem}-{model.layers}" for model, _ in NETS]


@pytest.mark.parametrize(("model", "size"), NETS, ids=IDS)
def test_a_prediction_is_the_sum_over_the_network(model: CnnConfig, size: tuple[int, int]) -> None:
    """Of whatever a network of these cells computes; and so it is in the price of a search."""
    table, spaces = table_of(model, size), image_spaces(2)
    costs = edge_costs(table, spaces)
    for seed in range(3):
        cells = {name: s.sample(random.Random(seed)) for name, s in spaces.items()}
        genotype = Genotype(cells=cells)
        wanted = sum(n * table.of(timed) for timed, n in computed(model, genotype, size).items())
        assert seconds_of(cells, table) == pytest.approx(wanted, rel=1e-12)
        assert sum(costs[n].of_cell(c) for n, c in cells.items()) == pytest.approx(wanted)
        one_hot = {
            name: cell_mixture(spaces[name], cell, torch.zeros((), dtype=DOUBLE))
            for name, cell in cells.items()
        }
        price = LatencyPrice.of(LatencyConfig(weight=0.1), costs, spaces)
        assert float(price.expected(one_hot)) == pytest.approx(wanted, rel=1e-12)
        assert price.reward_factor(one_hot) == pytest.approx((price.ref / wanted) ** 0.1)
        assert f"{1000 * wanted:.2f} ms a batch (cpu, 8 images of" in report(genotype, table)


def test_the_sum_by_hand() -> None:
    """Three cells: 4 channels of 9 x 7, reduced to 8 of 5 x 4, reduced to 16 of 3 x 2."""
    model = CnnConfig(channels=4, layers=3, nodes=2)
    table = table_of(model, (9, 7))
    of = table.seconds
    fixed = ("stem_cifar 3>12 s1 9x7", "entry 12>4 s1 9x7", "entry 12>4 s1 9x7", "join 4>8 s1 9x7",
             "entry 12>8 s1 9x7", "entry 8>8 s1 9x7", "join 8>16 s1 5x4",
             "entry 8>16 s2 9x7", "entry 16>16 s1 5x4", "join 16>32 s1 3x2")  # fmt: skip
    cell = CellGene(
        nodes=((Gene("sep_conv_3x3", 0), Gene("skip_connect", 1)),
               (Gene("max_pool_3x3", 0), Gene("dil_conv_5x5", 2))),
        concat=(2, 3),
    )  # fmt: skip
    normal = ("sep_conv_3x3 4>4 s1 9x7", "max_pool_3x3 4>4 s1 9x7", "dil_conv_5x5 4>4 s1 9x7")
    reduce = ("sep_conv_3x3 8>8 s2 9x7", "skip_connect 8>8 s2 9x7", "max_pool_3x3 8>8 s2 9x7",
              "dil_conv_5x5 8>8 s1 5x4", "sep_conv_3x3 16>16 s2 5x4", "skip_connect 16>16 s2 5x4",
              "max_pool_3x3 16>16 s2 5x4", "dil_conv_5x5 16>16 s1 3x2")  # fmt: skip
    total = sum(of[name] for name in (*fixed, *normal, *reduce))
    assert seconds_of({"normal": cell, "reduce": cell}, table) == pytest.approx(total, rel=1e-12)
    costs = edge_costs(table, image_spaces(2))
    assert costs["normal"].floor == pytest.approx(sum(of[name] for name in fixed[:4]))
    assert costs["reduce"].floor == pytest.approx(sum(of[name] for name in fixed[4:]))


@pytest.mark.parametrize(("model", "size"), [NETS[2], NETS[5]], ids=["cifar", "imagenet"])
def test_a_measured_table_has_what_networks_compute_and_no_more(
    model: CnnConfig, size: tuple[int, int]
) -> None:
    """Also where a search mixes a part of the channels: a derived network has them all."""
    searched = replace(model, partial=2)
    found = measure_layers(searched, size, 2, CPU, seconds=0)
    assert set(found.seconds) == measured_names(model, size)
    assert all(value > 0 for value in found.seconds.values())
    assert (found.images, found.size) == (2, size)
    assert found.network == {"channels": 4, "layers": model.layers, "stem": model.stem}


def test_what_a_table_does_not_tell_is_refused() -> None:
    model = CnnConfig(channels=4, layers=3, nodes=2)
    table, genotype = table_of(model, (8, 8)), all_of("sep_conv_3x3")
    assert len(places(model, (8, 8), {"normal": 2, "reduce": 2})[1]) == 3
    for bad, message in (
        (replace(table, network={}), "of no search of image cells"),
        (replace(table, network={**table.network, "stem": "x"}), r"network\.stem = 'x'"),
        (replace(table, size=(9, 9)), "no layer 'stem_cifar 3>12 s1 9x9'"),
        (replace(table, network={**table.network, "channels": 5}), "no layer 'stem_cifar 3>15"),
    ):
        with pytest.raises(UsageError, match=message):
            report(genotype, bad)
    with pytest.raises(UsageError, match="no layer 'sep_conv_7x7"):
        report(all_of("sep_conv_7x7"), table)


# Searches

PRICED = ["epochs=2", "batches.size=8", "batches.limit=8", "alphas.lr=0.3"]


def keep(path: Path, **dear: float) -> str:
    """The settings that name a table of the searches below: 0.1 ms a layer, but for some."""
    table = table_of(CnnConfig(channels=4, layers=3, nodes=2), (16, 16))
    seconds = {name: dear.get(name.split()[0], 1e-4) for name in table.seconds}
    path.write_text(json.dumps(asdict(replace(table, seconds=seconds))), encoding="utf-8")
    return f"latency.table={path}"


def counts(result: dict[str, Any]) -> Counter[str]:
    cells = Genotype.from_plain(result["genotype"]).cells.values()
    return Counter(gene.op for cell in cells for node in cell.nodes for gene in node)


@pytest.mark.parametrize(
    "method",
    [
        *(pytest.param(method, marks=pytest.mark.slow) for method in ("proxyless", "darts-1st")),
        "proxyless-reinforce",
    ],
)
def test_a_price_finds_cells_without_what_is_dear(
    method: str, squares: ImageCorpus, tmp_path: Path
) -> None:
    """What the search without a price takes most is dear in the table of the other."""
    settings = [*PRICED, "alphas.betas=[0.0, 0.999]", "alphas.weight_decay=0"]
    plain = search(search_config(*settings, method=method), squares, tmp_path / "plain",
                   device=CPU, quiet=True)  # fmt: skip
    assert "latency_us" not in plain and not (tmp_path / "plain/latency.json").exists()
    (dear, often), *_ = counts(plain).most_common()
    table = keep(tmp_path / "dear.json", **{dear: 1.0})
    weight = 3 if method == "proxyless-reinforce" else 100
    config = search_config(*settings, f"latency.weight={weight}", table, method=method)
    found = search(config, squares, tmp_path / "fast", device=CPU, quiet=True)
    assert counts(found)[dear] == 0 < often
    epochs = [x for x in metrics(tmp_path / "fast") if x["kind"] == "epoch"]
    assert epochs[-1]["expected_latency_us"] < epochs[0]["expected_latency_us"]
    assert epochs[-1]["cell_latency_us"] == pytest.approx(found["latency_us"])
    line = f"predicted {found['latency_us'] / 1000:.2f} ms a batch (cpu, 8 images of 16 x 16, "
    shown = run("show", str(tmp_path / "fast")).stdout
    assert line + "forward): 3 cells, 4 channels" in shown
    assert "predicted" not in run("show", str(tmp_path / "plain")).stdout
    named = ["--latency", str(tmp_path / "dear.json")]
    assert "predicted" in run("show", str(tmp_path / "plain"), *named).stdout
    assert "recurrent cells" in run("show", str(tmp_path / "fast"), "--measure", code=2).stderr
    assert "predicted" in run("show", f"image:{tmp_path / 'fast'}").stdout
    one = tmp_path / "one.json"
    one.write_text(json.dumps({"normal": found["genotype"]["normal"]}))
    assert "no reduce cell to predict" in run("show", str(one), *named, code=2).stderr


@pytest.mark.parametrize(
    "method", [pytest.param("proxyless", marks=pytest.mark.slow), "proxyless-reinforce"]
)
def test_a_priced_search_resumes_exactly(
    method: str, squares: ImageCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file of the table has changed since: the run keeps its own."""
    words = keep(tmp_path / "table.json", sep_conv_3x3=2e-3)
    config = search_config("save_seconds=0", "latency.weight=2", words, method=method)
    whole = search(config, squares, tmp_path / "whole", device=CPU, quiet=True)
    kept = (tmp_path / "whole/latency.json").read_bytes()
    crashing(monkeypatch, SearchJob, [1, 3])
    with pytest.raises(Crash):
        search(config, squares, tmp_path / "cut", device=CPU, quiet=True)
    keep(tmp_path / "table.json", max_pool_3x3=1.0, skip_connect=0.5)
    result, crashes = run_through(search, config, squares, tmp_path / "cut")
    assert crashes == 1 and (tmp_path / "cut/latency.json").read_bytes() == kept
    for key in ("digest", "latency_us", "cell"):
        assert result[key] == whole[key]
    other = search(config, squares, tmp_path / "other", device=CPU, quiet=True)
    assert other["digest"] != whole["digest"]  # the table has its part in the result


def test_without_a_table_one_is_measured_for_the_run(squares: ImageCorpus, tmp_path: Path) -> None:
    config = search_config("epochs=1", "batches.limit=1", "latency.weight=0.1", "latency.form=mul",
                           method="proxyless")  # fmt: skip
    result = search(config, squares, tmp_path / "run", device=CPU, quiet=True)
    kept = json.loads((tmp_path / "run/latency.json").read_text())
    assert kept.pop("sealed")
    assert set(kept["seconds"]) == measured_names(config.model, (16, 16)) and kept["images"] == 16
    cells = Genotype.from_plain(result["genotype"]).cells
    costs = edge_costs(LayerTable(**kept), image_spaces(2))
    mixture = {n: Mixture(torch.ones(5, 8, dtype=DOUBLE)) for n in cells}
    price = LatencyPrice.of(config.latency, costs, image_spaces(2))
    assert result["latency_us"] == pytest.approx(1e6 * price.of_cells(cells))
    assert float(price.expected(mixture)) == pytest.approx(price.ref)


def test_searches_that_cannot_be_priced_are_refused(squares: ImageCorpus, tmp_path: Path) -> None:
    stages = ["stages.ops=[8, 3]", "stages.layers=[2, 3]"]
    for settings, method in ((stages, "proxyless"), ([], "p-darts")):
        with pytest.raises(UsageError, match="one a stage"):
            search_config(*settings, "latency.weight=0.1", method=method)
        assert search_config(*settings, method=method).latency.weight == 0
    words = keep(tmp_path / "table.json")
    for setting in ("model.channels=6", "augment.size=12", "model.layers=4", "model.nodes=3"):
        config = search_config("latency.weight=0.1", words, setting, method="proxyless")
        with pytest.raises(UsageError, match="the table of latencies has no layer"):
            search(config, squares, tmp_path / "run", device=CPU, quiet=True)
        assert not (tmp_path / "run").exists()
    policy = search_config("latency.weight=0.1", method="proxyless-reinforce")
    assert "latency.form" in policy.idle and "latency.ref" not in policy.idle
