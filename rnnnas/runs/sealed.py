"""JSON files under a seal: a digest of what they say, checked whenever they are read.

A result is sealed together with what it speaks of: the best.pt and the metrics.jsonl beside it.
Files of earlier versions have no seal, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rnnnas.errors import CheckpointError, DiskError
from rnnnas.runs.files import (
    json_plain,
    read_object,
    remove_temporaries,
    unreadable,
    write_json,
)

SEAL = "sealed"  # the key, last in the file, of what is not content
RESULT, BEST, METRICS, CONFIG = "result.json", "best.pt", "metrics.jsonl", "config.json"
_END = 256  # bytes at the end of a checkpoint; its own seal, a digest of all others, is in them
CHANGED = "measure anew into another file; or take out its key 'sealed', if the change is yours"
CONFIG_CHANGED = "restore it from a copy; what it says of the run cannot be relied on"
_ANEW = "move it away, and the same command reports anew from the saved state"


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 in hex over plain values, whatever the order of keys."""
    text = json.dumps(json_plain(content), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_sealed(
    path: Path, content: Mapping[str, Any], about: Mapping[str, str] | None = None
) -> None:
    """Write an object as JSON with a seal over it, and over `about`: digests of other files.

    Raises:
        DiskError: where the file cannot be written.
    """
    content, about = json_plain(content), about or {}
    with suppress(DiskError, OSError):  # what a killed process left; a run's are gone already
        remove_temporaries(path.parent)
    seal = {**about, "sha256": digest_of({**content, SEAL: dict(about)})}
    write_json(path, {**content, SEAL: seal})


def open_sealed(path: Path, remedy: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The content that `write_sealed` wrote, and what its seal is about; None without a seal.

    Raises:
        CheckpointError: where the file is missing, unreadable, damaged, or was changed since.
    """
    content = read_object(path)
    if SEAL not in content:
        return content, None
    seal = content.pop(SEAL)
    about = dict(seal) if isinstance(seal, dict) else {}
    written = about.pop("sha256", None)
    if written != digest_of({**content, SEAL: about}):
        raise CheckpointError(f"{path} is damaged: it was changed since it was written", remedy)
    return content, about


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """The content alone; raises as `open_sealed`."""
    return open_sealed(path, remedy)[0]


def write_result(folder: Path, result: Mapping[str, Any], by: str = "") -> None:
    """Write a run's result.json, which marks it as finished. Raises DiskError.

    by: what it was computed by, kept in the seal under "computed_by".
    """
    about = {"computed_by": by} if by else {}
    if (folder / BEST).is_file():
        about["best"] = _end_digest(folder / BEST)
    if (folder / METRICS).is_file():
        about["metrics"] = _digest(folder / METRICS)
    write_sealed(folder / RESULT, result, about)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run; None where there is none.

    Raises:
        CheckpointError: where result.json is damaged or was changed, or what it speaks of is gone
            or another's: the run is not finished then.
    """
    path = folder / RESULT
    if not os.path.lexists(path):
        return None
    result, about = open_sealed(path, _ANEW)
    if about is None:
        if _seals(folder):
            raise CheckpointError(f"{path} is damaged: its seal is gone", _ANEW)
        about = {"best": ""} if "checkpoint" in result else {}
    best, metrics = about.get("best"), about.get("metrics")
    if best is not None and not (folder / BEST).is_file():
        raise CheckpointError(
            f"{folder} is not finished: its best.pt is gone",
            "put best.pt back from a copy, or train anew with --fresh",
        )
    if best and best != _end_digest(folder / BEST):
        raise CheckpointError(
            f"{folder / BEST} is not the one that {path} speaks of",
            "put this run's own best.pt back, or train anew with --fresh",
        )
    if metrics and (folder / METRICS).is_file() and metrics != _digest(folder / METRICS):
        raise CheckpointError(
            f"{folder / METRICS} was changed since the run was finished",
            "restore it from a copy, or move it away: the figures of result.json stay",
        )
    return result


def _seals(folder: Path) -> bool:
    """Whether the run was written by a version that seals: its config.json is sealed."""
    try:
        return SEAL in read_object(folder / CONFIG)
    except CheckpointError:
        return False


def _end_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
