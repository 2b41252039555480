"""What a time budget trains where nothing else is said, by the length of text and time.

The figures behind them are in benchmarks/recipes.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOKENS_A_SECOND = 15_000  # that two hundred units read, about, on two cores of today
OFTEN = 10.0  # passes over a text, from which on a network learns it by heart
LONG = 600.0  # seconds: from here on, a text that is read less often gains by more units


def recipe(kind: str, tokens: int, seconds: float) -> dict[str, Any]:
    """Settings over those of the default preset, for a run of `kind`, "search" or "train".

    Args:
        tokens: of the training text. seconds: the budget; on a machine that gives this process a
            part of its time, that part of the budget.
    """
    if kind == "search":
        # Many small steps: a network under search comes down by steps more than by tokens.
        return {
            "model": {"hidden": 100 if seconds >= LONG else 64},
            "windows": {"streams": 16, "bptt": 10},
            "weights": {"lr": 10.0, "schedule": "cosine"},
            "alphas": {"lr": 1e-2},
        }
    small = TOKENS_A_SECOND * seconds / max(tokens, 1) >= OFTEN
    short = not small and seconds < LONG
    dropout = 0.4 if small else 0.1 if short else 0.2
    return {
        "output_bias": "frequencies",
        "model": {"hidden": 100 if short else 200},
        "noise": {"dropout": dropout, "dropoutx": dropout / 2, "dropouth": dropout / 2},
        "windows": {"streams": 16, "bptt": 35 if small else 20},
        # Where time is short, steps of one length: the usual ones are short while the loss is flat.
        "weights": {"lr": 60.0, "clip": 0.1} if short else {"lr": 20.0, "clip": 0.25},
    }


def chosen(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the nested settings of a run those that a recipe decides, as they are there."""
    return _picked(recipe(kind, 1, 1.0), settings)


def _picked(keys: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _picked(inner, settings[key]) if isinstance(inner, Mapping) else settings[key]
        for key, inner in keys.items()
        if key in settings
    }
