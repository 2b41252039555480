"""The trainings of a table in a file that grows: a sealed line each, cut where a kill left it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from rnnnas.errors import CheckpointError
from rnnnas.runs.files import disk_errors, json_plain, parse_json
from rnnnas.runs.sealed import SEAL, digest_of

NAME = "rows.jsonl"
_REMEDY = "take the damaged line out: the same command trains that cell anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training: a cell, by its short text, with a seed.

    curve: mean train loss, in nats a target, of the second half of each stretch, as far as the
    training came; valid, test: perplexities, None where it diverged; seconds: of the training and
    both evaluations, by the clock of its process.
    """

    cell: str
    seed: int
    curve: tuple[float, ...]
    valid: float | None
    test: float | None
    diverged: bool
    seconds: float

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Row:
        """Of what `asdict` gives. Raises KeyError, TypeError or ValueError for anything else."""
        row = cls(
            cell=plain["cell"], seed=plain["seed"],
            curve=tuple(float(value) for value in plain["curve"]),
            valid=_number(plain["valid"]), test=_number(plain["test"]),
            diverged=plain["diverged"], seconds=float(plain["seconds"]),
        )  # fmt: skip
        if type(row.cell) is not str or type(row.seed) is not int:
            raise TypeError("a cell and a seed")
        if row.diverged is not (row.test is None) or (row.valid is None) is not row.diverged:
            raise ValueError("a training has perplexities unless it diverged")
        return row


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def curve_of(nats: Sequence[float], steps: int, stretches: int) -> tuple[float, ...]:
    """The mean of the second half of each of `stretches` parts of `steps`, of those that are
    whole.
    """
    ends = [round(steps * part / stretches) for part in range(stretches + 1)]
    curve = []
    for start, end in zip(ends, ends[1:], strict=False):
        half = nats[start + (end - start) // 2 : end]
        if end > len(nats) or not half:
            break
        curve.append(math.fsum(half) / len(half))
    return tuple(curve)


@final
class RowFile:
    """The rows of a folder, by cell and seed; `add` makes a row last.

    A line without its end is what a kill left of a write, and is cut off. Any other damage is
    refused.

    Raises:
        CheckpointError: where a line is damaged.
        DiskError: where the file cannot be read or cut.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.rows: dict[tuple[str, int], Row] = {}
        with disk_errors(self.path):
            data = self.path.read_bytes() if self.path.exists() else b""
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self.path, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            row = self._read(line, number)
            self.rows[row.cell, row.seed] = row

    def _read(self, line: bytes, number: int) -> Row:
        try:
            content = parse_json(line)
            seal = content.pop(SEAL)
            if seal != digest_of(content):
                raise ValueError("it was changed since it was written")
            return Row.from_plain(content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{self.path} is damaged at line {number}: {error}", _REMEDY
            ) from error

    def add(self, row: Row) -> None:
        """Append a row in one write, and have the system keep it.

        Raises:
            DiskError: where it cannot be written; the rows before it stay.
        """
        content = json_plain(asdict(row))
        line = json.dumps({**content, SEAL: digest_of(content)}, allow_nan=False) + "\n"
        with disk_errors(self.path):
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                data = line.encode()
                while data:
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            finally:
                os.close(handle)
        self.rows[row.cell, row.seed] = row
