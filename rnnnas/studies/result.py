"""What a study came to, as an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnnas.studies.formats import Format


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """The result of a study; printed, its table.

    run: the study's folder. figures: its report, by the names of `rnnnas study --json`.
    """

    run: Path
    figures: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> StudyResult:
        """From what `studies.execute.study` returns."""
        return cls(run=Path(result["run"]), figures=dict(result))

    def table(self, form: Format = "text") -> str:
        """The report as "text", "csv", "latex", "markdown" or "json"."""
        from rnnnas.studies.finished import study_text

        return study_text(self.figures, form)

    def __getitem__(self, name: str) -> Any:
        """A figure by its name, e.g. `result["methods"]["darts"]`."""
        return self.figures[name]

    def __str__(self) -> str:
        return self.table()
