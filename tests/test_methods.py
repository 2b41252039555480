"""A search by every method: it runs, it resumes exactly, and the command line knows it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rnnnas.cli import main
from rnnnas.config.presets import preset_names, preset_table, resolve
from rnnnas.data.corpus import Corpus, VocabOptions, add_corpus, open_corpus
from rnnnas.engine.job import Position
from rnnnas.engine.steps import evaluate
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.methods import METHODS
from rnnnas.runs.checkpoint import load_content
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.cell_training import CellTraining
from rnnnas.searching.run import search
from rnnnas.searching.supernet import SearchJob

CPU = torch.device("cpu")
TINY = ["model.hidden=8", "model.nodes=3", "windows.streams=4", "windows.bptt=4",
        "windows.limit=3", "valid_streams=64", "epochs=2", "save_seconds=0",
        "blackbox.budget=2", "select.windows=4", "select.budget=2"]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    text = folder / "text.txt"
    lines = [" ".join(rng.choices("abcdefgh", k=9)) for _ in range(300)]
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        add_corpus("tiny", text, VocabOptions())
        yield open_corpus("tiny")


def config_of(method: str, *settings: str, preset: str = "smoke") -> Any:
    return resolve(
        "search", preset=preset, file=None, settings=[*TINY, *settings],
        flags={"corpus": "tiny", "seed": 3, "method": method},
    )  # fmt: skip


class Crash(Exception):
    """Stands for a process that dies."""


OPEN = ["space.nodes=3", 'space.ops=["gelu", "tanh", "sin"]', "space.edges_per_node=2",
        "space.output=loose_ends", "space.join=sum"]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_searches_another_space_and_resumes_exactly(
    method: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DARTS' own space is searched below, and in test_perturb by all that have gradients."""
    config = config_of(method, *OPEN)
    whole = search(config, corpus, tmp_path / "whole", device=CPU, quiet=True)
    cell = Genotype.from_plain(whole["genotype"]).recurrent
    assert [len(node) for node in cell.nodes] == [1, 2, 2] and cell.join == "sum"
    assert {gene.op for node in cell.nodes for gene in node} <= {"gelu", "tanh", "sin"}
    taken = {gene.source for node in cell.nodes for gene in node}
    assert set(cell.concat) == {1, 2, 3} - taken
    assert whole["cell"].endswith(" join sum")
    monkeypatch.setattr("rnnnas.searching.supernet._draw", lambda *_: None)  # once will do
    races = METHODS[method].derive == "halving"
    kind: Any = CellTraining if races else CandidateJob if config.from_scratch else SearchJob
    name = "advance" if races else "step"
    original, left = getattr(kind, name), [1, 4]

    def step(self: Any, *args: Any) -> Any:
        if left and (self.step if races else args[0].step) == left[0]:
            left.pop(0)
            raise Crash
        return original(self, *args)

    monkeypatch.setattr(kind, name, step)
    for _ in range(2):
        with pytest.raises(Crash):
            search(config, corpus, tmp_path / "cut", device=CPU, quiet=True)
    again = search(config, corpus, tmp_path / "cut", device=CPU, quiet=True)
    assert again["digest"] == whole["digest"]
    assert again["valid_perplexity"] == whole["valid_perplexity"]


@pytest.mark.parametrize(
    "settings",
    [("derive.by=perturbation",), ("stop.eigenvalue=true",), ("alphas.second_order=exact",
     "model.path=eager", "method=darts")],
)  # fmt: skip
def test_what_goes_with_methods_searches_another_space(
    settings: tuple[str, ...], corpus: Corpus, tmp_path: Path
) -> None:
    method = "darts" if "method=darts" in settings else "darts-1st"
    config = config_of(method, *OPEN, *(s for s in settings if not s.startswith("method=")))
    result = search(config, corpus, tmp_path, device=CPU, quiet=True)
    assert [len(node) for node in result["genotype"]["recurrent"]["nodes"]] == [1, 2, 2]


def own_preset(method: str) -> str:
    name = f"quick-{method}"
    return name if name in preset_names() else "quick"


def by_presets(method: str) -> Any:
    """The method, slow where perturbation searches DARTS' space and a sibling runs by `quick`."""
    alone = METHODS[method].alphas != "gradient" or own_preset(method) != "quick"
    always = alone or method in ("darts-1st", "gdas")
    return method if always else pytest.param(method, marks=pytest.mark.slow)


