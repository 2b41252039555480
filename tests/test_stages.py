"""Stages: how they are planned, when they begin, what stays of a space, and whole searches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnnas.config.plain import from_plain, to_plain, to_toml
from rnnnas.config.presets import resolve
from rnnnas.config.text import SearchConfig
from rnnnas.errors import UsageError
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.nas.stages import Stage, StageConfig, plan, progress_within, stage_at, strongest


def planned(
    staged: bool = False, operations: int = 5, partial: int = 1, hidden_all: int = 101,
    keep: int = 1, **lists: Any,
) -> tuple[Stage, ...]:  # fmt: skip
    config = from_plain(StageConfig, lists, "stages.")
    return plan(
        config, staged=staged, operations=operations, keep=keep, hidden=hidden_all,
        partial=partial, dropouth=0.2,
    )  # fmt: skip


def test_a_search_of_one_stage_says_its_size_once() -> None:
    for setting in ("stages.hidden=[64]", "stages.dropouth=[0.5]"):
        with pytest.raises(UsageError, match="for several stages"):
            resolve("search", preset="quick", file=None, settings=[setting],
                    flags={"corpus": "ptb", "method": "random"})  # fmt: skip


def test_no_stage_leaves_a_node_fewer_edges_than_it_keeps() -> None:
    narrowing = {"ops": [5, 3], "predecessors": [0, 1]}
    assert planned(**narrowing)[1].predecessors == 1
    with pytest.raises(UsageError, match="keeps 2 edges"):
        planned(keep=2, **narrowing)
    words = ["stages.ops=[8,5,3]", "stages.predecessors=[0,1,1]"]
    with pytest.raises(UsageError, match="keeps 2 edges"):
        resolve("image-search", preset="cifar10-p-darts", file=None, settings=words,
                flags={"corpus": "cifar10"})  # fmt: skip


def test_a_search_has_one_stage_unless_it_is_asked_for_more() -> None:
    assert planned() == (Stage(ops=5, predecessors=0, hidden=101, dropouth=0.2),)


def test_the_stages_of_p_darts() -> None:
    """5, 3, 2 operations here; 8, 5, 3 with the paper's eight; the network grows from half."""
    assert [s.ops for s in planned(staged=True)] == [5, 3, 2]
    assert [s.ops for s in planned(staged=True, operations=8)] == [8, 5, 3]
    assert [s.hidden for s in planned(staged=True)] == [51, 76, 101]
    assert {(s.predecessors, s.dropouth) for s in planned(staged=True)} == {(0, 0.2)}


def test_every_stage_has_units_that_its_parts_divide() -> None:
    """A search under partial units must not end with its first stage."""
    sizes = [s.hidden for s in planned(staged=True, partial=4, hidden_all=100)]
    assert sizes == [52, 76, 100]
    with pytest.raises(UsageError, match=r"model.partial = 4 does not divide stages.hidden = \[8"):
        planned(ops=[5, 3], hidden=[8, 10], partial=4)
    for method in ("p-darts", "darts-1st"):
        settings = ("model.hidden=100", "model.partial=4", "stages.ops=[5,3,2]")
        flags = {"corpus": "tiny", "method": method}
        config = resolve("search", preset="quick", file=None, settings=settings, flags=flags)
        assert [stage.hidden for stage in config.plan] == sizes


