"""The LSTM that was trained as long as a cell on the same text, among the runs beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnnas.errors import RnnnasError
from rnnnas.runs.files import read_object
from rnnnas.runs.sealed import read_result
from rnnnas.studies.listing import RunInfo

BASELINE = "LSTM"
EQUAL = 0.02  # share by which two times may differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A finished training of an LSTM. path: its run folder; test: its test perplexity."""

    path: Path
    test: float

    def line(self, perplexity: float) -> str:
        """How a cell of this test perplexity stands to it, in one line."""
        share = 100 * abs(1 - perplexity / self.test)
        if perplexity <= self.test:
            return (
                f"an LSTM of the same time: {self.test:.2f} ({self.path}); this cell is "
                f"{share:.0f} % below it"
            )
        return (
            f"WARNING: this cell is worse than an LSTM of the same time, {self.test:.2f} "
            f"({self.path}), by {share:.0f} %: search longer, or take the LSTM"
        )


def lstm_beside(folder: Path, seconds: float, runs: Iterable[RunInfo]) -> Beside | None:
    """The latest LSTM of a time budget of `seconds` on the text of the training in `folder`.

    None for a training that went on from another's weights, and among those it is not looked for:
    they had the other's time, too.

    Args:
        runs: among which it is looked for, the latest first.
    """
    own = _about(folder)
    if own is None or own.get("start"):
        return None
    for one in runs:
        if one.kind != "train" or one.what != BASELINE or one.state != "finished":
            continue
        there, result = _about(one.path), read_result(one.path) or {}
        budget = float(result.get("budget_seconds") or 0.0)
        same = (
            there is not None
            and there["corpus_sha256"] == own["corpus_sha256"]
            and not there.get("start")
        )
        if same and abs(budget - seconds) <= EQUAL * seconds:
            return Beside(path=one.path, test=float(result["test_perplexity"]))
    return None


def _about(folder: Path) -> Mapping[str, Any] | None:
    """The settings of a run, with its corpus' digest; None where they cannot be read."""
    try:
        config = read_object(folder / "config.json")["config"]
    except (RnnnasError, KeyError, OSError):
        return None
    return config if isinstance(config, Mapping) and "corpus_sha256" in config else None
