"""search and train."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnnas.cli.common import (
    device_option,
    json_option,
    pick_device,
    plugin_option,
    print_json,
    say_cell,
    say_kernels,
)
from rnnnas.cli.processes import joined, processes_option, run_all, started_by_hand
from rnnnas.home import checkpoints_folder
from rnnnas.nas.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

Settings = dict[str, Any]


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that search and train share."""
    options: list[Callable[..., Any]] = [
        click.option("--corpus", required=True, help="A prepared corpus; see `corpus list`."),
        click.option("--preset", help="A named run; see `presets list`. [default: quick, for "
                     "images cifar10-quick; with --config none]"),
        click.option("--seed", type=click.IntRange(0), help="Decides every random draw."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                     help="Override one setting, e.g. weights.lr=10; may be repeated."),
        click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False),
                     help="Settings from a TOML file, as --print-config prints them."),
        click.option("--out", type=click.Path(path_type=Path, file_okay=False),
                     help="Run folder. The same command with the same folder resumes."),
        click.option("--fresh", is_flag=True,
                     help="Start anew beside an existing run, which is kept."),
        plugin_option,
        device_option,
        processes_option,
        click.option("--dry-run", is_flag=True,
                     help="Say what would run (sizes, steps, settings) and stop."),
        click.option("--print-config", is_flag=True,
                     help="Print the settings as TOML (with --json as JSON) and stop."),
        json_option,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    epilog="\b\nMethods:\n" + "\n".join(f"  {n:13} {m.about}" for n, m in METHODS.items())
)
@_run_options
@click.option("--method", help="One of the methods below. [default: the preset's]")
def search(method: str | None, **options: Any) -> None:
    """Search a recurrent cell on a text, or the two cells of an image network on images.

    \b
    Examples:
      rnnnas search --corpus ptb --preset quick --seed 1 --out checkpoints/q
      rnnnas search --corpus cifar10 --preset cifar10-quick --out checkpoints/c
    """
    from rnnnas.config.plain import to_plain

    flags = {"corpus": options["corpus"], "seed": options["seed"], "method": method}
    config = _resolve("search", options, flags)
    if config is None or _shared_out(options):
        return
    from rnnnas.data.corpus import open_any
    from rnnnas.door import default_folder, is_of_images
    from rnnnas.searching.run import job_of
    from rnnnas.searching.run import search as run

    corpus = open_any(config.corpus)
    if options["dry_run"]:
        device = pick_device(options["device"])
        _dry_run(job_of(config, corpus, device), to_plain(config), options["as_json"])
        return
    default = default_folder("search", config)
    if config.alphas.text == "valid" and config.relaxation.level == "valid" and _speaks():
        images = is_of_images(corpus)
        what, measure = ("images", "accuracy") if images else ("text", "perplexity")
        click.echo(
            f"note: alphas are trained on the validation {what}, as in the paper; "
            f"validation {measure} is then no independent measure", err=True,
        )  # fmt: skip
    result = _run(run, config, corpus, options, default)
    if result is None:
        return
    if options["as_json"]:
        print_json(result)
        return
    from rnnnas.draw.text_svg_dot import as_text
    from rnnnas.nas.genotype import Genotype

    click.echo(as_text(Genotype.from_plain(result["genotype"])))
    whose = "the best cell, briefly trained" if config.from_scratch else "the search network"
    click.echo(f"validation {_measured(result, 'valid')} of {whose}")
    click.echo(f"{result['seconds']:.0f} s; digest {result['digest'][:16]}")
    folder = shlex.quote(result["run"])
    click.echo(f"train it: rnnnas train --corpus {config.corpus} --genotype {folder}", err=True)


@click.command()
@_run_options
@click.option(
    "--genotype",
    required=True,
    help="A published cell (DARTS_V2), a JSON file, a search's run folder, 'random', "
    "'random:SEED', LSTM, GRU, or the cell itself ('sigmoid0 relu1 tanh1').",
)
def train(genotype: str, **options: Any) -> None:
    """Train a cell from scratch and report its perplexity, or on images its accuracy.

    \b
    Examples:
      rnnnas train --corpus ptb --genotype checkpoints/q --out checkpoints/qt
      rnnnas train --corpus ptb --genotype DARTS_V2 --preset ptb
      rnnnas train --corpus cifar10 --genotype DARTS_V2 --preset cifar10-quick
    """
    from rnnnas.config.plain import to_plain

    flags = {"corpus": options["corpus"], "seed": options["seed"], "genotype": genotype}
    config = _resolve("train", options, flags)
    if config is None or _shared_out(options):
        return
    from rnnnas.data.corpus import open_any
    from rnnnas.door import default_folder
    from rnnnas.training.run import TrainJob
    from rnnnas.training.run import train as run

    corpus = open_any(config.corpus)
    if options["dry_run"]:
        device = pick_device(options["device"])
        _dry_run(TrainJob(config, corpus, device), to_plain(config), options["as_json"])
        return
    default = default_folder("train", config, genotype)
    result = _run(run, config, corpus, options, default)
    if result is None:
        return
    if options["as_json"]:
        print_json(result)
        return
    click.echo(f"{result['parameters']:,} parameters, {result['seconds']:.0f} s")
    click.echo(f"validation {_measured(result, 'valid')}")
    click.echo(f"test       {_measured(result, 'test')}")
    best = shlex.quote(result["checkpoint"])
    click.echo(f"evaluate it: rnnnas eval --checkpoint {best}", err=True)