def test_stages_as_they_are_set() -> None:
    lists = {"ops": [5, 4], "predecessors": [0, 3], "hidden": [7, 9], "dropouth": [0.1, 0.4]}
    wanted = (Stage(5, 0, 7, 0.1), Stage(4, 3, 9, 0.4))
    assert planned(**lists) == planned(staged=True, **lists) == wanted


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"ops": [5, 0]}, "at least 1"),
        ({"ops": [5, 2, 3]}, "must not grow"),
        ({"ops": [4, 3]}, "must begin with 5"),
        ({"ops": 5}, "must be a list"),
        ({"ops": [5, 2.5]}, "int"),
        ({"ops": [5, 3], "hidden": [8]}, "must have 2 values"),
        ({"hidden": [8, 9]}, "must have 1 values"),
        ({"ops": [5, 3], "hidden": [8, 0]}, "at least 1"),
        ({"ops": [5, 3], "dropouth": [0.1, 1.0]}, r"in \[0, 1\)"),
        ({"ops": [5, 3], "predecessors": [2, 1]}, "must begin with 0"),
        ({"ops": [5, 3], "predecessors": [0, -1]}, "at least 0"),
    ],
)
def test_stages_that_do_not_fit_are_refused(lists: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        planned(**lists)
    assert "stages." in caught.value.cause


def test_stages_are_settings_of_a_search() -> None:
    settings = ["stages.ops=[5,2]", "stages.hidden=[8,16]", "model.hidden=16"]
    config = resolve("search", preset="smoke", file=None, settings=settings, flags={"corpus": "a"})
    assert [(s.ops, s.hidden) for s in config.plan] == [(5, 8), (2, 16)]
    assert from_plain(SearchConfig, to_plain(config)) == config
    assert "ops = [5, 2]" in to_toml(to_plain(config))
    with pytest.raises(UsageError, match=r"stages\.ops = \[3\] must begin with 5"):
        resolve("search", preset="smoke", file=None, settings=["stages.ops=[3]"],
                flags={"corpus": "a"})  # fmt: skip


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 30))
def test_stages_share_the_windows_equally(count: int, epochs: int, windows: int) -> None:
    """Whatever the epochs: no stage is left out, and none is longer than another by two windows."""
    total = epochs * windows
    at = [
        stage_at((e + w / windows) / epochs, count) for e in range(epochs) for w in range(windows)
    ]
    assert at == sorted(at) and set(at) <= set(range(count))
    lengths = [at.count(stage) for stage in range(count)]
    assert max(lengths) - min(lengths) <= 1
    if total >= count:
        assert min(lengths) >= 1
    for e in range(epochs):
        for w in range(windows):
            progress = (e + w / windows) / epochs
            within = progress_within(progress, stage_at(progress, count), count)
            assert 0 <= within < 1 or within == pytest.approx(1)


def test_one_stage_has_the_progress_of_the_search() -> None:
    for progress in (0.0, 1 / 3, 0.1 + 0.2, 1.0):
        assert stage_at(progress, 1) == 0 and progress_within(progress, 0, 1) == progress


OPS = ("none", "a", "b", "c")
SPACE = CellSpace(inputs=1, nodes=2, ops=OPS, keep=1)


def kept(space: CellSpace) -> list[str]:
    return ["".join(op[0] for op, ok in zip(OPS, row, strict=True) if ok) for row in space.allowed]


SCORES = [[0.9, 0.1, 0.3, 0.2], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.2, 0.5]]


@pytest.mark.parametrize("method", ["random", "random-ws", "evolution", "enas"])
def test_stages_need_scores_to_prune_by(method: str) -> None:
    with pytest.raises(UsageError, match="stages prune operations by the scores of alphas"):
        resolve("search", preset="smoke", file=None, settings=["stages.ops=[5,3]"],
                flags={"corpus": "tiny", "method": method})  # fmt: skip


@pytest.mark.parametrize(
    ("ops", "predecessors", "wanted"),
    [
        (4, 0, ["nabc", "nabc", "nabc"]),
        (3, 0, ["nbc", "nab", "abc"]),
        (2, 0, ["nb", "na", "ac"]),  # `none` counts; ties go to the earlier
        (1, 0, ["b", "a", "c"]),  # but an edge is never left with it alone
        (2, 1, ["nb", "", "ac"]),  # edges compare by their best real operation
    ],
)
def test_what_scores_best_stays(ops: int, predecessors: int, wanted: list[str]) -> None:
    stage = Stage(ops, predecessors, 1, 0.0)
    assert kept(strongest(SPACE, SCORES, stage)) == wanted


def test_what_is_gone_stays_gone() -> None:
    first = strongest(SPACE, SCORES, Stage(2, 1, 1, 0.0))
    turned = [[1 - value for value in row] for row in SCORES]
    second = strongest(first, turned, Stage(2, 1, 1, 0.0))
    assert second == first
    assert kept(strongest(first, turned, Stage(1, 1, 1, 0.0))) == ["b", "", "a"]


def test_too_few_edges_are_refused() -> None:
    space = CellSpace(inputs=2, nodes=1, ops=OPS, keep=2)
    with pytest.raises(UsageError, match="fewer than 2 edges"):
        strongest(space, SCORES[:2], Stage(2, 1, 1, 0.0))


def test_the_strongest_half_of_the_recurrent_space_still_counts() -> None:
    space = recurrent_space(3)
    flat = [[0.2 + 0.01 * o for o in range(5)] for _ in space.edges]
    for stage, choices in zip(planned(staged=True), (4, 3, 2), strict=True):
        space = strongest(space, flat, stage)
        assert space.count() == choices * (2 * choices) * (3 * choices)
