"""show, presets, board and bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnnas.cli import complete
from rnnnas.cli.common import (
    device_option,
    echo,
    json_option,
    pick_device,
    plugin_option,
    print_json,
    say_kernels,
)
from rnnnas.errors import RnnnasError, UsageError
from rnnnas.home import checkpoints_folder, home

if TYPE_CHECKING:
    import torch

    from rnnnas.nas.genotype import Genotype


@click.command()
@click.argument("genotype", shell_complete=complete.cells)
@click.option("--format", "form", type=click.Choice(["text", "svg", "dot", "tikz", "gif", "json"]),
              help="[default: by the ending of --out, else text]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
@click.option("--compare", metavar="GENOTYPE", help="Another cell beside it, and what differs.")
@click.option("--history", is_flag=True,
              help="Of a search's folder: its cell after every epoch or rung, a moving SVG or GIF.",
              )  # fmt: skip
@click.option("--latency", "table", type=click.Path(path_type=Path, dir_okay=False),
              help="Predict by this table. [default: all tables of `bench latency`]")  # fmt: skip
@click.option("--measure", is_flag=True, help="Time the cell too, at the tables' sizes.")
@plugin_option
@device_option
def show(
    genotype: str, form: str | None, out: Path | None, compare: str | None, history: bool,
    table: Path | None, measure: bool, device: str,
) -> None:  # fmt: skip
    """Draw a cell: a published name, a JSON file, a run folder, a best.pt or the cell itself.

    LSTM and GRU, trained or not, which are no genotypes, are told of in a sentence. NASNet and
    AmoebaNet are cells of image networks; 'image:' before a name, as in image:DARTS_V2, says that
    such are meant.
    The text tells the latency of a recurrent cell where `bench latency` has left a table, and of
    an image network where a search with a price on latency has kept one.

    \b
    Examples:
      rnnnas show DARTS_V2
      rnnnas show image:DARTS_V2
      rnnnas show checkpoints/q --format svg --out cell.svg
      rnnnas show checkpoints/qt/best.pt --format tikz --out cell.tex
      rnnnas show checkpoints/q --compare DARTS_V2
      rnnnas show checkpoints/q --history --out search.gif
      rnnnas show DARTS_V2 --measure
    """
    from rnnnas.cnn import zoo as images
    from rnnnas.draw import text_svg_dot
    from rnnnas.draw.tikz import as_tikz
    from rnnnas.nas.genotype import RECURRENT
    from rnnnas.nas.zoo import ZOO

    form = form or _form_of(out)
    if (table is not None or measure) and (form != "text" or history or compare is not None):
        raise UsageError("--latency and --measure are for a cell that is shown as text")
    if history:
        if compare is not None:
            raise UsageError("--history and --compare exclude each other")
        _give_history(Path(genotype), form, out)
        return
    if form == "gif":
        raise UsageError("a GIF is of a search's --history", "give --history, or another --format")
    baseline, cell = _look_up(genotype)
    if compare is not None:
        _give_comparison((genotype, cell), (compare, _look_up(compare)[1]), form, out)
        return
    if cell is None:
        if form != "text":
            raise UsageError(f"{genotype} is no genotype: it has no form as {form}")
        _give(baseline, out)
        return
    image = RECURRENT not in cell.cells
    known = images.published(genotype) if image else ZOO.get(genotype.upper())
    title = genotype
    if form == "json":
        text = json.dumps(cell.to_plain(), indent=2)
    else:
        forms = {
            "text": text_svg_dot.as_text,
            "svg": text_svg_dot.as_svg,
            "dot": text_svg_dot.as_dot,
            "tikz": as_tikz,
        }
        text = forms[form](cell, title)
    if form == "text" and known is not None:
        kind = "error in %" if image else "validation/test"
        text += f"\n{known.source}\npublished: {known.results} ({kind})"
    if image and measure:
        raise UsageError(
            "--measure is for recurrent cells: layers of image networks are timed one by one, in a "
            "search"
        )
    if form == "text" and image:
        text += _layers_latency(cell, genotype, table)
    if form == "text" and not image:
        text += _latency(cell, genotype, table, device if measure else None)
    _give(text, out)


_OTHERS = (".png", ".pdf", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".eps", ".ps")
_ENDINGS = {".svg": "svg", ".dot": "dot", ".tex": "tikz", ".gif": "gif", ".json": "json"}


def _form_of(out: Path | None) -> str:
    """The form that a file's ending says; text where it says none of ours, and is not that of a
    picture or a page that there is no form for.
    """
    ending = "" if out is None else out.suffix.lower()
    if ending in _OTHERS:
        raise UsageError(
            f"a cell has no form for {out}",
            f"endings: {', '.join(_ENDINGS)}, .txt; or say --format",
        )
    return _ENDINGS.get(ending, "text")


def _look_up(reference: str) -> tuple[str, Genotype | None]:
    """The genotype that is meant, or a sentence on what has none: an LSTM or a GRU.

    Raises:
        CheckpointError: a best.pt that is missing, damaged, or no model.
        UsageError: what is no cell.
    """
    from rnnnas.cnn import zoo as images
    from rnnnas.evaluation.checkpoint_cell import checkpoint_cell, trained_in
    from rnnnas.nas.zoo import BASELINES, ZOO, genotype_of

    upper = reference.upper()
    if upper in BASELINES:
        return BASELINES[upper], None
    trained = Path(reference) if reference.endswith(".pt") else trained_in(reference)
    if trained is not None:
        found = checkpoint_cell(trained)
        return (found, None) if isinstance(found, str) else ("", found)
    image = reference.startswith(images.PREFIX) or (upper in images.ZOO and upper not in ZOO)
    return "", (images.genotype_of if image else genotype_of)(reference, seed=1)


def _give_history(folder: Path, form: str, out: Path | None) -> None:
    from rnnnas.draw.history import as_animation, as_gif
    from rnnnas.reporting.leaders import history_of
    from rnnnas.reporting.read import read_run
    from rnnnas.reporting.shares import kept_frames
    from rnnnas.runs.files import write_where_told

    if form not in ("svg", "gif") or out is None:
        raise UsageError("--history moves: it is an SVG or a GIF in a file",
                         "give --out search.svg or --out search.gif")  # fmt: skip
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is no run folder", "--history is of a search's folder")
    past = history_of(read_run(folder))
    frames = [
        (past.caption(frame), frame.genotype)
        for frame in kept_frames(past.frames, 60)
        if frame.genotype is not None
    ]
    data = as_gif(frames) if form == "gif" else as_animation(frames).encode()
    write_where_told(out, data, (f".{form}",))
    echo(f"wrote {out} ({len(data) / 1000:.0f} kB)", err=True)


def _give_comparison(
    first: tuple[str, Genotype | None], second: tuple[str, Genotype | None], form: str,
    out: Path | None,
) -> None:  # fmt: skip
    from rnnnas.draw.compare import compare_svg, compare_text

    for name, cell in (first, second):
        if cell is None:
            raise UsageError(f"{name} is no genotype: it cannot be compared")
    if form not in ("text", "svg"):
        raise UsageError(f"a comparison has no form as {form}", "give --format text or svg")
    assert first[1] is not None and second[1] is not None
    compared = compare_svg if form == "svg" else compare_text
    _give(compared(first[1], second[1], (first[0], second[0])), out)


def _latency(cell: Any, reference: str, table: Path | None, device: str | None) -> str:
    """A line for each table: the one that is named, the run's own, or all in the default place."""
    first = table or _kept_table(reference)
    paths = [first] if first is not None else _default_tables()
    if not paths:
        if device is None:
            return ""
        raise UsageError(
            "there is no table of latencies to take sizes from", "make one: rnnnas bench latency"
        )
    from rnnnas.latency.recurrent import read_table, report

    on = None if device is None else pick_device(device)
    text = ""
    for path in paths:
        try:
            line = report(cell.recurrent, read_table(path), on)
        except RnnnasError as error:
            if table is not None:
                raise
            line = f"{path} says nothing of it: {error.cause}"
        text += f"\n{line}"
    return text


