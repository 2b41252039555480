"""Which images are trained on, which are held out, and in what order training images are kept.

Training images are kept in a seeded class-balanced order: any stretch of it holds the classes in
their proportions. A held-out part is the end of it, so is a part that a search takes for itself.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rnnnas.errors import DataError

SHARE = 10  # one in so many is held out
SEED = 0

Rows = npt.NDArray[np.int64]


class Part(NamedTuple):
    """A split of a corpus: rows of a split of its source, in the order in which they are kept."""

    source: str
    rows: Rows


class Plan(NamedTuple):
    """The parts by split (train, valid, test), and what to tell the user about them."""

    parts: Mapping[str, Part]
    note: str


def balanced_order(labels: npt.NDArray[Any], seed: int = SEED) -> Rows:
    """The rows (n,) in a random order in which every class is spread evenly.

    Image r of a class's n_c, shuffled, stands at (r + 1/2) / n_c; chance decides between equals.
    Python's `random.random` keeps its sequence over versions, and with it the corpus its hash.
    """
    rng = random.Random(f"{seed}/balanced")
    drawn = np.array([rng.random() for _ in range(len(labels))])
    places = np.empty(len(labels))
    for kind in np.unique(labels):
        rows = np.flatnonzero(labels == kind)
        rows = rows[np.argsort(drawn[rows], kind="stable")]
        places[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((drawn, places)).astype(np.int64)


def plan(labels: Mapping[str, npt.NDArray[Any]], name: str) -> Plan:
    """Train, valid and test out of the labels (n,) of the splits that a source has.

    A source with one split besides train keeps it for the test, since a number that settings were
    chosen by is no test; valid is then the last tenth of train. From train alone a tenth is held
    out for each.

    Raises:
        DataError: no train split, or one too small to hold anything out of.
    """
    if "train" not in labels:
        raise DataError(
            f"{name}: no train split (present: {', '.join(labels)})",
            "Put the training images into a folder or file that is named train.",
        )
    order = balanced_order(labels["train"])
    others = [split for split in ("test", "valid") if split in labels]
    wanted = {2: (), 1: ("valid",), 0: ("valid", "test")}[len(others)]
    share = len(order) // SHARE
    if wanted and not share:
        raise DataError(
            f"{name}: {len(order)} training images are too few to hold out a tenth of them",
            f"Give {SHARE} or more, or train, valid and test splits.",
        )
    parts, kept = {}, len(order)
    for split in reversed(wanted):
        parts[split] = Part("train", order[kept - share : kept])
        kept -= share
    for source in others:
        split = "test" if wanted else source
        parts[split] = Part(source, np.arange(len(labels[source]), dtype=np.int64))
    parts["train"] = Part("train", order[:kept])
    return Plan({split: parts[split] for split in ("train", "valid", "test")}, _note(others))


def _note(others: list[str]) -> str:
    held = f"held out of the training images, class-balanced, seed {SEED}"
    if not others:
        return f"valid and test are a tenth each, {held}"
    if len(others) == 1:
        said = "; the source's validation images are test" if others == ["valid"] else ""
        return f"valid is the last tenth, {held}{said}"
    return ""