def _measured(result: Settings, split: str) -> str:
    """'perplexity 61.20' or 'accuracy 71.35 %'."""
    if f"{split}_accuracy" in result:
        return f"accuracy {result[f'{split}_accuracy']:.2f} %"
    return f"perplexity {result[f'{split}_perplexity']:.2f}"


def _shared_out(options: Settings) -> bool:
    """Whether the command ran as several processes, which `--processes` asked for.

    Raises:
        SystemExit: where they failed, with their exit code.
    """
    if options["dry_run"] or not started_by_hand(options["processes"]):
        return False
    words: list[str] = click.get_current_context().find_root().obj
    code = run_all(words, options["processes"])
    if code:
        raise click.exceptions.Exit(code)
    return True


def _speaks() -> bool:
    """Whether this process is the one that reports, where several share a run."""
    return os.environ.get("RANK", "0") == "0"


def _run(
    run: Callable[..., Settings], config: Any, corpus: Any, options: Settings, default: Path
) -> Settings | None:
    """The result of a search or a training; None on ranks that report nothing."""
    from rnnnas.data.corpus import holds_images

    with joined(options["device"]) as (device, ranks):
        if ranks.leads and config.model.path == "fast" and not holds_images(config.corpus):
            say_kernels(device, config.model.precision)
            say_cell(getattr(config, "cell_space", None) or config.network)
        result = run(
            config,
            corpus,
            options["out"] or default,
            device=device,
            fresh=options["fresh"],
            ranks=ranks,
        )
        return result if ranks.leads else None


def _resolve(kind: str, options: Settings, flags: Settings) -> Any:
    """The run's configuration, or None where --print-config has printed it."""
    from rnnnas.config.plain import to_plain, to_toml
    from rnnnas.data.corpus import holds_images
    from rnnnas.door import resolve_run, without_effect
    from rnnnas.plugins.load import require_for

    noun = {"train": "training"}.get(kind, kind)
    images = holds_images(options["corpus"])
    file, settings = options["file"], options["settings"]
    if options["out"] is not None and not options["fresh"]:
        require_for(options["out"])  # before an operation or a method is unknown
    if kind == "train":
        require_for(flags["genotype"])
    config = resolve_run(
        kind, preset=options["preset"], file=file, settings=settings, flags=flags, images=images
    )
    for key in without_effect(config, kind, file, settings, images):
        click.echo(f"warning: {key} has no effect on this {noun}", err=True)
    if options["print_config"]:
        plain = to_plain(config)
        if options["as_json"]:
            print_json(plain)
        else:
            click.echo(to_toml(plain), nl=False)
        return None
    return config


def _dry_run(job: Any, plain: Settings, as_json: bool) -> None:
    from rnnnas.config.plain import to_toml
    from rnnnas.searching.blackbox import CandidateJob

    # Where cells are trained from scratch, one after the other, an epoch of the job is a cell.
    what = "cell" if isinstance(job, CandidateJob) else "epoch"
    steps = len(job.lengths(0))
    parameters = sum(p.numel() for p in job.net.parameters())
    if as_json:
        sizes = {"parameters": parameters, f"steps_per_{what}": steps, f"{what}s": job.epochs}
        print_json({**sizes, "config": plain})
        return
    staged = " in the first stage" if len(getattr(job, "plan", ())) > 1 else ""
    click.echo(
        f"{parameters:,} parameters{staged}, {steps:,} steps {'an' if what == 'epoch' else 'a'} "
        f"{what}, {job.epochs} {what}s"
    )
    click.echo(to_toml(plain), nl=False)


@click.command()
@click.option("--corpus", default="pydocs", show_default=True, help="See `corpus list`.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True,
              help="Decides every random draw.")  # fmt: skip
@device_option
@json_option
def demo(corpus: str, seed: int, device: str, as_json: bool) -> None:
    """Search, train and compare in three minutes, on the text that every Python carries.

    \b
    Example:
      rnnnas demo
    """
    from rnnnas.draw.text_svg_dot import as_text
    from rnnnas.nas.genotype import Genotype
    from rnnnas.studies.demo import demo as run

    result = run(
        corpus,
        checkpoints_folder(),
        seed=seed,
        device=pick_device(device),
        say=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(result)
        return
    click.echo("\n" + as_text(Genotype.from_plain(result["genotype"]), "the cell that was found"))
    click.echo(f"test perplexity on {corpus}, lower is better:")
    for label, key in {
        "the searched cell": "test_perplexity",
        "a random cell, trained the same way": "random_test_perplexity",
        "a bigram model": "bigram_perplexity",
        "a unigram model": "unigram_perplexity",
    }.items():
        click.echo(f"  {label:36} {result[key]:8.2f}")
    found, folder = (shlex.quote(result["runs"][name]) for name in ("found", "search"))
    click.echo(
        f"\n{result['seconds']:.0f} s. One seed of a small run says little about cells; "
        "`rnnnas presets list` has longer ones.\nWhere to look next:\n"
        f"  rnnnas board                              curves, alphas and cells in TensorBoard\n"
        f"  rnnnas show {folder} --format svg --out cell.svg\n"
        f'  rnnnas sample --checkpoint {found} --prompt "The"\n'
        f"  rnnnas corpus add mine --from story.txt   your own text"
    )
