"""What is held out: in proportion, seeded, a partition."""

from __future__ import annotations

import numpy as np
import pytest

from rnnnas.data.image_splits import balanced_order, plan
from rnnnas.errors import DataError


def some_labels(counts: list[int], seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.RandomState(seed).permutation(labels)


@pytest.mark.parametrize("counts", [[500] * 10, [1000, 100, 37], [1, 2, 3, 500], [7]])
def test_any_stretch_holds_the_classes_in_proportion(counts: list[int]) -> None:
    labels = some_labels(counts)
    order = balanced_order(labels)
    assert sorted(order) == list(range(len(labels)))
    random = np.random.RandomState(1)
    for _ in range(50):
        start, stop = sorted(random.randint(0, len(labels) + 1, 2))
        found = np.bincount(labels[order[start:stop]], minlength=len(counts))
        expected = np.array(counts) * (stop - start) / len(labels)
        # Each end of the stretch cuts each class within one image of its share, and the share
        # itself moves by what the other classes' rounding moves the end.
        assert (np.abs(found - expected) <= 2 + len(counts) * expected / (stop - start + 1)).all()


def test_equal_classes_are_held_out_equally() -> None:
    labels = some_labels([50] * 4)
    parts = plan({"train": labels, "test": labels}, "x").parts
    assert np.bincount(labels[parts["valid"].rows]).tolist() == [5] * 4
    assert np.bincount(labels[parts["train"].rows]).tolist() == [45] * 4


def test_the_order_is_random_and_seeded() -> None:
    labels = some_labels([200, 200])
    first = balanced_order(labels)
    assert np.array_equal(first, balanced_order(labels))
    assert not np.array_equal(first, balanced_order(labels, seed=1))
    # Within a class: no trace of the order in which the images came.
    ranks = first[labels[first] == 0]
    assert abs(np.corrcoef(ranks, np.arange(200))[0, 1]) < 0.25
    # Known for good: the hash of a corpus depends on it.
    assert balanced_order(np.array([0, 1, 0, 1, 0, 1])).tolist() == [2, 1, 0, 3, 4, 5]


@pytest.mark.parametrize(
    ("there", "sizes", "sources", "says"),
    [
        (["train", "valid", "test"], (100, 20, 30), ("train", "valid", "test"), ""),
        (["train", "test"], (90, 10, 30), ("train", "train", "test"), "last tenth"),
        (["train", "valid"], (90, 10, 20), ("train", "train", "valid"), "validation images are te"),
        (["train"], (80, 10, 10), ("train", "train", "train"), "a tenth each"),
    ],
)
def test_what_each_set_of_splits_gives(
    there: list[str], sizes: tuple[int, ...], sources: tuple[str, ...], says: str
) -> None:
    lengths = {"train": 100, "valid": 20, "test": 30}
    labels = {split: some_labels([lengths[split] // 2] * 2) for split in there}
    made = plan(labels, "x")
    assert list(made.parts) == ["train", "valid", "test"]
    assert tuple(len(part.rows) for part in made.parts.values()) == sizes
    assert tuple(part.source for part in made.parts.values()) == sources
    assert (says in made.note) if says else not made.note
    for source in there:  # every image in one part, once
        rows = [part.rows for part in made.parts.values() if part.source == source]
        assert sorted(np.concatenate(rows)) == list(range(lengths[source]))
    assert np.bincount(labels["train"][made.parts["train"].rows]).tolist() == [sizes[0] // 2] * 2


def test_splits_that_are_given_keep_their_order() -> None:
    labels = {split: some_labels([10, 10]) for split in ("train", "valid", "test")}
    made = plan(labels, "x")
    assert made.parts["test"].rows.tolist() == list(range(20))
    assert made.parts["valid"].rows.tolist() == list(range(20))
    assert made.parts["train"].rows.tolist() == balanced_order(labels["train"]).tolist()


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="9 training images are too few to hold out") as caught:
        plan({"train": np.zeros(9), "test": np.zeros(9)}, "x")
    assert caught.value.remedy
    with pytest.raises(DataError, match="no train split .present: test"):
        plan({"test": np.zeros(9)}, "x")
