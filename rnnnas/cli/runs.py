"""search and train."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnnas.cli import complete
from rnnnas.cli.common import (
    STARTED,
    budget_seconds,
    compiling,
    device_option,
    duration,
    echo,
    json_option,
    pick_device,
    plugin_option,
    print_json,
    say_bits,
    say_compared,
    took,
)
from rnnnas.cli.memory import memory_errors
from rnnnas.cli.processes import check_processes, joined, processes_option, run_all, started_by_hand
from rnnnas.errors import UsageError
from rnnnas.home import checkpoints_folder
from rnnnas.nas.methods import METHODS, method_of
from rnnnas.runs.progress import waiting

if TYPE_CHECKING:
    from collections.abc import Callable

Settings = dict[str, Any]

# Options that stand for a setting.
SHORT = {"epochs": "epochs", "hidden": "model.hidden", "layers": "model.layers", "lr": "weights.lr"}


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that search and train share."""
    options: list[Callable[..., Any]] = [
        click.option("--corpus", shell_complete=complete.corpora,
                     help="A prepared corpus; see `corpus list`. [default: --config's]"),
        click.option("--preset", shell_complete=complete.presets,
                     help="A named run; see `presets list`. [default: quick, for "
                     "images cifar10-quick; with --config none]"),
        click.option("--seed", type=click.IntRange(0), help="Decides every random draw."),
        click.option("--minutes", type=click.FloatRange(0, min_open=True),
                     help="A time budget: the steps follow from this device's speed."),
        click.option("--seconds", type=click.FloatRange(0, min_open=True),
                     help="The same in seconds."),
        click.option("--epochs", type=click.IntRange(1), help="Passes over the corpus."),
        click.option("--hidden", type=click.IntRange(1), help="Units: model.hidden."),
        click.option("--layers", type=click.IntRange(1), help="Layers: model.layers."),
        click.option("--lr", type=click.FloatRange(0, min_open=True),
                     help="Step size: weights.lr."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                     shell_complete=complete.key_values,
                     help="Override one setting, e.g. weights.lr=10; may be repeated. "
                     "`rnnnas settings` lists them."),
        click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False),
                     help="Settings from a TOML file, as --print-config prints them; corpus, "
                     "method and genotype may stand there, too."),
        click.option("--out", type=click.Path(path_type=Path, file_okay=False),
                     help="Run folder. The same command with the same folder resumes."),
        click.option("--fresh", is_flag=True,
                     help="Start anew beside an existing run, which is kept."),
        plugin_option,
        device_option,
        processes_option,
        click.option("--dry-run", is_flag=True,
                     help="Say what would run (time, memory, sizes, steps) and stop."),
        click.option("--verbose", is_flag=True, help="With --dry-run: all settings, too."),
        click.option("--print-config", is_flag=True,
                     help="Print the settings as TOML with comments, or --json, and stop."),
        json_option,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    epilog="\b\nMethods:\n" + "\n".join(f"  {n:13} {m.about}" for n, m in METHODS.items())
)
@_run_options
@click.option("--method", shell_complete=complete.methods,
              help="One of the methods below. [default: the preset's]")  # fmt: skip
