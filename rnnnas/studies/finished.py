"""What a finished study came to, from its folder and in any format; nothing is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnnas.errors import UsageError
from rnnnas.runs.files import json_plain
from rnnnas.runs.sealed import read_sealed
from rnnnas.studies.formats import Format, rendered
from rnnnas.studies.paired_table import paired_notes, paired_sheets
from rnnnas.studies.record import DAMAGED, NAME
from rnnnas.studies.report import notes, sheets


def finished_study(folder: Path) -> dict[str, Any]:
    """The report of the study in a folder, as `studies.execute.study` returns it.

    Raises:
        UsageError: where there is no study in it, or one that is not finished.
        CheckpointError: where its study.json is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no study (no {NAME})",
            "name a corpus to begin one: rnnnas study --corpus NAME",
        )
    result = read_sealed(path, DAMAGED).get("result")
    if result is None:
        raise UsageError(
            f"the study in {folder} is not finished", "give its own command again: it goes on"
        )
    return {"run": str(folder), **result}


def study_text(result: Mapping[str, Any], form: Format) -> str:
    """A study's report in a format; as JSON all its figures."""
    if form == "json":
        return json.dumps(json_plain(result), allow_nan=False).replace("\x7f", "\\u007f")
    if "rows" in result:  # every found cell got its final trainings
        return rendered(paired_sheets(result), paired_notes(result), form)
    return rendered(sheets(result), notes(result), form)
