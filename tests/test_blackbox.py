"""Searches that try cells: exact resumes, budgets, and what is scored on which text."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_work import zipf_text
from test_runs import CPU, Crash, command, crashing, killed_until_done, metrics, run_through
from tiny_home import corpus as corpus
from tiny_home import home as home

from rnnnas.config.plain import from_plain, to_plain
from rnnnas.config.presets import resolve
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.engine.job import Position
from rnnnas.engine.metrics import perplexity
from rnnnas.engine.steps import evaluate
from rnnnas.errors import CheckpointError, DivergedError, Interrupted, UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.methods import METHODS
from rnnnas.runs.checkpoint import load_content
from rnnnas.searching import blackbox, derive_by_trying
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.run import job_of, search
from rnnnas.searching.supernet import SearchJob

pytestmark = pytest.mark.usefixtures("undrawn")  # test_alphas_log looks at images

HOME_TEXT = zipf_text(30, 400)
SMALL = ["model.hidden=6", "model.nodes=3", "windows.streams=6", "valid_streams=6", "epochs=2"]
SMALL += ["windows.limit=6", "blackbox.cells=4", "blackbox.population=2", "blackbox.sample=2"]
STEPS = 12  # weight steps of such a search
TRYING = {
    "random": ["method=random"],
    "evolution": ["method=evolution"],
    "evolution, shared": ["method=evolution", "blackbox.weights=shared"],
    "random-ws": ["method=random-ws"],
    "enas": ["method=enas", "relax.hidden=8", "relax.samples=2"],
}
POLICIES = ["enas", "proxyless-reinforce"]
SHARED = ["evolution, shared", "random-ws", "enas"]
EVERY = {**TRYING, "proxyless-reinforce": ["method=proxyless-reinforce", "relax.samples=2"]}


def config(*settings: str) -> SearchConfig:
    flags = {"corpus": "tiny", "seed": 3}
    resolved: SearchConfig = resolve(
        "search", preset="smoke", file=None, settings=[*SMALL, *settings], flags=flags
    )
    return resolved


def candidates(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(folder) if line["kind"] == "candidate"]


def outcome(folder: Path) -> list[Any]:
    """What the metrics say, without times and without what depends on them."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")}
        for line in metrics(folder)
    ]


def dying_evaluation(patch: pytest.MonkeyPatch, numbers: list[int]) -> None:
    """Make the scoring of cells die at those calls, counted over all processes."""
    original, calls, left = derive_by_trying.evaluate, [0], list(numbers)

    def scored(*args: Any) -> Any:
        calls[0] += 1
        if left and calls[0] == left[0]:
            left.pop(0)
            raise Crash
        return original(*args)

    patch.setattr(derive_by_trying, "evaluate", scored)


