"""What cells are compared by in a study, less is better: perplexity, or the error on images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

Measure = Literal["perplexity", "error"]
UNITS = {"perplexity": "perplexity", "error": "error in percent"}


def loss_of(result: Mapping[str, Any], split: Literal["valid", "test"]) -> float | None:
    """The perplexity of a run's result, or the percentage of images that it classified wrongly.

    None where it has none, or one that is not finite.
    """
    accuracy = result.get(f"{split}_accuracy")
    if accuracy is not None:
        return 100.0 - float(accuracy)
    value = result.get(f"{split}_perplexity")
    return None if value is None else float(value)


def measure_of(results: Iterable[Mapping[str, Any]]) -> Measure:
    """What the results of a study are measured in."""
    return "error" if any("valid_accuracy" in result for result in results) else "perplexity"
