"""What a time budget trains where nothing else is said, by how often it lets the text be read.

The figures behind them are in benchmarks/recipes.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# The network in whose passes over the text a time is counted, in each cell's own.
REFERENCE_UNITS, STREAMS, STEPS = 200, 16, 35
LONG = 600.0  # seconds: from here on, a search gains by more units


class Reading(NamedTuple):
    """How a network of `REFERENCE_UNITS` would read a text in the time that is given.

    passes: over the training text. weights: of the network, a token of that text.
    """

    passes: float = 0.0
    weights: float = 1.0


class Recipe(NamedTuple):
    """What a text is trained with that is read so often; the dropouts as of `NoiseConfig`."""

    passes: float  # at the least, by a network of `REFERENCE_UNITS`
    hidden: int
    bptt: int
    dropout: float
    dropouti: float
    dropoute: float
    lr: float
    clip: float


# What is read twice is limited by steps: few units, short windows, steps of one length (the usual
# ones are short while the loss is flat). What is read twenty times is learned by heart: there
# dropout decides, and with it more units pay; too much of it costs as much as too little.
RECIPES = (
    Recipe(35.0, 400, 35, 0.5, 0.2, 0.1, 20.0, 0.25),
    Recipe(10.0, 300, 35, 0.35, 0.1, 0.05, 20.0, 0.25),
    Recipe(3.0, 200, 35, 0.2, 0.0, 0.0, 20.0, 0.25),
    Recipe(0.0, 100, 20, 0.1, 0.0, 0.0, 60.0, 0.1),
)
# With fewer weights than tokens, as of a text in bytes, little is learned by heart.
FEW_WEIGHTS = 1.0
LEAN_RECIPES = (Recipe(15.0, 400, 35, 0.2, 0.0, 0.0, 20.0, 0.25), *RECIPES[-2:])


def recipe(kind: str, reading: Reading, seconds: float) -> dict[str, Any]:
    """Settings over those of the default preset, for a run of `kind`, "search" or "train".

    Args:
        reading: decides a training's. seconds: the budget, which decides a search's.
    """
    if kind == "search":
        # Many small steps: a network under search comes down by steps more than by tokens.
        # From the frequencies by steps of one length they came down the furthest.
        return {
            "output_bias": "frequencies",
            "model": {"hidden": 100 if seconds >= LONG else 64},
            "windows": {"streams": 16, "bptt": 10},
            "weights": {"lr": 60.0, "clip": 0.1, "schedule": "cosine"},
            "alphas": {"lr": 1e-2},
        }
    recipes = LEAN_RECIPES if reading.weights < FEW_WEIGHTS else RECIPES
    own = next(one for one in recipes if reading.passes >= one.passes)
    return {
        "output_bias": "frequencies",
        "model": {"hidden": own.hidden},
        "noise": {
            "dropout": own.dropout,
            "dropouti": own.dropouti,
            "dropoute": own.dropoute,
            "dropoutx": 0.0,  # inside a cell: an LSTM has none, and ours did worse by it
            "dropouth": 0.0,
        },
        "windows": {"streams": STREAMS, "bptt": own.bptt},
        "weights": {"lr": own.lr, "clip": own.clip},
    }


def chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the nested settings of a training those that a recipe decides, as they are there."""
    return _picked(recipe("train", Reading(), 1.0), settings)


def _picked(keys: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _picked(inner, settings[key]) if isinstance(inner, Mapping) else settings[key]
        for key, inner in keys.items()
        if key in settings
    }