@pytest.mark.parametrize("name", EVERY)
def test_a_search_resumes_exactly_wherever_it_dies(
    name: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(config(*EVERY[name], "save_seconds=1000"), corpus, tmp_path / "whole",
                   device=CPU, quiet=True)  # fmt: skip
    keys = {"run", "genotype", "cell", "seconds", "valid_perplexity", "arithmetic", "digest"}
    keys |= {"unigram_perplexity", "bigram_perplexity"}
    assert set(whole) == keys and math.isfinite(whole["valid_perplexity"])
    assert Genotype.from_plain(whole["genotype"]).to_text() == whole["cell"]
    scratch = name in ("random", "evolution")
    for seconds in ("0", "1000") if name in ("random", "random-ws") else ("0",):
        with monkeypatch.context() as patch:
            # A cell from scratch gets 3 steps here: at the start, in the middle, at the end.
            crashing(patch, CandidateJob if scratch else SearchJob, [0, 1, 4, 6, 8, STEPS - 1])
            dying_evaluation(patch, [1, 4, 6] if name in SHARED and seconds == "0" else [])
            settings = config(*EVERY[name], f"save_seconds={seconds}")
            result, crashes = run_through(search, settings, corpus, tmp_path / f"cut{seconds}")
        assert crashes == (9 if name in SHARED and seconds == "0" else 6)
        for key in ("digest", "valid_perplexity", "cell"):
            assert result[key] == whole[key]
        assert outcome(tmp_path / f"cut{seconds}") == outcome(tmp_path / "whole")
    print(f"{name}: 6 stop points or more, saved always; cells of either weights also never")


@pytest.mark.parametrize("name", EVERY)
def test_a_seed_decides(name: str, corpus: Corpus, tmp_path: Path) -> None:
    """Another gives something else; that the same gives the same is tested with the resumes."""
    digests = []
    for seed in (3, 4):
        plain = to_plain(config(*EVERY[name], "epochs=1")) | {"seed": seed}
        settings = from_plain(SearchConfig, plain)
        result = search(settings, corpus, tmp_path / str(seed), device=CPU, quiet=True)
        digests.append(result["digest"])
    assert digests[0] != digests[1]


@pytest.mark.parametrize("name", TRYING)
def test_the_best_of_the_cells_that_were_tried_is_the_result(
    name: str, corpus: Corpus, tmp_path: Path
) -> None:
    result = search(config(*TRYING[name]), corpus, tmp_path, device=CPU, quiet=True)
    lines = candidates(tmp_path)
    assert [line["number"] for line in lines] == [1, 2, 3, 4]
    least = math.inf
    for line in lines:
        least = min(least, line["perplexity"])
        assert line["best_perplexity"] == least
    first = next(line for line in lines if line["perplexity"] == least)
    assert first["cell"] == result["cell"]
    assert json.loads((tmp_path / "genotype.json").read_text()) == result["genotype"]


@pytest.mark.parametrize("name", ["random", "evolution"])
@pytest.mark.parametrize(
    ("settings", "shares"),
    [([], [3, 3, 3, 3]), (["blackbox.cells=5"], [3, 3, 2, 2, 2]), (["blackbox.cells=13"], [1] * 13),
     (["blackbox.windows=5", "blackbox.cells=2"], [5, 5])],
)  # fmt: skip
def test_the_budget_is_the_searchs_own(
    name: str, settings: list[str], shares: list[int], corpus: Corpus, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Weight steps are counted where they are taken, network by network."""
    counted: dict[int, int] = {}
    nets = []  # kept, so that no two have one id
    original = blackbox.weight_step

    def counting(net: Any, *args: Any, **kwargs: Any) -> Any:
        nets.append(net)
        counted[id(net)] = counted.get(id(net), 0) + 1
        return original(net, *args, **kwargs)

    monkeypatch.setattr(blackbox, "weight_step", counting)
    search(config(*TRYING[name], *settings), corpus, tmp_path, device=CPU, quiet=True)
    assert list(counted.values()) == shares


def test_a_darts_search_takes_as_many_steps_as_all_cells_together(corpus: Corpus) -> None:
    darts = SearchJob(config("method=darts-1st"), corpus, CPU)
    tried = CandidateJob(config("method=random"), corpus, CPU)
    steps = [sum(len(job.lengths(e)) for e in range(job.epochs)) for job in (darts, tried)]
    assert steps == [STEPS, STEPS]


def test_a_long_training_starts_the_text_again(corpus: Corpus) -> None:
    settings = config("method=random", "windows.limit=0", "blackbox.windows=100")
    job = CandidateJob(settings, corpus, CPU)
    starts = [start for start, _ in job.windows]
    again = starts.index(0, 1)
    assert len(starts) == 100 > again
    last, steps = job.windows[again - 1]
    assert last + steps == job.train.length - 1, "the pass before went to the end"
    carries: list[Any] = []
    job.net.register_forward_pre_hook(lambda net, args: carries.append(args[1]))
    for window in (again - 1, again):
        job.step(Position(window=window), job.windows[window][1], 1.0)
        job.hidden_state = torch.ones(6, 6)
    job.step(Position(window=again + 1), job.windows[again + 1][1], 1.0)
    assert carries[1] is None and torch.equal(carries[2], torch.ones(6, 6))


def test_cells_with_a_length_of_their_own_have_no_epochs(corpus: Corpus) -> None:
    """And are scored on as many targets as they are trained on, shared out."""
    settings = ["method=random", "windows.limit=0", "blackbox.windows=4", "blackbox.cells=3"]
    jobs = [CandidateJob(config(*settings, f"epochs={n}"), corpus, CPU) for n in (1, 5)]
    assert {"epochs", "least_steps"} <= jobs[0].config.idle
    assert {"epochs"} <= config("method=halving", "blackbox.windows=4").idle
    assert "epochs" not in config("method=random").idle
    assert jobs[0].scored.length == jobs[1].scored.length
    assert jobs[0].scored.length - 1 == sum(steps for _, steps in jobs[0].windows)


def test_cells_differ_in_nothing_but_the_cell(corpus: Corpus) -> None:
    """The third of four cells trains as it would alone; the schedule spans one cell."""
    settings = config("method=random", "weights.schedule=linear")
    job, alone = (CandidateJob(settings, corpus, CPU) for _ in range(2))
    reports = []
    for cell in range(3):
        if cell == 2:
            alone.strategy.restore(job.strategy.state())
        for trained in (job, alone) if cell == 2 else (job,):
            trained.begin_epoch(Position(epoch=cell))
            reports += [
                trained.step(Position(epoch=cell, window=i, step=3 * cell + i), steps, 1.0)
                for i, steps in enumerate(trained.lengths(cell))
            ]
        job.strategy.tell(job.genotype_now, 1.0)
    assert reports[6:9] == reports[9:12]
    assert reports[:3] != reports[3:6] and reports[3:6] != reports[6:9] != reports[:3]
    factors = [r.lr / steps for r, steps in zip(reports[:3], job.lengths(0), strict=True)]
    assert [factor / factors[0] for factor in factors] == pytest.approx([1, 2 / 3, 1 / 3])


@pytest.mark.parametrize("text", ["held-out", "valid"])
def test_cells_are_scored_on_the_alphas_text(text: str, corpus: Corpus) -> None:
    settings = config("method=random", f"alphas.text={text}", "blackbox.targets=60")
    scratch = CandidateJob(settings, corpus, CPU)
    shared = SearchJob(config("method=random-ws", f"alphas.text={text}"), corpus, CPU)
    train, valid = corpus.splits["train"], corpus.splits["valid"]
    kept = int(len(train) * 0.9)
    expected = train[kept:] if text == "held-out" else valid
    assert scratch.train.length == (kept if text == "held-out" else len(train)) // 6
    assert (scratch.scored.length - 1) * 6 == 60
    one = Streams(expected[:66], 6, CPU).window(0, 10)
    assert torch.equal(scratch.scored.window(0, 10).inputs, one.inputs)
    # Without the setting: a fourth of the 2 · 6 windows, T of each as drawn, or all there is.
    assert shared.scored is not None
    share = 2 * sum(shared.lengths(0)) // 4
    assert shared.scored.length - 1 == min(share, len(expected) // 6 - 1) > 20


def test_the_reported_perplexity_is_of_the_chosen_cell(corpus: Corpus, tmp_path: Path) -> None:
    settings = config("method=random-ws")
    result = search(settings, corpus, tmp_path, device=CPU, quiet=True)
    job = SearchJob(settings, corpus, CPU)
    job.restore(load_content(tmp_path / "state.pt")["state"]["job"])
    assert job.scored is not None
    scored = {}
    for line in candidates(tmp_path):
        mixtures = job.mixtures_of(Genotype.from_text(line["cell"]))
        scored[line["cell"]] = evaluate(job.net, job.scored, mixtures).perplexity
        assert scored[line["cell"]] == pytest.approx(line["perplexity"], rel=1e-12)
    assert min(scored, key=lambda cell: scored[cell]) == result["cell"]
    mixtures = job.mixtures_of(Genotype.from_text(result["cell"]))
    assert evaluate(job.net, job.valid, mixtures).perplexity == result["valid_perplexity"]


def test_shared_evolution_warms_up_as_random_search_does(corpus: Corpus, tmp_path: Path) -> None:
    states = []
    for name in ("evolution, shared", "random-ws"):
        search(config(*TRYING[name]), corpus, tmp_path / name, device=CPU, quiet=True)
        states.append(load_content(tmp_path / name / "state.pt")["state"]["job"]["weights"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_one_lost_cell_does_not_end_a_search(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = blackbox.weight_step
    calls = [0]

    def step(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        loss, norm = original(*args, **kwargs)
        return (loss, math.nan) if calls[0] == 2 else (loss, norm)  # in the first cell

    monkeypatch.setattr(blackbox, "weight_step", step)
    result = search(config("method=random"), corpus, tmp_path, device=CPU, quiet=True)
    assert calls[0] == STEPS - 1, "what the diverged cell had left is not trained"
    lines = candidates(tmp_path)
    assert [line["perplexity"] is None for line in lines] == [True, False, False, False]
    assert result["cell"] != lines[0]["cell"] and math.isfinite(result["valid_perplexity"])


def test_a_search_whose_cells_are_all_lost_fails(corpus: Corpus, tmp_path: Path) -> None:
    settings = config("method=random", "weights.lr=1e30", "weights.clip=0")
    with pytest.raises(DivergedError, match="all 4 cells"):
        search(settings, corpus, tmp_path, device=CPU, quiet=True)
    assert not (tmp_path / "result.json").exists()


def test_a_signal_while_cells_are_tried_saves_and_stops(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("method=random-ws", "save_seconds=1000")
    whole = search(settings, corpus, tmp_path / "whole", device=CPU, quiet=True)
    original = derive_by_trying.evaluate
    scored = []

    def evaluation(*args: Any) -> Any:
        scored.append(1)
        if len(scored) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(derive_by_trying, "evaluate", evaluation)
    with pytest.raises(Interrupted) as stopped:
        search(settings, corpus, tmp_path / "run", device=CPU, quiet=True)
    assert stopped.value.exit_code == 143
    assert len(load_content(tmp_path / "run/state.pt")["state"]["tried"]) == 2
    again = search(settings, corpus, tmp_path / "run", device=CPU, quiet=True)
    assert again["digest"] == whole["digest"]
    assert len(scored) == 4, "what was scored before the signal is not scored again"


def test_a_cell_that_comes_again_is_not_computed_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = derive_by_trying.evaluate
    monkeypatch.setattr(
        derive_by_trying, "evaluate", lambda *args: calls.append(1) or original(*args)
    )
    settings = config("method=enas", "relax.hidden=2", "model.nodes=1", "blackbox.cells=9")
    search(settings, corpus, tmp_path, device=CPU, quiet=True)
    lines = candidates(tmp_path)
    assert len(lines) == 9 > len(calls) == len({line["cell"] for line in lines})


def test_policies_keep_their_baseline_and_train_in_both_steps(
    corpus: Corpus, tmp_path: Path
) -> None:
    settings = config("method=proxyless-reinforce", "alphas.warmup=0.5")
    search(settings, corpus, tmp_path, device=CPU, quiet=True)
    job = load_content(tmp_path / "state.pt")["state"]["job"]
    assert 0 < job["architect"]["baseline"] < 80
    fresh = SearchJob(settings, corpus, CPU)
    moved = [
        not torch.equal(job["alphas"]["recurrent"], fresh.alphas["recurrent"].detach()),
        not torch.equal(job["weights"]["nodes"], fresh.net.nodes.detach()),
    ]
    assert moved == [True, True]
    steps = [state["step"] for state in job["alpha_optimizer"]["state"].values()]
    assert [float(step) for step in steps] == [STEPS / 2]


def test_random_search_with_shared_weights_has_a_method_of_its_own() -> None:
    with pytest.raises(UsageError, match="from scratch") as caught:
        config("method=random", "blackbox.weights=shared")
    assert "random-ws" in caught.value.remedy


def test_every_method_says_how_many_cells_it_tries() -> None:
    for method in METHODS.values():
        assert (method.derive in ("scores", "halving")) == (method.cells == 0)
        assert method.alphas != "policy" or method.order == "first"
    assert config("method=random", "blackbox.cells=0").cells == METHODS["random"].cells
    assert config("method=random").cells == 4


def test_the_job_follows_the_method(corpus: Corpus) -> None:
    for name, settings in EVERY.items():
        kind = CandidateJob if name in ("random", "evolution") else SearchJob
        assert type(job_of(config(*settings), corpus, CPU)) is kind


def test_an_infinite_loss_is_an_infinite_perplexity() -> None:
    assert perplexity(math.inf, 1) == math.inf


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "random-ws"])
def test_killed_commands_end_with_the_same_digest(name: str, home: Path, tmp_path: Path) -> None:
    words = ["search", "--corpus", "tiny", "--preset", "smoke", "--set", "save_seconds=0.05"]
    for setting in [*SMALL, "windows.limit=0", "blackbox.cells=60", *TRYING[name]]:
        words += ["--set", setting]
    out, err = command(home, *words, "--out", str(tmp_path / "whole"), "--json").communicate()
    result = killed_until_done(home, words, tmp_path / "killed", 3)
    assert result["digest"] == json.loads(out)["digest"], err
    print(f"{name}: 3 kills")


def test_cells_that_were_scored_on_other_targets_are_not_ranked_with_these(corpus: Corpus) -> None:
    """As an earlier version did, which did not say on how many."""
    made = config("method=random", "windows.limit=0", "blackbox.windows=4")
    job = CandidateJob(made, corpus, CPU)
    job.strategy.tell(job.genotype_now, 1.0)
    state = job.state()
    CandidateJob(made, corpus, CPU).restore(state)
    for other in ({**state, "scored": 7}, {k: v for k, v in state.items() if k != "scored"}):
        with pytest.raises(CheckpointError, match="another number of targets"):
            CandidateJob(made, corpus, CPU).restore(other)
    # Without a length of their own nothing has changed.
    made = config("method=random")
    state = CandidateJob(made, corpus, CPU).state()
    CandidateJob(made, corpus, CPU).restore({k: v for k, v in state.items() if k != "scored"})