@pytest.mark.parametrize("method", [by_presets(method) for method in METHODS])
def test_every_method_runs_by_its_presets(method: str, corpus: Corpus, tmp_path: Path) -> None:
    for preset in {"quick", own_preset(method)}:
        config = config_of(method, "epochs=1", "blackbox.windows=4", preset=preset)
        assert config.method == method
        result = search(config, corpus, tmp_path / preset, device=CPU, quiet=True)
        assert len(result["genotype"]["recurrent"]["nodes"]) == 3
        assert "none" not in result["cell"]


def test_presets_named_after_a_method_use_it() -> None:
    named = [name for name in preset_names() if name.startswith("quick-")]
    assert len(named) == 6
    for name in named:
        config = resolve("search", preset=name, file=None, settings=[], flags={"corpus": "a"})
        assert config.method == name.removeprefix("quick-")
    proxyless = preset_table("quick-proxyless", "search")["alphas"]
    assert (proxyless["betas"], proxyless["weight_decay"]) == ([0.0, 0.999], 0.0)
    assert preset_table("quick-pc-darts", "search")["alphas"]["warmup"] == 0.3


def test_gdas_learns_in_a_cell_that_normalises(corpus: Corpus) -> None:
    """As published it hardly does: a node's only addend is drawn, and its scale acts on nothing."""

    def gradient(*settings: str) -> float:
        job = SearchJob(config_of("gdas", "model.path=eager", *settings), corpus, CPU)
        steps = job.lengths(0)[0]
        batch = job.train.window(0, steps)
        draws = torch.Generator().manual_seed(1)
        mixtures = job.relaxation.mix(job.alphas, job.net.space, 0.5, draws, "alphas")
        loss = job.net(batch, None, mixtures, job.net.noise(batch, draws))
        return max(float(g.norm()) for g in torch.autograd.grad(loss.value, [*job.alphas.values()]))

    assert gradient("relax.reach=sampled") < 1e-6 < 1e-5 < gradient()


@pytest.mark.parametrize("method", ["gdas", "proxyless"])
def test_a_search_that_draws_cells_reports_the_one_it_found(
    method: str, corpus: Corpus, tmp_path: Path
) -> None:
    """Not one draw, which would rank searches by their last throw."""
    config = config_of(method)
    result = search(config, corpus, tmp_path / "run", device=CPU, quiet=True)
    job = SearchJob(config, corpus, CPU)
    job.restore(load_content(tmp_path / "run/state.pt")["state"]["job"])
    found = evaluate(job.net, job.valid, job.mixtures_of(job.genotype())).perplexity
    assert result["valid_perplexity"] == pytest.approx(found, rel=1e-6)


def test_a_pruned_mixture_is_no_drawn_cell(corpus: Corpus) -> None:
    """P-DARTS computes what is left of its space, and is measured by that in every stage."""
    job = SearchJob(config_of("p-darts"), corpus, CPU)
    draws = torch.Generator().manual_seed(1)
    for i in range(6):
        job.step(Position(step=i, start=4 * i, progress=i / 6), 4, 1.0)
    assert job.stage == 2
    mixtures = job.relaxation.mix(job.alphas, job.net.space, 1.0, draws)
    assert mixtures["recurrent"].paths is not None and not job._draws_cells(mixtures)
    drawing = SearchJob(config_of("proxyless"), corpus, CPU)
    mixtures = drawing.relaxation.mix(drawing.alphas, drawing.net.space, 1.0, draws)
    assert drawing._draws_cells(mixtures)


def test_the_help_lists_every_method() -> None:
    text = CliRunner().invoke(main, ["search", "--help"]).output
    lines = [line.split() for line in text.splitlines()]
    for name, method in METHODS.items():
        assert [name, *method.about.split()] in lines


def test_a_single_level_search_has_all_the_training_text(corpus: Corpus) -> None:
    """And both steps take the same window of it."""
    job = SearchJob(config_of("snas"), corpus, CPU)
    assert job.train.length == len(corpus.splits["train"]) // 4
    seen: list[Any] = []
    original = job.architect.step

    def spy(**given: Any) -> Any:
        seen.append(given)
        return original(**given)

    job.architect.step = spy  # type: ignore[method-assign]
    job.step(Position(progress=0.5), 4, 1.0)
    assert torch.equal(seen[0]["train"][0].inputs, seen[0]["valid"][0].inputs)
    bilevel = SearchJob(config_of("darts-1st"), corpus, CPU)
    assert bilevel.train.length < job.train.length


# Stages


STAGED = ("stages.predecessors=[0,2,1]", "noise.dropouth=0.1", "stages.dropouth=[0,0.1,0.2]")


