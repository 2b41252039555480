"""Several processes against one: every number of a step, and whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rank_work
import torch
from rank_work import together
from tiny_home import home as home

from rnnnas.distributed import ALONE, Ranks
from rnnnas.errors import UsageError
from rnnnas.runs.checkpoint import load_content


def close(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# Alone


def test_streams_that_cannot_be_shared_out_are_refused() -> None:
    Ranks(1, 3).check(6)
    with pytest.raises(UsageError, match="windows.streams = 64") as error:
        Ranks(0, 3).check(64)
    assert "windows.streams=63 or 66" in error.value.remedy
    assert not error.value.quiet
    with pytest.raises(UsageError) as error:
        Ranks(2, 3).check(64)
    assert error.value.quiet, "it is said once"


def test_the_parts_cover_all_streams_once() -> None:
    assert [list(range(12))[Ranks(r, 3).part(12)] for r in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11],
    ]  # fmt: skip


def test_one_process_talks_to_nobody() -> None:
    value = torch.ones(2)
    assert ALONE.mean(value) is value and ALONE.mean_gradient(value) is value
    assert ALONE.gather(value, 0) is value and ALONE.own(value, 0) is value
    assert ALONE.broadcast(value) is value and ALONE.on_rank_zero(lambda: value) is value
    assert tuple(ALONE.max_reduce(3, 4)) == (3, 4) and ALONE.leads
    ALONE.mean_([value])


# Together


def test_messages(tmp_path: Path) -> None:
    first, second = together(rank_work.messages, tmp_path / "run", str(tmp_path))
    assert torch.equal(first["own"], torch.tensor([[0.0, 1, 2], [6, 7, 8]]))
    assert torch.equal(second["own"], torch.tensor([[3.0, 4, 5], [9, 10, 11]]))
    for found in (first, second):
        assert torch.equal(found["gathered"], torch.arange(12.0).view(2, 6))
        assert torch.equal(found["means"][0], torch.full((2,), 0.5)) and found["means"][1] == 5
        assert found["most"] == [1, 0]
        assert found["told"]["a"] == [1, None, 2.5] and torch.equal(
            found["told"]["b"], torch.ones(3)
        )
        assert found["by_rank_zero"]["fine"] == ["done"]
    assert first["by_rank_zero"]["failed"] == ["a cause", "a remedy", False]
    assert second["by_rank_zero"]["failed"] == ["a cause", "a remedy", True]
    assert (tmp_path / "by0").exists() and not (tmp_path / "by1").exists()


STEPS = [
    (cell, path, double)
    for cell, path in (
        ("derived", "fast"), ("derived", "eager"), ("lstm", "fast"),
        ("searched", "fast"), ("searched", "eager"), ("searched", "reference"),
    )
    for double in (True, False)
]  # fmt: skip
ORDERS = [("fast", "first", 0.25), ("fast", "finite", 0.25), ("eager", "finite", 0.0)]
ORDERS += [
    ("fast", "exact", 0.25),
    ("eager", "exact", 0.0),
    ("eager", "exact", 0.25),
    ("reference", "exact", 0.25),
]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_step_of_several_is_a_step_of_one(size: int, tmp_path: Path) -> None:
    """Gradients, weights, norms, losses, penalties, carries and alphas' gradients."""
    calls: list[Any] = [("steps_of", case) for case in STEPS]
    calls += [("hypergradients", case) for case in ORDERS]
    found = together(rank_work.many, tmp_path / "run", calls, size=size)
    for place, (name, case) in enumerate(calls):
        alone = getattr(rank_work, name)(ALONE, *case)
        single = name == "steps_of" and not case[2]
        for rank in range(size):
            close(found[rank][place], alone, 1e-6 if single else 1e-10)
    print(f"{len(STEPS)} steps, {len(ORDERS)} hypergradients, {size} ranks")


def test_a_rank_alone_has_another_gradient() -> None:
    """What the test above would not see if every rank had all streams, or the same ones."""
    whole = rank_work.steps_of(ALONE, "derived", "fast", True)
    half = Ranks(1, 2).own(torch.arange(rank_work.B), 0)
    assert half.tolist() == [3, 4, 5]
    ids = rank_work.window(ALONE, 0)
    assert torch.equal(rank_work.window(Ranks(1, 2), 0).inputs, ids.inputs[:, half])
    assert whole["count0"] == rank_work.T * rank_work.B


