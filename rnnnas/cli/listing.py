"""runs: what lies in checkpoints, and some of them side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnnas.cli import complete
from rnnnas.cli.common import echo, json_option, print_json
from rnnnas.home import checkpoints_folder

if TYPE_CHECKING:
    from rnnnas.studies.listing import RunInfo

_SHOWN = ("valid_perplexity", "test_perplexity", "valid_accuracy", "test_accuracy")
_WIDEST = 28  # characters of a cell's name


class _ListsByDefault(click.Group):
    """A group that lists where no command of its is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListsByDefault)
def runs() -> None:
    """Runs and studies: `rnnnas runs` lists them, `runs compare` sets some side by side.

    \b
    Examples:
      rnnnas runs
      rnnnas runs compare checkpoints/a checkpoints/b
    """


@runs.command("list")
@click.argument("folder", required=False, type=click.Path(path_type=Path),
                shell_complete=complete.runs)  # fmt: skip
@json_option
def runs_list(folder: Path | None, as_json: bool) -> None:
    """Runs and studies under checkpoints, or under FOLDER, the latest first.

    A study's runs are listed where FOLDER is the study's own.

    \b
    Examples:
      rnnnas runs list
      rnnnas runs list checkpoints/study-ptb-quick --json
    """
    from rnnnas.door import list_runs

    found = list_runs(folder)
    if as_json:
        print_json({"runs": [one.to_plain() for one in found]})
        return
    if not found:
        echo(f"no runs in {folder or checkpoints_folder()}", err=True)
        return
    rows = [
        (one.date[:16].replace("T", " "), str(one.path), one.kind, one.corpus, _short(one.what),
         one.progress(), _figures(one))
        for one in found
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        texts = (f"{text:{width}}" for text, width in zip(row, widths, strict=True))
        echo("  ".join(texts).rstrip())


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _figures(one: RunInfo) -> str:
    """'valid 61.20, test 58.93'."""
    if one.kind == "study":
        names = {name: name.partition(":")[0] for name in one.figures}
    else:
        names = {name: name.partition("_")[0] for name in _SHOWN if name in one.figures}
    percent = " %" if any(name.endswith("accuracy") for name in names) else ""
    return ", ".join(f"{short} {one.figures[name]:.2f}{percent}" for name, short in names.items())


@runs.command("compare")
@click.argument("paths", metavar="RUN RUN...", nargs=-1, required=True,
                type=click.Path(path_type=Path), shell_complete=complete.runs)  # fmt: skip
@json_option
def runs_compare(paths: tuple[Path, ...], as_json: bool) -> None:
    """Settings in which runs differ, their figures, and their cells.

    Trainings on one text through several vocabularies compare by bits_per_byte.

    \b
    Example:
      rnnnas runs compare checkpoints/a checkpoints/b
    """
    from rnnnas.studies.comparison import compare_runs, side_by_side

    compared = compare_runs(*paths)
    if as_json:
        print_json(compared.to_plain())
        return
    runs = compared.runs
    rows = [("", *(str(one.path) for one in runs)), ("state", *(one.progress() for one in runs))]
    rows.append(("kind", *(one.kind for one in runs)))
    rows += [(key, *map(_value, each)) for key, each in compared.settings.items()]
    rows += [(name, *map(_number, each)) for name, each in compared.figures.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        texts = (f"{text:{width}}" for text, width in zip(row, widths, strict=True))
        echo("  ".join(texts).rstrip())
    echo("\n" + side_by_side(compared, shutil.get_terminal_size((160, 24)).columns))


def _value(value: Any) -> str:
    text = "-" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4f}"