def test_every_stage_begins_anew_on_what_is_left(corpus: Corpus) -> None:
    job = SearchJob(config_of("p-darts", *STAGED), corpus, CPU)
    seen = []
    for i in range(6):
        before = {name: a.detach().clone() for name, a in job.alphas.items()}
        old = job.net
        job.step(Position(step=i, start=4 * i, progress=i / 6), 4, 1.0)
        if job.net is not old:
            space = job.net.space["recurrent"]
            scores = before["recurrent"].softmax(-1)
            for e, row in enumerate(space.allowed):
                left = [o for o, ok in enumerate(row) if ok]
                order = [o for o in scores[e].argsort(descending=True).tolist()
                         if old.space["recurrent"].allowed[e][o]]  # fmt: skip
                assert not left or left == sorted(order[: len(left)])
            # Fresh alphas: a step of Adam from a start of 1e-3 leads no further than its size.
            assert float(job.alphas["recurrent"].detach().abs().max()) < 0.02
            assert job.weight_optimizer.param_groups[0]["params"][0] is job.net.embedding
        rows = [sum(map(any, space_rows(job, n))) for n in range(3)]
        most = max(sum(row) for row in job.net.space["recurrent"].allowed)
        hidden = job.net.embedding.shape[1]
        seen.append((job.stage, most, rows, hidden, job.net.noise_config.dropouth))
    assert seen[0] == seen[1] == (0, 5, [1, 2, 3], 4, 0.0)
    assert seen[2] == seen[3] == (1, 3, [1, 2, 2], 6, 0.1)
    assert seen[4] == seen[5] == (2, 2, [1, 1, 1], 8, 0.2)


def space_rows(job: SearchJob, node: int) -> list[tuple[bool, ...]]:
    space = job.net.space["recurrent"]
    return [space.allowed[e] for e in space.rows(node)]


def test_a_state_of_an_earlier_stage_brings_it_back(corpus: Corpus) -> None:
    """As after a crash, or a divergence in the next stage; the steps then repeat exactly."""
    job = SearchJob(config_of("p-darts", *STAGED), corpus, CPU)

    def go(start: int, stop: int) -> None:
        for i in range(start, stop):
            job.step(Position(step=i, start=4 * i, progress=i / 6), 4, 1.0)

    go(0, 4)
    saved = {**job.state(), "weights": {n: w.clone() for n, w in job.state()["weights"].items()}}
    saved["alphas"] = {n: a.clone() for n, a in saved["alphas"].items()}
    go(4, 6)
    assert job.stage == 2
    end = {name: w.clone() for name, w in job.state()["weights"].items()}
    allowed = job.net.space
    job.restore(saved)
    assert job.stage == 1 and job.net.embedding.shape[1] == 6
    go(4, 6)
    assert job.net.space == allowed
    assert all(torch.equal(w, end[name]) for name, w in job.state()["weights"].items())


def test_schedules_begin_again_with_every_stage(corpus: Corpus) -> None:
    job = SearchJob(
        config_of("p-darts", "weights.schedule=linear", "alphas.warmup=0.4"), corpus, CPU
    )
    moved, rates = [], []
    original = job.architect.__class__.step

    def spy(self: Any, **given: Any) -> Any:
        moved.append(given["progress"])
        return original(self, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.architect.__class__, "step", spy)
        for i in range(6):
            rates.append(job.step(Position(step=i, start=4 * i, progress=i / 6), 4, 1.0).lr)
    assert rates == pytest.approx([20.0, 10.0] * 3)
    assert moved == pytest.approx([0.5] * 3)  # frozen for the first 0.4 of each stage


def test_a_staged_run_says_its_stage_and_saves_it(corpus: Corpus, tmp_path: Path) -> None:
    config = config_of("p-darts", "epochs=3")
    search(config, corpus, tmp_path / "run", device=CPU, quiet=True)
    state = load_content(tmp_path / "run/state.pt")["state"]["job"]
    assert state["stage"] == 2
    assert {sum(row) for row in state["allowed"]["recurrent"]} == {2}
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    assert all(f'"stage": {stage}.0' in lines for stage in (1, 2, 3))


# The documents


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_its_settings_stand_in_the_documents(method: str) -> None:
    """In a row of a table of methods; tables of results have a row a method too."""
    folder = Path(__file__).parents[1] / "docs"
    lines = [line for page in folder.glob("*.md") for line in page.read_text("utf-8").splitlines()]
    rows = [line for line in lines if line.startswith(f"| `{method}` |")]
    fields = dataclasses.fields(METHODS[method].relaxation)  # type: ignore[arg-type]
    assert any(all(f"`{field.name}`" in row for field in fields) for row in rows)