def search(method: str | None, **options: Any) -> None:
    """Search a recurrent cell on a text, or the two cells of an image network on images.

    \b
    Examples:
      rnnnas search --corpus ptb --preset quick --seed 1 --out checkpoints/q
      rnnnas search --corpus cifar10 --preset cifar10-quick --out checkpoints/c
    """
    flags = {"corpus": options["corpus"], "seed": options["seed"], "method": method}
    config = _resolve("search", options, flags)
    if config is None or _shared_out(options, config):
        return
    from rnnnas.data.corpus import open_any
    from rnnnas.door import is_of_images
    from rnnnas.home import default_folder
    from rnnnas.searching.run import job_of
    from rnnnas.searching.run import search as run

    with waiting(f"opening the corpus {config.corpus}", quiet=not _speaks()):
        corpus = open_any(config.corpus)
    if options["dry_run"]:
        from rnnnas.searching.costs import search_seconds

        with memory_errors(is_of_images(corpus)):
            job = job_of(config, corpus, pick_device(options["device"]))
            _dry_run(job, job.config, lambda: search_seconds(job, corpus), options)
        return
    default = default_folder("search", config)
    if config.alphas.text == "valid" and "alphas.text" not in config.idle and _speaks():
        images = is_of_images(corpus)
        what, measure = ("images", "accuracy") if images else ("text", "perplexity")
        used = "cells are chosen by" if method_of(config.method).alphas == "none" else (
            "alphas are trained on")  # fmt: skip
        echo(
            f"note: {used} the validation {what}, as in the paper; "
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

    echo(as_text(Genotype.from_plain(result["genotype"])))
    briefly = config.from_scratch or getattr(config, "races", False)
    whose = "the best cell after its short training" if briefly else "the search network"
    echo(f"validation {_measured(result, 'valid')} of {whose}")
    say_compared(
        result, result.get("valid_perplexity"), whose,
        "such a search says little of cells; search longer with --minutes N"
        + ("" if "epochs" in config.idle else " or --epochs N"),
        found=True,
    )  # fmt: skip
    echo(took(result))
    echo(f"digest {result['digest'][:16]}")
    folder = shlex.quote(result["run"])
    echo(f"train it: rnnnas train --corpus {config.corpus} --genotype {folder}", err=True)


@click.command()
@_run_options
@click.option("--from", "start", type=click.Path(path_type=Path), shell_complete=complete.trained,
              help="A best.pt or a training's folder: go on from its weights and settings, on its "
                   "corpus or one of the same vocabulary.")  # fmt: skip
@click.option(
    "--genotype",
    shell_complete=complete.cells,
    help="A published cell (DARTS_V2), a JSON file, a search's run folder, 'random', "
    "'random:SEED', LSTM, GRU, or the cell itself ('sigmoid0 relu1 tanh1').",
)
def train(genotype: str | None, start: Path | None, **options: Any) -> None:
    """Train a cell from scratch and report its perplexity, or on images its accuracy.

    \b
    Examples:
      rnnnas train --corpus ptb --genotype checkpoints/q --out checkpoints/qt
      rnnnas train --corpus ptb --genotype DARTS_V2 --preset ptb
      rnnnas train --corpus book --genotype LSTM --minutes 10
      rnnnas train --from checkpoints/qt --minutes 10 --out checkpoints/qt-more
      rnnnas train --corpus cifar10 --genotype DARTS_V2 --preset cifar10-quick
    """
    base = None
    if start is not None:
        from rnnnas.training.start import read_start

        begins = read_start(start)
        base = begins.settings()
        _check_length(options, begins.config.seconds, start)
        options["corpus"] = options["corpus"] or begins.corpus
    elif genotype is None and options["file"] is None and not options["settings"]:
        raise click.UsageError("Missing option '--genotype' (or '--from').")
    flags = {"corpus": options["corpus"], "seed": options["seed"], "genotype": genotype}
    there = options["out"] or _train_folder(options, genotype, start)
    with waiting("starting PyTorch", quiet=not _speaks()):
        from rnnnas.training.reading import kept
    before = None if options["fresh"] else kept(there)
    config = _resolve("train", options, flags, base, before)
    if config is None or _shared_out(options, config):
        return
    from rnnnas.data.corpus import open_any
    from rnnnas.training.remedy import remedy
    from rnnnas.training.run import TrainJob
    from rnnnas.training.run import train as run

    with waiting(f"opening the corpus {config.corpus}", quiet=not _speaks()):
        corpus = open_any(config.corpus)
    if options["dry_run"]:
        from rnnnas.door import is_of_images
        from rnnnas.training.costs import training_seconds

        with memory_errors(is_of_images(corpus)):
            job = TrainJob(config, corpus, pick_device(options["device"]))
            _dry_run(job, job.config, lambda: training_seconds(job, corpus), options)
        return
    more = {} if start is None else {"start": start}
    result = _run(run, config, corpus, options, there, **more)
    if result is None:
        return
    if options["as_json"]:
        print_json(result)
        return
    echo(f"{result['parameters']:,} parameters")
    echo(took(result))
    echo(f"validation {_measured(result, 'valid')}")
    echo(f"test       {_measured(result, 'test')}")
    say_compared(
        result, result.get("test_perplexity"), "this model",
        remedy(Path(result["run"]), config.model.hidden) if "bigram_perplexity" in result else "",
    )  # fmt: skip
    say_bits(result)
    if "budget_seconds" in result and config.cell == "derived" and start is None:
        _say_lstm(result, config.corpus)
    best = shlex.quote(result["checkpoint"])
    echo(f"evaluate it: rnnnas eval --checkpoint {best}", err=True)


def _say_lstm(result: Settings, corpus: str) -> None:
    """How a cell stands to an LSTM that had the same time, where one lies beside its run."""
    from rnnnas.studies.equal_time import lstm_beside
    from rnnnas.studies.listing import list_runs

    folder, seconds = Path(result["run"]), result["budget_seconds"]
    places = dict.fromkeys([folder.absolute().parent, checkpoints_folder().absolute()])
    runs = [one for place in places if place.is_dir() for one in list_runs(place)]
    beside = lstm_beside(folder, seconds, runs)
    if beside is not None:
        line = beside.line(result["test_perplexity"])
        echo(line, err=line.startswith("WARNING"))
        return
    echo(
        "what the cell is worth, an LSTM of the same time shows: rnnnas train "
        f"--corpus {corpus} --genotype LSTM --seconds {seconds:g}", err=True,
    )  # fmt: skip


def _check_length(options: Settings, seconds: float, start: Path) -> None:
    """Raises UsageError where a training goes on from one of a time budget, from which no number of
    passes follows, and nothing says how long.
    """
    said = any(options[key] for key in ("minutes", "seconds", "epochs", "preset", "file"))
    names = {setting.partition("=")[0].strip() for setting in options["settings"]}
    if seconds and not said and not names & {"epochs", "seconds"}:
        raise UsageError(
            f"the training in {start} had a time budget: how long is this one to be?",
            "give --minutes or --epochs",
        )


def _train_folder(options: Settings, genotype: str | None, start: Path | None) -> Path:
    """Where a training lies unless it is said."""
    from rnnnas.config.presets import corpus_of
    from rnnnas.home import run_folder

    corpus = corpus_of(
        "train", flag=options["corpus"], settings=options["settings"], file=options["file"]
    )
    called = genotype or _file_name(options)
    if start is not None:
        place = start.parent if start.suffix == ".pt" else start
        called = f"from-{place.resolve().name}"
    return run_folder("train", corpus, called, options["seed"])


def _measured(result: Settings, split: str) -> str:
    """'perplexity 61.20' or 'accuracy 71.35 %'."""
    if f"{split}_accuracy" in result:
        return f"accuracy {result[f'{split}_accuracy']:.2f} %"
    return f"perplexity {result[f'{split}_perplexity']:.2f}"


def _shared_out(options: Settings, config: Any) -> bool:
    """Whether the command ran as several processes, which `--processes` asked for.

    Raises:
        UsageError: where they are more than the streams.
        SystemExit: where they failed, with their exit code.
    """
    if hasattr(config, "windows"):  # a text's
        check_processes(options["processes"], config.windows.streams)
    if options["dry_run"] or not started_by_hand(options["processes"]):
        return False
    words: list[str] = click.get_current_context().find_root().obj
    code = run_all(words, options["processes"])
    if code:
        raise click.exceptions.Exit(code)
    return True


def _file_name(options: Settings) -> str:
    """What a training is called that has its cell from --config or --set."""
    return options["file"].stem if options["file"] is not None else "cell"


def _speaks() -> bool:
    """Whether this process is the one that reports, where several share a run."""
    return os.environ.get("RANK", "0") == "0"


def _run(
    run: Callable[..., Settings], config: Any, corpus: Any, options: Settings, default: Path,
    **more: Any,
) -> Settings | None:  # fmt: skip
    """The result of a search or a training; None on ranks that report nothing."""
    from rnnnas.config.plain import from_plain, merge, to_plain
    from rnnnas.config.recipes import chosen
    from rnnnas.data.corpus import holds_images
    from rnnnas.engine.budget import Stopwatch
    from rnnnas.engine.computed_by import notes_on_run

    images = holds_images(config.corpus)
    with joined(options["device"]) as (device, ranks), memory_errors(images):
        if ranks.leads and not images:
            with compiling() if device.type == "cpu" else contextlib.nullcontext():
                notes = notes_on_run(config, device, ranks.size)
            for note in notes:
                echo(note, err=True)
        # Each process has timed what a recipe goes by, and not alike.
        if ranks.size > 1 and not images and config.seconds:
            plain = to_plain(config)
            merge(plain, ranks.broadcast(chosen(plain)))
            config = from_plain(type(config), plain)
        result = run(
            config,
            corpus,
            options["out"] or default,
            device=device,
            fresh=options["fresh"],
            ranks=ranks,
            **({} if images else {"stopwatch": Stopwatch(STARTED)}),
            **more,
        )
        return result if ranks.leads else None


def _resolve(
    kind: str,
    options: Settings,
    flags: Settings,
    base: Settings | None = None,
    kept: Settings | None = None,
) -> Any:
    """The run's configuration, or None where --print-config has printed it.

    Args:
        base: settings that take the place of the default preset.
        kept: what a recipe chose for the run that is there already.
    """
    with waiting("starting PyTorch", quiet=not _speaks()):
        from rnnnas.config.catalogue import commented
        from rnnnas.config.plain import to_plain
        from rnnnas.config.presets import corpus_of, resolve_run, without_effect
        from rnnnas.config.recipes import Reading
        from rnnnas.data.corpus import holds_images, open_any
        from rnnnas.plugins.load import require_for
        from rnnnas.training.reading import resolve_train

    noun = {"train": "training"}.get(kind, kind)
    file, settings = options["file"], list(options["settings"])
    for option, key in SHORT.items():
        if options[option] is not None:
            settings.append(f"{key}={options[option]}")
    corpus = corpus_of(kind, flag=options["corpus"], settings=settings, file=file)
    images = holds_images(corpus)
    seconds = budget_seconds(options["minutes"], options["seconds"])
    if options["out"] is not None and not options["fresh"]:
        require_for(options["out"])  # before an operation or a method is unknown
    if flags.get("genotype") is not None:
        require_for(flags["genotype"])
    given: Settings = {
        "preset": options["preset"], "file": file, "settings": settings, "images": images,
        "flags": {**flags, "seconds": seconds}, "base": base,
    }  # fmt: skip
    if kind == "train" and seconds and not images:
        from rnnnas.lm.fast.cpu_library import built

        with compiling(quiet=not _speaks()):
            built()
        with waiting("timing how often the text can be read", quiet=not _speaks()):
            config = resolve_train(open_any(corpus), options["device"], kept=kept, **given)
    else:
        config = resolve_run(kind, reading=Reading() if seconds else None, **given)
    for key in without_effect(config, kind, file, settings, images):
        echo(f"warning: {key} has no effect on this {noun}", err=True)
    if options["print_config"]:
        if options["as_json"]:
            print_json(to_plain(config))
        else:
            echo(commented(config), nl=False)
        return None
    return config


def _dry_run(job: Any, config: Any, seconds: Callable[[], float], options: Settings) -> None:
    """Say what a run would take and be. seconds: what it takes, where it has no budget."""
    from rnnnas.cli.common import memory_bytes
    from rnnnas.config.plain import to_plain, to_toml
    from rnnnas.searching.blackbox import CandidateJob
    from rnnnas.searching.halving import HalvingJob

    # Where cells are trained from scratch, one after the other, an epoch of the job is a cell.
    what = "cell" if isinstance(job, (CandidateJob, HalvingJob)) else "epoch"
    steps = len(job.lengths(0))
    parameters = sum(p.numel() for p in job.net.parameters())
    budget = float(getattr(config, "seconds", 0.0))
    taken = budget or seconds()
    memory = memory_bytes(job.device)
    plain = to_plain(config)
    if isinstance(job, HalvingJob) and not options["as_json"]:
        for line in job.plan.lines():
            echo(line)
    if options["as_json"]:
        sizes = {"parameters": parameters, f"steps_per_{what}": steps, f"{what}s": job.epochs}
        print_json({"seconds": taken, "memory_bytes": memory, **sizes, "config": plain})
        return
    held = "" if memory is None else f", {memory / 1e9:.2g} GB of memory"
    echo(("budget " if budget else "about ") + duration(taken) + held)
    stages = () if isinstance(job, HalvingJob) else getattr(job, "plan", ())
    staged = " in the first stage" if len(stages) > 1 else ""
    many = "" if budget else f", {job.epochs} {what}s"
    echo(
        f"{parameters:,} parameters{staged}, {steps:,} steps {'an' if what == 'epoch' else 'a'} "
        f"{what}{many}"
    )
    if options["verbose"]:
        echo(to_toml(plain), nl=False)


@click.command()
@click.option("--corpus", default="pydocs", show_default=True, help="See `corpus list`.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True,
              help="Decides every random draw.")  # fmt: skip
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="A time budget for all of it.  [default: none: about three minutes]",
)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="The same in seconds.")
@device_option
@json_option
def demo(
    corpus: str, seed: int, minutes: float | None, seconds: float | None, device: str, as_json: bool
) -> None:  # fmt: skip
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
        seconds=budget_seconds(minutes, seconds),
        say=lambda text: echo(text, err=True),
    )
    if as_json:
        print_json(result)
        return
    echo("\n" + as_text(Genotype.from_plain(result["genotype"]), "the cell that was found"))
    echo(
        f"test perplexity on {corpus}, lower is better, networks trained the same way\n"
        f"(the searched cell: of {len(result['finalists'])} that the race found and "
        f"{len(result['random_cells'])} random ones the best in validation"
        + (", here a random one):" if result["origin"] == "random" else "):")
    )
    for label, key in {
        "the searched cell": "test_perplexity",
        f"the mean of {len(result['random_cells'])} random cells": "random_mean_test_perplexity",
        "an LSTM": "lstm_test_perplexity",
        "a bigram model": "bigram_perplexity",
        "a unigram model": "unigram_perplexity",
    }.items():
        echo(f"  {label:36} {result[key]:8.2f}")
    say_compared(
        result, result["test_perplexity"], "the searched cell",
        "give the demo more time with --minutes N",
    )  # fmt: skip
    found, folder = (shlex.quote(result["runs"][name]) for name in ("found", "search"))
    echo(
        f"\n{result['seconds']:.0f} s. One seed of a small run says little about cells; "
        "`rnnnas presets list` has longer ones.\nWhere to look next:\n"
        f"  rnnnas report {folder} --open   the search as one page\n"
        f"  rnnnas board                              curves, alphas and cells in TensorBoard\n"
        f"  rnnnas show {found} --format svg --out cell.svg\n"
        f'  rnnnas sample --checkpoint {found} --prompt "The"\n'
        f"  rnnnas corpus add mine --from story.txt   your own text"
    )
