"""What a study comes to: its jobs, its settings, and the presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rnnnas.config.presets import preset_names, preset_tables
from rnnnas.errors import UsageError
from rnnnas.nas.methods import METHODS
from rnnnas.nas.zoo import genotype_of
from rnnnas.studies.plan import (
    RANDOM,
    Sizes,
    StudyConfig,
    command,
    first_jobs,
    random_cell,
    resolve_study,
    resolved_runs,
    search_config,
    train_config,
)

SIZES = Sizes({"train": range(20_000)})


def plan(*settings: str, preset: str = "study-smoke", **flags: Any) -> StudyConfig:
    return resolve_study(preset=preset, settings=settings, flags={"corpus": "hmm", **flags})


def test_the_jobs_of_a_plan() -> None:
    config = plan(methods=["darts", "darts-1st"], seeds=[1, 3])
    jobs = first_jobs(config, SIZES)
    found = ["darts-s1", "darts-s3", "darts-1st-s1", "darts-1st-s3"]
    random = [f"train-random-r{k}" for k in (1, 2, 3, 4)]
    assert [job.name for job in jobs] == [
        *(f"search-{name}" for name in found), *(f"train-{name}" for name in found), *random
    ]  # fmt: skip
    assert [job.after for job in jobs[4:8]] == [f"search-{name}" for name in found]
    assert all(job.after is None for job in jobs[8:])
    assert command(jobs[1], Path("/s")) == (
        "search", "--corpus", "hmm", "--preset", "smoke", "--set", "epochs=1",
        "--set", "save_seconds=0.2", "--set", "model.hidden=8", "--method", "darts",
        "--seed", "3", "--out", "/s/search-darts-s3", "--json",
    )  # fmt: skip
    words = command(jobs[5], Path("/s"))
    assert words[words.index("--genotype") + 1] == "/s/search-darts-s3"
    assert words[words.index("--seed") + 1] == "3"


def test_random_cells_are_those_of_train_and_as_many_as_asked_for() -> None:
    config = plan(random_cells=5)
    assert random_cell(config, 7) == genotype_of("random:7", 0).to_text()
    assert sum(job.method == RANDOM for job in first_jobs(config, SIZES)) == 5
    small = plan("search.model.nodes=3")
    assert len(random_cell(small, 1).split()) == 3


def test_steps_are_those_of_the_runs() -> None:
    config = plan("search.windows.limit=7", "search.epochs=3", "short.windows.limit=0")
    by_kind = {job.kind: job.steps for job in first_jobs(config, SIZES)}
    assert by_kind["search"] == 21
    # 20,000 tokens in 32 streams are 625 - 1 targets each: about 63 windows of 10 tokens.
    assert 55 <= by_kind["short"] <= 75


def test_a_search_of_one_level_holds_no_text_back() -> None:
    """SNAS trains its alphas on the weights' own windows, and works through the whole text."""
    config = plan("search.windows.limit=0", methods=["snas", "darts-1st"])
    snas, darts = (search_config(config, method) for method in config.methods)
    assert SIZES.steps(darts) == Sizes({"train": range(18_000)}).steps(snas) < SIZES.steps(snas)


def test_random_search_is_a_method_beside_the_random_cells() -> None:
    """Each has jobs of its own; a name twice would train one cell for two."""
    config = plan(methods=["random", "random-ws"])
    jobs = first_jobs(config, SIZES)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert {job.method for job in jobs} == {"random", "random-ws", RANDOM}
    assert "train-random-s1" in names and "train-random-r1" in names
    assert RANDOM not in METHODS


def test_a_method_has_settings_of_its_own() -> None:
    config = plan("own.darts.alphas.lr=0.5", methods=["darts", "darts-1st"])
    assert search_config(config, "darts").alphas.lr == 0.5
    assert search_config(config, "darts-1st").alphas.lr != 0.5


@pytest.mark.parametrize(
    ("settings", "flags", "named"),
    [
        ([], {"methods": ["dartz"]}, "did you mean 'darts'"),
        ([], {"methods": ["darts", "darts"]}, "without repetitions"),
        ([], {"seeds": []}, "at least one"),
        (["short.epochz=3"], {}, "epochz"),
        (["final.preset=quik"], {}, "did you mean 'quick'"),
        (["final.preset=7"], {}, "final.preset = 7"),
        (["retries=-1"], {}, "negative"),
        (["own.darts=3"], {}, "own.darts"),
        (["own.dart.epochs=3"], {}, "did you mean 'darts'"),
        (["search.method=gdas"], {}, "search.method = 'gdas'"),
        (["short.seed=9"], {}, "short.seed = 9"),
        (["own.darts-1st.corpus=ptb"], {}, "own.darts-1st.corpus"),
        (["seeds=[1.5]"], {}, "seeds"),
        (["seeds=3"], {}, "must be a list"),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_any_starts(
    settings: list[str], flags: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        plan(*settings, **flags)


@pytest.mark.parametrize("name", [n for n in preset_names() if "study" in preset_tables(n)])
def test_every_study_preset_plans(name: str) -> None:
    missing = set(preset_tables(name)["study"]["methods"]) - set(METHODS)
    if missing:
        pytest.skip(f"methods not there yet: {sorted(missing)}")
    config = plan(preset=name)
    jobs = first_jobs(config, SIZES)
    assert len(jobs) == 3 * len(config.methods) * len(config.seeds)
    assert set(resolved_runs(config)) == {
        *(f"search.{m}" for m in config.methods), "short", "final"
    }  # fmt: skip


def test_the_paper_study_is_the_papers_protocol() -> None:
    config = plan(preset="study-paper")
    assert config.seeds == (1, 2, 3, 4) and config.randoms == 8
    assert search_config(config, "darts").alphas.text == "valid"
    assert (train_config(config, "short").epochs, train_config(config, "final").epochs) == (
        300, 3600,
    )  # fmt: skip