def _layers_latency(network: Any, reference: str, table: Path | None) -> str:
    """The same of an image network, by the table that is named or the run's own."""
    path = table or _kept_table(reference)
    if path is None:
        return ""
    from rnnnas.cnn.dense.genotype import is_dense
    from rnnnas.latency import dense_blocks, image_cells
    from rnnnas.latency.layers import read_layer_table

    kind = dense_blocks if is_dense(network.cells) else image_cells
    return f"\n{kind.report(network, read_layer_table(path))}"


def _kept_table(reference: str) -> Path | None:
    """The table that a search keeps in its folder, where `reference` is one that did."""
    from rnnnas.cnn import zoo as images

    path = Path(reference.removeprefix(images.PREFIX)) / "latency.json"
    try:
        return path if path.is_file() else None
    except OSError:  # a cell's short form can be longer than any file name
        return None


def _default_tables() -> list[Path]:
    return sorted(home().glob("latency-*-H*-B*.json"))


def _give(text: str, out: Path | None) -> None:
    from rnnnas.runs.files import write_where_told

    if out is None:
        echo(text)
    else:
        write_where_told(
            out, (text + "\n").encode("utf-8", "backslashreplace"), (".txt", *_ENDINGS)
        )
        echo(f"wrote {out}", err=True)


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
    from rnnnas.config.presets import TABLES, preset_names, preset_tables

    rows = {name: preset_tables(name) for name in preset_names()}
    if as_json:
        listed = [
            {"name": n, "about": t["about"], "kinds": [k for k in TABLES if k in t]}
            for n, t in rows.items()
        ]
        print_json({"presets": listed})
        return
    for name, tables in rows.items():
        kinds = " and ".join(kind for kind in TABLES if kind in tables)
        echo(f"{name:18} {kinds:28} {tables['about']}")


