"""Published learning curves, for a look at a run's health beside them.

A curve is for one text, named by the SHA-256 of the prepared corpus, and one setting of network
and batch. Recipe and cell are left open: a change of them is what a comparison is wanted for.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import log
from typing import cast

from rnnnas.config.presets import AnyTrain
from rnnnas.config.text import TrainConfig

# The prepared corpus of the canonical PTB: tokens of all splits, and its 10,000 words.
PTB = "4a9957960eeca6d23d81e8316217f3110a01dcf06539b5087bdafe6b7baf91d7"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """points: (epochs done, validation perplexity), rising in epochs; hidden and streams: H and
    the batch it was taken with, for one layer of a derived cell under one softmax.
    """

    corpus_sha256: str
    hidden: int
    streams: int
    points: tuple[tuple[int, float], ...]
    source: str


CURVES = (
    Curve(
        corpus_sha256=PTB,
        hidden=850,
        streams=64,
        # The first point is read off a figure, so about 70: the averaged weights just after the
        # switch near epoch 95, before which that curve reads about 74. The others are numbers of
        # a table.
        points=((95, 70.0), (300, 64.0), (500, 61.9), (1600, 59.5), (2600, 58.5), (3600, 58.2)),
        source="the DARTS cell retrained: epoch 95 from the authors' figure (Liu et al. 2019), "
        "later ones from Li and Talwalkar 2019, who end at a test perplexity of 55.9",
    ),
)


def curve_for(corpus_sha256: str, config: AnyTrain) -> Curve | None:
    """The curve that a training compares with: the same text, the whole of it every epoch, the
    same width and batch, one layer of a derived cell under one softmax.
    """
    if all(curve.corpus_sha256 != corpus_sha256 for curve in CURVES):
        return None
    text = cast(TrainConfig, config)  # the curves are of texts
    model, windows = text.model, text.windows
    if (text.cell, model.layers, model.softmaxes, windows.limit) != ("derived", 1, 1, 0):
        return None
    key = corpus_sha256, model.hidden, windows.streams
    return next((c for c in CURVES if (c.corpus_sha256, c.hidden, c.streams) == key), None)


def published(corpus_sha256: str, config: AnyTrain, epoch: int) -> float | None:
    """The published validation perplexity after `epoch` epochs of such a training.

    Between published points it is interpolated, linearly in log(epoch): nobody published these.

    Returns:
        None where no curve is for this training, before its first point, after its last, and in
        finetuning, which the published run had none of.
    """
    curve = curve_for(corpus_sha256, config)
    if curve is None or epoch > config.epochs:
        return None
    epochs = [at for at, _ in curve.points]
    if not epochs[0] <= epoch <= epochs[-1]:
        return None
    i = min(bisect_right(epochs, epoch), len(epochs) - 1)
    (left, before), (right, after) = curve.points[i - 1 : i + 1]
    share = log(epoch / left) / log(right / left)
    return before * (1 - share) + after * share