# Runs


def runs(home: Path, folder: Path, kind: str, out: str, *settings: str, event: str = "",
         size: int = 2) -> list[Any]:  # fmt: skip
    args = (str(home), kind, str(folder / out), settings, event)
    if size == 1:
        return [rank_work.a_run(ALONE, *args)]
    start = folder / f"start{len(list(folder.iterdir()))}"
    return together(rank_work.a_run, start, *args, size=size)


def state(folder: Path) -> Any:
    return load_content(folder / "state.pt")["state"]


TRAIN = ("epochs=2", "weights.lr=2", "weights.nonmono=0", "weights.finetune_epochs=1")
SEARCH = ("epochs=2", "weights.lr=2", "model.nodes=2", "windows.bptt=4")
KINDS = [("train", TRAIN), pytest.param("search", SEARCH, marks=pytest.mark.slow)]


def same_run(kind: str, found: Any, expected: Any) -> None:
    close(found["job"]["weights"], expected["job"]["weights"], 1e-5)
    if kind == "search":  # Adam makes steps of its own size of gradients that are next to nothing
        close(found["job"]["alphas"], expected["job"]["alphas"], 2e-4)
    assert found["position"] == expected["position"]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_a_run_of_two_is_a_run_of_one_and_resumes(
    kind: str, settings: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    """Also after a signal that reaches one rank only."""
    settings += ("windows.limit=8",)
    (alone,) = runs(home, tmp_path, kind, "alone", *settings, size=1)
    first, second = runs(home, tmp_path, kind, "both", *settings)
    assert first == second and first["run"] == str(tmp_path / "both")
    same_run(kind, state(tmp_path / "both"), state(tmp_path / "alone"))
    assert first["valid_perplexity"] == pytest.approx(alone["valid_perplexity"], rel=1e-5)

    def names(out: str) -> list[str]:
        return sorted(path.name.split(".")[0] for path in (tmp_path / out).iterdir())

    assert names("both") == names("alone")  # one file of events, for one
    logs = [(tmp_path / out / "metrics.jsonl").read_text() for out in ("alone", "both")]
    assert logs[0].count("\n") == logs[1].count("\n")

    stopped = runs(home, tmp_path, kind, "cut", *settings, event="stop")
    assert [s["code"] for s in stopped] == [143, 143]
    assert [s["quiet"] for s in stopped] == [False, True]
    assert state(tmp_path / "cut")["position"]["step"] == 14
    again, _ = runs(home, tmp_path, kind, "cut", *settings)
    assert again["digest"] == first["digest"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), [("train", TRAIN), ("search", SEARCH)])
def test_a_run_goes_on_with_another_number_of_ranks(
    kind: str, settings: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    settings += ("windows.limit=8",)
    runs(home, tmp_path, kind, "alone", *settings, size=1)
    runs(home, tmp_path, kind, "cut", *settings, event="stop")
    (fewer,) = runs(home, tmp_path, kind, "cut", *settings, size=1)
    assert fewer["run"] == str(tmp_path / "cut")
    same_run(kind, state(tmp_path / "cut"), state(tmp_path / "alone"))


def test_a_rank_that_diverges_takes_all_back(home: Path, tmp_path: Path) -> None:
    settings = ("epochs=1", "save_seconds=0", "windows.limit=16")
    first, second = runs(home, tmp_path, "train", "run", *settings, event="nan")
    assert first == second
    after = state(tmp_path / "run")
    assert after["rollbacks"] == 1 and after["lr_factor"] == 0.5
    assert all(bool(torch.isfinite(w).all()) for w in after["job"]["weights"].values())


def test_what_rank_0_refuses_ends_all(home: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/other").touch()
    found = runs(home, tmp_path, "train", "run")
    assert [f["code"] for f in found] == [2, 2] and [f["quiet"] for f in found] == [False, True]
    assert all("holds files but no run" in f["cause"] for f in found)
