"""study, where the preset is a table: every cell of a space is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnnas.cli.common import duration, echo, print_json
from rnnnas.errors import UsageError
from rnnnas.home import checkpoints_folder
from rnnnas.runs.progress import waiting

if TYPE_CHECKING:
    from rnnnas.studies.formats import Format

RANKS, RESULT = "ranks.svg", "against.json"


def is_table(preset: str | None) -> bool:
    """Whether a preset is that of a table."""
    if preset is None:
        return False
    from rnnnas.config.presets import preset_tables

    return "table" in preset_tables(preset)


def refuse(options: Mapping[str, Any], what: str) -> None:
    """Raises UsageError for the first option that was given and has no place in `what`."""
    for name, value in options.items():
        if value not in (None, False, "local", "auto", "cpu"):
            raise UsageError(f"{name} has no place in {what}", f"leave {name} out")


def make(
    corpus: str, preset: str, seeds: list[int] | None, settings: tuple[str, ...],
    out: Path | None, jobs: int | None, *, fresh: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make the table of a preset, or say what it would take."""
    from rnnnas.data.corpus import open_corpus
    from rnnnas.studies.local_jobs import cores
    from rnnnas.tabular.make import estimate_table, make_table
    from rnnnas.tabular.plan import resolve_table

    flags: dict[str, Any] = {"corpus": corpus, "seeds": seeds}
    config = resolve_table(preset=preset, settings=settings, flags=flags)
    with waiting(f"opening the corpus {config.corpus}"):
        opened = open_corpus(config.corpus)
    workers = jobs or cores()
    if dry_run:
        with waiting("estimating: one training is timed"):
            figures = estimate_table(config, opened, workers=workers)
        if as_json:
            print_json(figures)
            return
        echo(
            f"{figures['cells']:,} cells, {figures['trainings']:,} trainings of about "
            f"{figures['seconds_each']:.1f} s on one thread: about "
            f"{duration(figures['seconds'])}, {workers} at a time"
        )
        return
    name = f"study-{opened.folder.name}-{preset.removeprefix('study-')}"
    result = make_table(
        config, opened, out or checkpoints_folder() / name, workers=workers, fresh=fresh,
        say=lambda text: echo(text, err=True),
    )  # fmt: skip
    if as_json:
        print_json(result)
        return
    echo(made(result))


def made(result: Mapping[str, Any]) -> str:
    """What a table came to, as text."""
    noise = result["noise"]
    lines = [f"{result['table']}: {result['cells']:,} cells, {result['trainings']:,} trainings"]
    for name in ("best", "worst"):
        if name in result:
            own = result[name]
            lines.append(f"{name:5}  {own['test_perplexity']:.2f}  {own['cell']}")
    for measure in ("valid", "test"):
        own = noise[measure]
        if own["sd"] is None:
            continue
        sd, spread, within = (f"{100 * math.expm1(own[key]):.1f} %" for key in
                              ("sd", "spread", "within"))  # fmt: skip
        common = ""
        if "residual" in own:  # not of earlier versions
            shift, residual = (f"{100 * math.expm1(own[k]):.1f} %" for k in ("shift", "residual"))
            common = f", {residual} beside the {shift} that seeds do to all cells alike"
        lines.append(
            f"{measure}: trainings of one cell differ by {sd} (standard deviation){common}; cells "
            f"by {spread}; reliability of one training {own['icc']:.2f}, of the mean over seeds "
            f"{own['reliability']:.2f}; 95 % of trainings lie within {within} of their cell's "
            "others"
        )
    return "\n".join(lines)


def show(folder: Path, form: Format) -> bool:
    """Print a finished table, or a comparison with one, from its folder; False for other folders.

    Raises:
        UsageError: for a table that is not finished.
    """
    from rnnnas.runs.sealed import read_sealed
    from rnnnas.studies.formats import rendered

    if (folder / RESULT).is_file():
        from rnnnas.tabular.against_report import notes, sheet

        result = read_sealed(folder / RESULT, "give the command that made it again")
        if form == "json":
            print_json({"run": str(folder), "picture": str(folder / RANKS), **result})
        else:
            echo(rendered([sheet(result)], notes(result), form))
        return True
    from rnnnas.tabular.make import PLAN, TABLE, told
    from rnnnas.tabular.table import read_table

    if not (folder / PLAN).is_file():
        return False
    if not (folder / TABLE).is_file():
        raise UsageError(
            f"the table in {folder} is not finished", "give its own command again: it goes on"
        )
    if form not in ("text", "json"):
        raise UsageError(
            f"a table of cells is shown as text or json, not as {form}",
            f"it lies as CSV in {folder / TABLE}",
        )
    result = {"run": str(folder), "table": str(folder / TABLE), **told(read_table(folder / TABLE))}
    if form == "json":
        print_json(result)
    else:
        echo(made(result))
    return True


def against(
    path: Path, methods: list[str] | None, seeds: list[int] | None, settings: tuple[str, ...],
    preset: str | None, out: Path | None, budget: float | None, jobs: int, form: Format,
) -> None:  # fmt: skip
    """Hold methods against the table in a file, and print what they came to."""
    from rnnnas.runs.files import disk_errors, write_where_told
    from rnnnas.runs.sealed import write_sealed
    from rnnnas.studies.formats import rendered
    from rnnnas.tabular.against import BUDGET, PRESET, all_methods
    from rnnnas.tabular.against import against as run
    from rnnnas.tabular.against_report import notes, picture, sheet
    from rnnnas.tabular.make import TABLE
    from rnnnas.tabular.table import read_table

    table = read_table(path)
    if methods is not None and not methods:
        raise UsageError("--methods names none", "leave it out for all")
    # Every table is a table.csv: its folder has the name.
    name = path.resolve().parent.name if path.name == TABLE else path.stem
    folder = out or checkpoints_folder() / f"against-{name}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    result = run(
        table, methods or all_methods(), list(range(1, 11)) if seeds is None else seeds, folder,
        budget=BUDGET if budget is None else budget, preset=preset or PRESET, settings=settings,
        jobs=jobs, say=lambda text: echo(text, err=True),
    )  # fmt: skip
    write_sealed(folder / RESULT, {"kind": "against", "table": str(path), **result})
    write_where_told(folder / RANKS, picture(result).encode(), (".svg",))
    if form == "json":
        show(folder, form)
        return
    echo(rendered([sheet(result)], notes(result), form))
    echo(f"picture: {folder / RANKS}", err=True)
