"""What an evaluation found, as an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of an evaluation.

    split: "train", "valid", "test", or "text" for a text of one's own.
    nats: mean negative log-likelihood a token, or of images an image.
    tokens: targets counted; of images 0.
    perplexity: exp of nats, a token; of images None.
    accuracy: of images, percent of them that are classified right; of text None.
    digest: SHA-256 of the checkpoint that was evaluated.
    figures: everything that was measured, by the names of `rnnnas eval --json`.
    """

    split: str
    nats: float
    tokens: int
    perplexity: float | None
    accuracy: float | None
    digest: str
    figures: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Evaluation:
        """From what `evaluate_checkpoint` returns."""
        return cls(
            split=result["split"],
            nats=result["nats"],
            tokens=result.get("tokens", 0),
            perplexity=result.get("perplexity"),
            accuracy=result.get("accuracy"),
            digest=result["digest"],
            figures=dict(result),
        )

    def __getitem__(self, name: str) -> Any:
        """A figure by its name, e.g. `result["word_perplexity"]`."""
        return self.figures[name]
