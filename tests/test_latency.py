"""Tables of latencies: measured, kept, shown, and searches that are priced by them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arithmetic
import pytest
import torch
from click.testing import CliRunner
from tiny_home import home as home

from rnnnas.cli import main
from rnnnas.config.presets import resolve
from rnnnas.data import synthetic
from rnnnas.data.corpus import Corpus, open_corpus
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.latency import recurrent
from rnnnas.latency.recurrent import LatencyTable, read_table
from rnnnas.lm.fast.known import has_kernels
from rnnnas.nas.genotype import CellGene, Genotype
from rnnnas.nas.latency_price import RecurrentCosts
from rnnnas.nas.methods import METHODS
from rnnnas.searching.run import search
from rnnnas.searching.supernet import SearchJob

pytestmark = pytest.mark.usefixtures("undrawn")  # test_alphas_log looks at images

CPU = torch.device("cpu")
OPS = ("tanh", "relu", "sigmoid", "identity")
SMALL = ["model.hidden=8", "model.nodes=4", "windows.streams=6", "windows.bptt=5",
         "windows.limit=16", "valid_streams=6", "epochs=1"]  # fmt: skip
BENCH = ["--set", "model.hidden=8", "--set", "windows.streams=3", "--set", "windows.bptt=4"]


def table(nodes: int = 8, **changes: Any) -> LatencyTable:
    """A machine on which a product costs the same however many nodes share it: depth is dear."""
    costs = RecurrentCosts(
        first=1e-4,
        products=(9e-5,) * nodes,
        rests=(1e-5,) * nodes,
        activations={op: (1e-6,) * nodes for op in OPS},
        level=1e-4,
    )
    about: dict[str, Any] = {
        "device": "cpu", "processor": "none", "dtype": "float32", "hidden": 8, "streams": 6,
        "steps": 10, "date": "2026-01-01T00:00:00+00:00", "costs": costs,
    }  # fmt: skip
    return LatencyTable(**{**about, **changes})


@pytest.fixture
def priced(tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table().to_plain()))
    return path


@pytest.fixture
def corpus(home: Path) -> Corpus:
    return open_corpus("tiny")


@pytest.fixture(scope="module")
def hmm(home: Path) -> Corpus:
    """The synthetic corpus, with less text."""
    with pytest.MonkeyPatch.context() as patch:
        lengths = {"train": 40_000, "valid": 1_000, "test": 1_000}
        patch.setattr(synthetic, "LENGTHS", lengths)
        return open_corpus("hmm")


def search_config(*settings: str, corpus: str = "tiny", seed: int = 3, **flags: Any) -> Any:
    return resolve(
        "search", preset="smoke", file=None, settings=settings,
        flags={"corpus": corpus, "seed": seed, **flags},
    )  # fmt: skip


def epochs(folder: str) -> list[dict[str, Any]]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == "epoch"]


def run(*words: str) -> Any:
    return CliRunner().invoke(main, list(words))


# Tables


class Machine:
    """A clock that the cell's work moves, by a formula, and slower while other work is going on.

    A time step takes 30 µs for s0, and for every node that others follow, and for s0, 20 µs and
    10 µs a follower, of which the product is half; tanh, relu and sigmoid cost 1, 2 and 3 µs more
    a node than the identity.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0

    def passes(self, microseconds: float) -> None:
        self.calls += 1
        busy = 5.0 if self.calls % 40 >= 15 else 1.0  # other work, most of the time
        self.now += 1e-6 * microseconds * busy

    @staticmethod
    def step(cell: CellGene) -> float:
        """Microseconds."""
        followers = Counter(gene.source for (gene,) in cell.nodes)
        activations = {"identity": 0, "tanh": 1, "relu": 2, "sigmoid": 3}
        own = sum(activations[gene.op] for (gene,) in cell.nodes)
        return 30.0 + sum(20.0 + 10.0 * k for k in followers.values()) + own

    def unroll(self, inputs: torch.Tensor, h: Any, first: Any, nodes: Any, cell: CellGene,
               *masks: Any, low: bool) -> None:  # fmt: skip
        self.passes(len(inputs) * self.step(cell))

    def bmm(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        self.passes(10.0 + 5.0 * (len(a) // 2))  # gates and candidates: two matrices a node


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    clock = SimpleNamespace(perf_counter=lambda: made.now)
    monkeypatch.setattr(recurrent, "time", clock)
    monkeypatch.setattr(recurrent, "unroll", made.unroll)
    monkeypatch.setattr(torch, "bmm", made.bmm)
    return made


def test_a_measured_table_foretells_every_cell(machine: Machine) -> None:
    """What is measured of a few cells gives the time of all, and other work does not move it."""
    settings = ["model.hidden=6", "model.nodes=4", "windows.streams=5", "windows.bptt=7"]
    found = recurrent.measure_table(search_config(*settings), CPU, seconds=0.5)
    costs = found.costs
    assert (found.device, found.hidden, found.streams, found.steps) == ("cpu", 6, 5, 7)
    assert found.dtype == arithmetic.precision()
    assert costs.first == pytest.approx(30e-6)
    groups = [p + r for p, r in zip(costs.products, costs.rests, strict=True)]
    assert groups == pytest.approx([30e-6, 40e-6, 50e-6, 60e-6])
    assert costs.products == pytest.approx([15e-6, 20e-6, 25e-6, 30e-6])
    for op, each in {"identity": 0.0, "tanh": 1e-6, "relu": 2e-6, "sigmoid": 3e-6}.items():
        wanted = [each * k for k in (1, 2, 3, 4)]
        assert costs.activations[op] == pytest.approx(wanted, abs=1e-12)
    for text in ("tanh0 tanh1 tanh2 tanh3", "relu0 relu0 relu0 relu0", "sigmoid0 relu0 tanh1 tanh1",
                 "identity0 sigmoid1 relu1 tanh2"):  # fmt: skip
        cell = Genotype.from_text(text).recurrent
        wanted = 1e-6 * machine.step(cell)
        assert costs.of_cell(cell) == pytest.approx(wanted)
        median, least = recurrent.measure_cell(cell, found, CPU, seconds=0.5)
        assert least == pytest.approx(wanted) and median > least


def test_a_table_comes_back_from_its_file_and_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    plain = table().to_plain()
    path.write_text(json.dumps(plain))
    assert read_table(path) == table()
    for key in ("device", "seconds"):
        path.write_text(json.dumps({k: v for k, v in plain.items() if k != key}))
        with pytest.raises(CheckpointError, match="no table of latencies"):
            read_table(path)
    for other in ("[]", "{", '{"seconds": 3}', json.dumps({**plain, "seconds": {
            **plain["seconds"], "rests": [1.0]}})):  # fmt: skip
        path.write_text(other)
        with pytest.raises(CheckpointError, match="table.json"):
            read_table(path)
    with pytest.raises(CheckpointError, match="no table of latencies .*missing.json") as error:
        read_table(tmp_path / "missing.json")
    assert "rnnnas bench latency" in error.value.remedy


def test_the_command_keeps_a_table_and_show_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    quick = recurrent.measure_table
    monkeypatch.setattr(
        recurrent, "measure_table", lambda *a, **k: quick(*a, **{**k, "seconds": 0.05})
    )
    assert "µs" not in run("show", "DARTS_V2").output
    assert run("show", "DARTS_V2", "--measure").exit_code == 2
    made = run("bench", "latency", *BENCH, "--json", "--device", "cpu")
    assert made.exit_code == 0, made.output
    kept = tmp_path / "latency-cpu-H8-B3.json"
    assert json.loads(made.stdout) == json.loads(kept.read_text())
    costs = read_table(kept).costs
    cell = Genotype.from_text("sigmoid0 relu1 relu1 identity1 tanh2 sigmoid5 tanh3 relu5").recurrent
    shown = run("show", "DARTS_V2").stdout
    assert f"predicted {costs.of_cell(cell) * 1e6:.1f} µs a time step" in shown
    assert "measured" not in shown and "H 8, B 3" in shown
    again = run("show", "DARTS_V2", "--measure", "--device", "cpu").stdout
    assert "measured" in again and "median of windows" in again
    assert "ends at 8 nodes" in run("show", "ENAS").stdout  # eleven nodes
    assert run("show", "ENAS", "--latency", str(kept)).exit_code == 2
    assert "no operation swish" in run("show", "swish0 tanh1").stdout
    assert "tanh" in run("show", " ".join(["tanh0"] * 60)).stdout
    twice = tmp_path / "twice.json"
    pair = [["tanh", 0], ["relu", 0]]
    twice.write_text(json.dumps({"recurrent": {"nodes": [pair], "concat": [1]}}))
    assert "one edge a node" in run("show", str(twice)).stdout
    assert "published" in run("show", "darts_v2").stdout
    elsewhere = tmp_path / "there.json"
    text = run("bench", "latency", *BENCH, "--out", str(elsewhere), "--device", "cpu")
    assert text.exit_code == 0 and "sigmoid" in text.stdout and elsewhere.is_file()
    other = table(device="cuda").to_plain()
    elsewhere.write_text(json.dumps(other))
    on = ["--latency", str(elsewhere)]
    assert "predicted" in run("show", "DARTS_V2", *on).stdout
    assert "is of cuda" in run("show", "DARTS_V2", *on, "--measure", "--device", "cpu").output
    assert run("show", "DARTS_V2", *on, "--format", "svg").exit_code == 2
    assert run("show", "image:DARTS_V2", *on).exit_code == 4  # no table of layers
    assert run("bench", "train", "--out", str(elsewhere)).exit_code == 2


# Searches


# Stages prune `none`, by which alone edges with a softmax each are told apart: see
# `nas/latency_price.py`. densenas moves two alphas of a choice a step and no other: 24 steps do not
# get around to all.
GRADIENT = [
    n for n, method in METHODS.items()
    if method.alphas == "gradient" and not method.staged and n != "densenas"
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "seeds", "price"),
    [
        ("gdas", [0], 3.0),
        ("proxyless-reinforce", [1], 3.0),
        # Where every edge has a softmax of its own the same price needs more than 24 steps.
        ("darts-1st", [0], 300.0),
        *(
            pytest.param(m, [0, 1, 2], 300.0, marks=pytest.mark.slow, id=f"{m}-slow")
            for m in GRADIENT
        ),
    ],
)
def test_a_price_on_latency_finds_faster_cells(
    method: str, seeds: list[int], price: float, hmm: Corpus, tmp_path: Path, priced: Path
) -> None:
    """On every seed, though the networks have hardly learned anything: all nodes take s0."""
    costs = table().costs
    settings = ["alphas.lr=0.1", "alphas.warmup=0.0", "model.hidden=8", "model.nodes=5",
                "model.precision=float32",
                "windows.streams=8", "windows.bptt=5"]  # fmt: skip
    for seed in seeds:
        seconds = []
        for weight in (0.0, price):
            config = search_config(
                *settings, f"latency.table={priced}", f"latency.weight={weight}",
                corpus="hmm", seed=seed, method=method,
            )  # fmt: skip
            result = search(config, hmm, tmp_path / f"{seed}-{weight}", device=CPU, quiet=True)
            cell = Genotype.from_plain(result["genotype"]).recurrent
            seconds.append(costs.of_cell(cell))
        one_group = 1e-4 + 1e-4 + 1e-4  # s0, a level, and a product with its rest
        assert one_group < seconds[1] < one_group + 6e-6, (seed, seconds)
        # A search without a price may find that cell too, but not on the quick cases' seeds.
        assert seconds[1] <= seconds[0] if price > 3 else seconds[1] < 0.8 * seconds[0]
        assert result["latency_us"] == pytest.approx(1e6 * seconds[1])
        last = epochs(result["run"])[-1]
        assert last["cell_latency_us"] == pytest.approx(1e6 * seconds[1])
        assert last["expected_latency_us"] < epochs(result["run"])[0]["expected_latency_us"]


class Crash(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize(
    "settings",
    [
        ["method=p-darts", "latency.form=mul"],
        pytest.param(["method=darts"], marks=pytest.mark.slow),
        pytest.param(["method=proxyless"], marks=pytest.mark.slow),
        pytest.param(["method=enas"], marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings[0],
)
def test_a_priced_search_resumes_exactly(
    settings: list[str], corpus: Corpus, tmp_path: Path, priced: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also where the file of the table has changed since: the run keeps its own."""
    words = [*SMALL, "save_seconds=0.0", "latency.weight=2.0", f"latency.table={priced}", *settings]
    config = search_config(*words)
    whole = search(config, corpus, tmp_path / "whole", device=CPU, quiet=True)
    original, left = SearchJob.step, [3, 13]

    def step(self: Any, at: Any, *args: Any) -> Any:
        if left and at.step == left[0]:
            left.pop(0)
            raise Crash
        return original(self, at, *args)

    monkeypatch.setattr(SearchJob, "step", step)
    with pytest.raises(Crash):
        search(config, corpus, tmp_path / "cut", device=CPU, quiet=True)
    costs = table().costs
    slower = RecurrentCosts(
        first=costs.first, products=(1e-3,) * 8, rests=costs.rests, activations=costs.activations
    )
    priced.write_text(json.dumps(table(costs=slower).to_plain()))
    with pytest.raises(Crash):
        search(config, corpus, tmp_path / "cut", device=CPU, quiet=True)
    result = search(config, corpus, tmp_path / "cut", device=CPU, quiet=True)
    assert result["digest"] == whole["digest"] and result["latency_us"] == whole["latency_us"]
    assert not left
    # And the table has its part in the result: the changed one gives another.
    other = search(config, corpus, tmp_path / "other", device=CPU, quiet=True)
    assert other["digest"] != whole["digest"]


def test_without_a_price_nothing_changes(corpus: Corpus, tmp_path: Path, priced: Path) -> None:
    results = [
        search(search_config(*SMALL, *words), corpus, tmp_path / str(i), device=CPU, quiet=True)
        for i, words in enumerate(([], [f"latency.table={priced}", "latency.form=mul"]))
    ]
    assert results[0]["digest"] == results[1]["digest"]
    assert "latency_us" not in results[0] and not (tmp_path / "0" / recurrent.RUN_FILE).exists()
    assert "expected_latency_us" not in epochs(results[0]["run"])[-1]


def test_where_no_table_is_kept_one_is_measured_for_the_run(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path))
    config = search_config(*SMALL, "latency.weight=1.0", "model.precision=float32")
    monkeypatch.setattr(recurrent, "measure_table", lambda *a, **k: table(4, processor="measured"))
    assert recurrent.given_table(config, CPU) is None
    assert recurrent.run_price(config, tmp_path, None, CPU).costs["recurrent"] == table(4).costs
    assert read_table(tmp_path / recurrent.RUN_FILE).processor == "measured"
    place = recurrent.default_path(CPU, 8, 6)
    for kept, taken in (
        (table(8), has_kernels(CPU)), (table(8, kernels=False), not has_kernels(CPU)),
        (table(3), False), (table(8, dtype="bfloat16"), False),
    ):  # fmt: skip
        place.write_text(json.dumps(kept.to_plain()))
        assert recurrent.given_table(config, CPU) == (kept if taken else None)


def test_searches_that_cannot_be_priced_are_refused(
    corpus: Corpus, tmp_path: Path, priced: Path
) -> None:
    for method in ("random", "random-ws", "evolution"):
        with pytest.raises(UsageError, match="no alphas"):
            search_config("latency.weight=0.1", method=method)
    priced.write_text(json.dumps(table(3).to_plain()))
    config = search_config(*SMALL, "latency.weight=0.1", f"latency.table={priced}")
    with pytest.raises(UsageError, match="ends at 3 nodes"):
        search(config, corpus, tmp_path / "run", device=CPU, quiet=True)
    assert not (tmp_path / "run").exists()
    idle = search_config("latency.form=mul").idle
    assert {"latency.form", "latency.ref", "latency.table"} <= idle
    assert "latency.weight" not in idle
    assert "latency.form" in search_config("latency.weight=1.0", method="enas").idle
