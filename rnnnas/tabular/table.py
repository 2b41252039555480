"""The table of a space as one file: a line of JSON that says what it is, then CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rnnnas.errors import CheckpointError, UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.runs.files import json_plain, parse_json, unreadable, write_atomic
from rnnnas.runs.sealed import SEAL, digest_of
from rnnnas.tabular.noise import noise_of, twins
from rnnnas.tabular.rows import Row

DIGITS = 6  # significant ones of what is measured: beyond that is rounding of sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Trainings of cells of one space, in the cells' order and then the seeds'.

    about: corpus, corpus_sha256, nodes, ops, seeds, stretches, training (all its settings), preset,
    arithmetic (of what it was trained in; `arithmetic_also`, where a part was by another build or
    without kernels), version, noise. rows: as they were trained; where all
    cells are there with all seeds, the table is complete.
    """

    about: Mapping[str, Any]
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def space(self) -> CellSpace:
        """The space whose cells these are."""
        return recurrent_space(self.about["nodes"], ops=tuple(self.about["ops"]))

    @property
    def seeds(self) -> list[int]:
        """The seeds that every cell was trained with."""
        return list(self.about["seeds"])

    def by_cell(self) -> dict[str, list[Row]]:
        """The rows of each cell, in the order of the seeds."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.cell, []).append(row)
        return found

    def means(self, measure: str = "test") -> dict[str, float]:
        """The mean log perplexity ("valid" or "test") of every cell; infinite where one of its
        trainings diverged.
        """
        return {
            cell: math.fsum(
                math.inf if row.diverged else math.log(getattr(row, measure)) for row in rows
            )
            / len(rows)
            for cell, rows in self.by_cell().items()
        }

    def to_text(self) -> str:
        """As `read_table` reads it: sealed, figures to 6 digits."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        curve = [f"train_{part}" for part in range(1, self.about["stretches"] + 1)]
        writer.writerow(["cell", "seed", *curve, "valid", "test", "diverged", "seconds"])
        for row in self.rows:
            told = [f"{value:.{DIGITS}g}" for value in row.curve]
            told += [""] * (len(curve) - len(told))
            figures = ["" if v is None else f"{v:.{DIGITS}g}" for v in (row.valid, row.test)]
            ends = [int(row.diverged), f"{row.seconds:.2f}"]
            writer.writerow([row.cell, row.seed, *told, *figures, *ends])
        body = out.getvalue()
        about = json_plain(dict(self.about))
        sealed = {**about, SEAL: digest_of({**about, "rows": body})}
        return f"# {json.dumps(sealed, allow_nan=False)}\n{body}"

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises DiskError."""
        data = self.to_text().encode()
        write_atomic(path, lambda file: file.write(data))


def read_table(path: Path) -> Table:
    """The table of a file that `Table.write` wrote.

    Raises:
        UsageError: where the file is no table.
        CheckpointError: where it is missing, damaged, or was changed since.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError:
        text = ""
    first, _, body = text.partition("\n")
    if not first.startswith("# {"):
        raise UsageError(
            f"{path} is no table of cells", "make one: rnnnas study --preset table --corpus NAME"
        )
    try:
        about = parse_json(first.removeprefix("# "))
        seal = about.pop(SEAL)
        if seal != digest_of({**about, "rows": body}):
            raise ValueError("it was changed since it was written")
        rows = tuple(_row(line) for line in csv.DictReader(io.StringIO(body)))
        table = Table(about=about, rows=rows)
        _ = table.space, [Genotype.from_text(row.cell) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}", "restore it from a copy, or make the table anew"
        ) from error
    return table


def _row(line: Mapping[str, str]) -> Row:
    curve = [float(v) for name, v in line.items() if name.startswith("train_") and v]
    return Row(
        cell=line["cell"], seed=int(line["seed"]), curve=tuple(curve),
        valid=float(line["valid"]) if line["valid"] else None,
        test=float(line["test"]) if line["test"] else None,
        diverged=line["diverged"] == "1", seconds=float(line["seconds"]),
    )  # fmt: skip


def summary(rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, Any]:
    """What the header says of a table's noise: of "valid" and "test" over all cells, and of "test"
    over the better half of them; and over pairs of cells that compute one function ("twins").
    """
    table = Table(about={}, rows=tuple(rows))
    whole = {
        cell: own for cell, own in table.by_cell().items()
        if len(own) == len(seeds) and not any(row.diverged for row in own)
    }  # fmt: skip
    told: dict[str, Any] = {}
    for measure in ("valid", "test"):
        logs = [[math.log(getattr(row, measure)) for row in own] for own in whole.values()]
        told[measure] = asdict(noise_of(logs))
    logs.sort(key=math.fsum)
    told["test_better_half"] = asdict(noise_of(logs[: len(logs) // 2]))
    means = {cell: mean for cell, mean in table.means().items() if cell in whole}
    differences = [difference for _, _, difference in twins(means)]
    told["twins"] = {
        "pairs": len(differences),
        # Of a difference of two means.
        "rms": math.sqrt(math.fsum(d * d for d in differences) / len(differences))
        if differences
        else None,
    }
    told["diverged"] = sum(row.diverged for row in rows)
    plain: dict[str, Any] = json_plain(told)
    return plain
