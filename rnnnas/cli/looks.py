"""show, presets, board and bench."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rnnnas.cli.common import (
    checkpoints,
    device_option,
    json_option,
    pick_device,
    print_json,
)
from rnnnas.errors import UsageError


@click.command()
@click.argument("genotype")
@click.option("--format", "form", type=click.Choice(["text", "svg", "dot", "json"]),
              default="text", show_default=True)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
def show(genotype: str, form: str, out: Path | None) -> None:
    """Draw a cell: a published name, a JSON file, a run folder or the cell itself.

    LSTM and GRU, which are no genotypes, are told of in a sentence. NASNet and AmoebaNet are cells
    of image networks; 'image:' before a name, as in image:DARTS_V2, says that such are meant.

    \b
    Examples:
      rnnnas show DARTS_V2
      rnnnas show image:DARTS_V2
      rnnnas show checkpoints/q --format svg --out cell.svg
    """
    from rnnnas import draw
    from rnnnas.cnn import zoo as images
    from rnnnas.nas.genotype import BASELINES, ZOO
    from rnnnas.nas.space import genotype_of

    if genotype.upper() in BASELINES:
        if form != "text":
            raise UsageError(f"{genotype} is no genotype: it has no form as {form}")
        _give(BASELINES[genotype.upper()], out)
        return
    upper = genotype.upper()
    image = genotype.startswith(images.PREFIX) or (upper in images.ZOO and upper not in ZOO)
    cell = (images.genotype_of if image else genotype_of)(genotype, seed=1)
    known = images.published(genotype) if image else ZOO.get(genotype)
    title = genotype
    if form == "json":
        text = json.dumps(cell.to_plain(), indent=2)
    else:
        text = {"text": draw.as_text, "svg": draw.as_svg, "dot": draw.as_dot}[form](cell, title)
    if form == "text" and known is not None:
        kind = "error in %" if image else "validation/test"
        text += f"\n{known.source}\npublished: {known.results} ({kind})"
    _give(text, out)


def _give(text: str, out: Path | None) -> None:
    from rnnnas.files import write_where_told

    if out is None:
        click.echo(text)
    else:
        write_where_told(out, (text + "\n").encode())
        click.echo(f"wrote {out}", err=True)


@click.group()
def presets() -> None:
    """Named runs.

    \b
    Example:
      rnnnas presets list
    """


@presets.command("list")
@json_option
def presets_list(as_json: bool) -> None:
    """All presets and what they are for.

    \b
    Example:
      rnnnas presets list
    """
    from rnnnas import config as configs

    rows = {name: configs.preset_tables(name) for name in configs.preset_names()}
    if as_json:
        listed = [
            {"name": n, "about": t["about"], "kinds": [k for k in configs.TABLES if k in t]}
            for n, t in rows.items()
        ]
        print_json({"presets": listed})
        return
    for name, tables in rows.items():
        kinds = " and ".join(kind for kind in configs.TABLES if kind in tables)
        click.echo(f"{name:18} {kinds:28} {tables['about']}")


@presets.command("show")
@click.argument("name")
def presets_show(name: str) -> None:
    """The settings of a preset, as TOML.

    \b
    Example:
      rnnnas presets show quick
    """
    from rnnnas import config as configs

    click.echo(configs.preset_text(name), nl=False)


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), default=6006, show_default=True)
def board(run: Path | None, port: int) -> None:
    """TensorBoard on this machine only, over one run or all of them.

    \b
    Example:
      rnnnas board checkpoints/q
    """
    from rnnnas.board import launch

    launch(run or checkpoints(), port)


@click.command()
@click.argument("what", type=click.Choice(["search", "train", "eval", "loss"]))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Change the paper's settings, e.g. model.hidden=100.")  # fmt: skip
@device_option
@json_option
def bench(what: str, settings: tuple[str, ...], device: str, as_json: bool) -> None:
    """Time one iteration: the classic way, the fast path, and the products alone.

    \b
    Example:
      rnnnas bench train
    """
    from rnnnas.bench import bench as run

    report = run(
        what, pick_device(device), settings=settings, say=lambda text: click.echo(text, err=True)
    )
    if as_json:
        print_json(report)
        return
    for kind, values in report.items():
        click.echo(kind)
        for name, value in values.items():
            click.echo(f"  {name:26} {value:12.3f}")
