"""What a search found, as an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnnnas.draw.text_svg_dot import as_svg
from rnnnas.nas.genotype import Genotype, cell_text


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The result of a search; in a notebook, the cell that was found, drawn.

    run: the run folder.
    genotype: the cell or the pair of cells that was found.
    seconds: that the search took.
    valid_perplexity: of the network under search, or of the best candidate; of images None.
    valid_accuracy: the same of images, in percent; of text None.
    digest: SHA-256 of all that was found and trained.
    figures: everything that was measured, by the names of `rnnnas search --json`.
    """

    run: Path
    genotype: Genotype
    seconds: float
    valid_perplexity: float | None
    valid_accuracy: float | None
    digest: str
    figures: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> SearchResult:
        """From what `searching.run.search` returns."""
        return cls(
            run=Path(result["run"]),
            genotype=Genotype.from_plain(result["genotype"]),
            seconds=result["seconds"],
            valid_perplexity=result.get("valid_perplexity"),
            valid_accuracy=result.get("valid_accuracy"),
            digest=result["digest"],
            figures=dict(result),
        )

    @property
    def cell(self) -> str:
        """The cell in its short form, e.g. "sigmoid0 relu1 tanh1"."""
        return cell_text(self.genotype)

    def __getitem__(self, name: str) -> Any:
        """A figure by its name, e.g. `found["latency_us"]`."""
        return self.figures[name]

    def __repr__(self) -> str:
        if self.valid_perplexity is None:
            valid = f"valid_accuracy={self.valid_accuracy:.2f}"
        else:
            valid = f"valid_perplexity={self.valid_perplexity:.2f}"
        about = f"seconds={self.seconds:.0f}, run={str(self.run)!r}"
        return f"SearchResult({self.cell!r}, {valid}, {about})"

    def _repr_svg_(self) -> str:
        return as_svg(self.genotype)
