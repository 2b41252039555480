"""report."""

from __future__ import annotations

from pathlib import Path

import click

from rnnnas.cli import complete
from rnnnas.cli.common import echo, plugin_option


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="RUN|STUDY...",
                type=click.Path(path_type=Path), shell_complete=complete.runs)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), show_default=True,
              default=Path("report.html"), help="The file to write.")  # fmt: skip
@click.option("--open", "opened", is_flag=True, help="Open it in the browser.")
@plugin_option
def report(paths: tuple[Path, ...], out: Path, opened: bool) -> None:
    """Write a report of runs and studies: one HTML file that needs nothing else.

    A folder of runs stands for all of them. What still runs is shown as far as it is.

    \b
    Examples:
      rnnnas report checkpoints/q
      rnnnas report checkpoints/study-ptb-quick --out study.html --open
      rnnnas report checkpoints/a checkpoints/b
    """
    from rnnnas.reporting.page import report as write

    path = write(paths, out)
    echo(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)", err=True)
    if opened:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