@presets.command("show")
@click.argument("name", shell_complete=complete.presets)
def presets_show(name: str) -> None:
    """The settings of a preset, as TOML.

    \b
    Example:
      rnnnas presets show quick
    """
    from rnnnas.config.presets import preset_text

    echo(preset_text(name), nl=False)


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path),
                shell_complete=complete.runs)  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=6006, show_default=True)
def board(run: Path | None, port: int) -> None:
    """TensorBoard on this machine only, over one run or all of them.

    \b
    Example:
      rnnnas board checkpoints/q
    """
    from rnnnas.runs.tensorboard import launch

    launch(run or checkpoints_folder(), port)


@click.command()
@click.argument("what", type=click.Choice(
    ["search", "train", "eval", "loss", "cnn", "latency", "growth"]))  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Change the paper's settings, e.g. model.hidden=100.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the table of latency, or the SVG of growth, to this file.")  # fmt: skip
@click.option("--of", type=click.Choice(["search", "train", "eval"]),
              help="Of growth: the step that is measured.  [default: train]")  # fmt: skip
@click.option("--quick", is_flag=True, help="Of growth: three sizes of each quantity, not five.")
@device_option
@json_option
def bench(
    what: str, settings: tuple[str, ...], out: Path | None, of: str | None, quick: bool,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """Time one iteration: the classic way, the fast path, and the products alone.

    `cnn` is a search step on images: the classic way, the same in other forms, the fast path, and
    its convolutions alone. `latency` measures what parts of a cell take, and keeps the table for
    `show` and for searches with a price on latency. `growth` measures how the time and the memory
    of a step grow with H, B, T, N, V and processes, each alone, from H 100, B 16, T 35, N 8,
    V 10,000, and prints the exponents beside those that arithmetic expects, and Python's share.

    \b
    Examples:
      rnnnas bench train
      rnnnas bench growth --of search --out growth.svg
      rnnnas bench cnn --set batches.size=8
      rnnnas bench latency --set model.hidden=100 --set windows.streams=32
    """
    if what != "growth" and (of is not None or quick):
        raise UsageError("--of and --quick are for `bench growth`")
    where, say = pick_device(device), lambda text: echo(text, err=True)
    if what == "latency":
        _bench_latency(where, settings, out, as_json, say)
        return
    if what == "growth":
        from rnnnas.cli.growth import bench_growth

        say_kernels(where)
        bench_growth(
            where, of=of or "train", quick=quick, settings=settings, out=out, as_json=as_json,
            say=say,
        )  # fmt: skip
        return
    if out is not None:
        raise UsageError("--out is for the table of `bench latency` and the SVG of `bench growth`")
    if what == "cnn":
        from rnnnas.bench.images import bench_images

        report = bench_images(where, settings=settings, say=say)
    else:
        from rnnnas.bench.recurrent import bench as run

        say_kernels(where)
        report = run(what, where, settings=settings, say=say)
    if as_json:
        print_json(report)
        return
    for kind, values in report.items():
        echo(kind)
        for name, value in values.items():
            echo(f"  {name:32} {value:12.3f}")


def _bench_latency(
    device: torch.device, settings: tuple[str, ...], out: Path | None, as_json: bool, say: Any
) -> None:
    from rnnnas.config.presets import resolve
    from rnnnas.latency.recurrent import default_path, measure_table
    from rnnnas.runs.files import write_where_told

    flags = {"corpus": "ptb"}
    config = resolve("search", preset="ptb-darts", file=None, settings=settings, flags=flags)
    plain = measure_table(config, device, say=say).to_plain()
    path = out or default_path(device, config.model.hidden, config.windows.streams)
    write_where_told(path, (json.dumps(plain, indent=2) + "\n").encode(), (".json",))
    say(f"wrote {path}")
    if as_json:
        print_json(plain)
        return
    seconds = plain.pop("seconds")
    echo(", ".join(f"{name} {value}" for name, value in plain.items()))
    rows = {"products": seconds["products"], "rests": seconds["rests"], **seconds["activations"]}
    echo(f"microseconds a time step; s0 and the input {seconds['first'] * 1e6:.1f}")
    echo(f"  {'nodes together':14}" + "".join(f"{n + 1:9}" for n in range(len(rows["rests"]))))
    for name, values in rows.items():
        echo(f"  {name:14}" + "".join(f"{value * 1e6:9.1f}" for value in values))
