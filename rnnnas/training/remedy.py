"""What to do about a training that a count of words beats, by how its perplexities went."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rnnnas.runs.files import parse_json

LATE = 0.8  # share of a training's steps: what was best before was overfitted afterwards
BY_HEART = 1.5  # times the training text's perplexity is surpassed by the validation text's
FEW_UNITS = 100  # below, a recurrent network seldom beats a bigram model


def remedy(folder: Path, hidden: int) -> str:
    """What to do about the finished training in `folder`, whose network has `hidden` units.

    Held-out text that got worse before the end, or that is far behind the training text, speaks of
    a network that learned that by heart: longer training would not help it. Dropout hides a part of
    the distance, never makes it up.
    """
    epochs = _epochs(folder)
    if epochs:
        last = epochs[-1]
        best = min(epochs, key=lambda one: one["valid_perplexity"])
        behind = last["valid_perplexity"] > BY_HEART * last["train_perplexity"]
        if best["step"] < LATE * last["step"] or behind:
            return (
                f"it knows its training text (perplexity {last['train_perplexity']:.1f}) far "
                f"better than other text ({last['valid_perplexity']:.1f}): take more dropout with "
                "--set noise.dropout=0.5 --set noise.dropouti=0.3 --set noise.dropoute=0.1, fewer "
                "units with --hidden N, or more text"
            )
    more = ", and take more units with --hidden N" if hidden < FEW_UNITS else ""
    return f"train longer, with more --epochs N or --minutes N{more}"


def _epochs(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a training's `metrics.jsonl` that were validated, oldest first."""
    found = []
    with contextlib.suppress(OSError), (folder / "metrics.jsonl").open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):  # the line of a run that was killed
                told = parse_json(line)
                if (
                    isinstance(told, dict)
                    and told.get("kind") == "epoch"
                    and {"step", "train_perplexity", "valid_perplexity"} <= set(told)
                ):
                    found.append(told)
    return found
