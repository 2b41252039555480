"""study."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from rnnnas.cli import complete
from rnnnas.cli.common import (
    STARTED,
    budget_seconds,
    device_option,
    echo,
    pick_device,
    plugin_option,
    print_json,
)
from rnnnas.errors import UsageError
from rnnnas.home import checkpoints_folder
from rnnnas.runs.progress import waiting
from rnnnas.studies.formats import FORMATS, Format

MOST_JOBS = 4  # at a time where --jobs is not given: each holds its corpus and network in memory


@click.command()
@click.option("--corpus", shell_complete=complete.corpora,
              help="A prepared corpus; see `corpus list`. Not with --against.")  # fmt: skip
@click.option("--preset", shell_complete=complete.presets,
              help="A named study; see `presets list`. [default: study-quick, with --config "
                   "none]")  # fmt: skip
@click.option("--methods", shell_complete=complete.method_list,
              help="Search methods, e.g. darts-1st,gdas. More extend a study.")  # fmt: skip
@click.option("--seeds", help="How many search seeds, or which: 4, or 1,2,7. More extend a study.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="A time budget: every search and training gets its share, and of methods and "
    "seeds that are not given there are as many as fit.",
)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="The same in seconds.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              shell_complete=complete.key_values,
              help="Override one setting, e.g. short.epochs=2; may be repeated.")  # fmt: skip
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False),
              help="A study of your own: its settings from a TOML file, as in the [study] of a "
                   "preset, which it may extend.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="The study's folder. The same command resumes it.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1),
              help="How many run at a time on this machine, which share out its cores. "
                   "[default: one a core, 4 at most; 1 on a GPU]")  # fmt: skip
@click.option("--cluster", type=click.Choice(["local", "slurm"]), default="local",
              show_default=True,
              help="Where jobs run; slurm needs the extra rnnnas[slurm].")  # fmt: skip
@click.option("--partition", help="Of the SLURM cluster; others by --set slurm.time=240 ...")
@click.option("--fresh", is_flag=True, help="Start anew beside an existing study, which is kept.")
@click.option("--against", type=click.Path(path_type=Path, dir_okay=False), metavar="TABLE",
              help="Hold methods against the table of a whole space, in place of a study: rank and "
                   "regret of what they find, over 10 seeds unless --seeds says more.")  # fmt: skip
@click.option("--budget", type=click.FloatRange(2),
              help="With --against: full trainings that a search from scratch may spend. "
                   "[default: 16]")  # fmt: skip
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True,
              help="Of the table that is printed.")  # fmt: skip
@plugin_option
@device_option
@click.option("--dry-run", is_flag=True,
              help="List the jobs, with steps and estimated seconds, and stop.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def study(
    corpus: str | None, preset: str | None, methods: str | None, seeds: str | None,
    minutes: float | None, seconds: float | None, settings: tuple[str, ...], file: Path | None,
    out: Path | None, jobs: int | None, cluster: Any, partition: str | None, fresh: bool,
    device: str, dry_run: bool, as_json: bool, against: Path | None, budget: float | None,
    form: Format,
) -> None:  # fmt: skip
    """Compare search methods with one another and with random cells.

    Every method is searched with every seed; every found cell, and as many random ones, get a
    short training; the best of each method by validation gets the final training, and is tested.

    With --preset table, every cell of a small space is trained instead, and kept as a table; with
    --against TABLE, methods are held against it.

    \b
    Examples:
      rnnnas study --corpus ptb --preset study-quick
      rnnnas study --corpus book --minutes 20
      rnnnas study --corpus ptb --methods darts,darts-1st --seeds 3 --jobs 2
      rnnnas study --corpus ptb --config warmup.toml
      rnnnas study --corpus ptb --preset study-paper --cluster slurm --partition gpu
      rnnnas study --out checkpoints/study-ptb-quick --format latex
      rnnnas study --corpus ptb --preset table
      rnnnas study --against table.csv --methods random,evolution,halving
    """
    from rnnnas.cli import tables
    from rnnnas.config.preset_files import corpus_in

    form = "json" if as_json else form
    as_json = form == "json"
    if against is not None:
        others = {
            "--corpus": corpus, "--minutes": minutes, "--seconds": seconds, "--cluster": cluster,
            "--partition": partition, "--device": device, "--fresh": fresh, "--dry-run": dry_run,
            "--config": file,
        }  # fmt: skip
        tables.refuse(others, "a comparison with a table")
        tables.against(
            against, _words(methods), _seeds(seeds), settings, preset, out, budget,
            jobs or _slots("cpu"), form,
        )  # fmt: skip
        return
    tables.refuse({"--budget": budget}, "a study without --against")
    if corpus is None and file is not None:
        corpus = corpus_in(file, "study")
    elif corpus is None and out is not None:
        from rnnnas.studies.finished import finished_study, study_text

        others = {
            "--preset": preset, "--methods": methods, "--seeds": seeds, "--fresh": fresh,
            "--set": settings or None, "--minutes": minutes, "--seconds": seconds, "--jobs": jobs,
            "--dry-run": dry_run, "--device": device, "--cluster": cluster,
            "--partition": partition,
        }  # fmt: skip
        tables.refuse(others, "showing a finished study")
        if not tables.show(out, form):
            echo(study_text(finished_study(out), form))
        return
    if corpus is None:
        raise UsageError(
            "no corpus is named",
            "give one: --corpus NAME (rnnnas corpus list); or of a finished study its --out FOLDER",
        )
    if tables.is_table(preset):
        assert preset is not None
        others = {
            "--methods": methods, "--minutes": minutes, "--seconds": seconds, "--cluster": cluster,
            "--partition": partition, "--device": device, "--config": file,
            "--format": None if form in ("text", "json") else form,
        }  # fmt: skip
        tables.refuse(others, "the table of a space")
        tables.make(
            corpus, preset, _seeds(seeds), settings, out, jobs, fresh=fresh, dry_run=dry_run,
            as_json=as_json,
        )  # fmt: skip
        return
    from rnnnas.data.corpus import open_any
    from rnnnas.plugins.load import files as plugin_files
    from rnnnas.studies.execute import check_medium
    from rnnnas.studies.plan import resolve_study, study_name

    flags: dict[str, Any] = {"corpus": corpus, "methods": _words(methods), "seeds": _seeds(seeds)}
    if partition is not None:
        flags["slurm"] = {"partition": partition}
    config = resolve_study(preset=preset, file=file, settings=settings, flags=flags)
    with waiting(f"opening the corpus {config.corpus}"):
        opened = open_any(config.corpus)
    check_medium(config, opened)
    slots = jobs or _slots(device)
    seconds = budget_seconds(minutes, seconds)
    folder = out or checkpoints_folder() / study_name(opened.folder.name, preset, file)
    pace = None
    if seconds is not None:
        from rnnnas.engine.budget import Stopwatch
        from rnnnas.studies.budget import StudyPace, in_time, line

        config = in_time(
            config, folder, seconds, slots, start=time.perf_counter() - STARTED,
            methods=methods is not None, seeds=seeds is not None, fresh=fresh,
        )  # fmt: skip
        pace = StudyPace(seconds, Stopwatch(STARTED), slots)
        echo(line(config, seconds), err=True)
    if dry_run:
        from rnnnas.studies.estimate import estimate

        with waiting("estimating: a few steps of each kind of job are timed"):
            listed = estimate(config, opened, pick_device(device), slots=slots)
        if as_json:
            print_json(listed)
            return
        for job in listed["jobs"]:
            echo(f"{job['name']:28} {job['steps']:>9,} steps  {job['seconds']:>9,.0f} s")
        echo(f"about {listed['seconds'] / 60:,.0f} minutes, {slots} at a time")
        return
    from rnnnas.studies.execute import study as run
    from rnnnas.studies.finished import study_text

    more: tuple[str, ...] = () if device == "auto" else ("--device", device)
    for path in plugin_files():
        more += ("--plugin", str(path))
    result = run(
        config, opened, folder, cluster=cluster, slots=slots, more=more, fresh=fresh, pace=pace,
        say=lambda text: echo(text, err=True),
    )  # fmt: skip
    echo(study_text(result, form))
    if as_json:
        return
    echo(f"as a page: rnnnas report {result['run']}", err=True)
    echo(f"curves: rnnnas board {result['run']}", err=True)


def _slots(device: str) -> int:
    """How many jobs run at a time unless it is said: small networks gain little from a second core,
    and several jobs would share one GPU.
    """
    from rnnnas.studies.local_jobs import cores

    return 1 if pick_device(device).type == "cuda" else min(cores(), MOST_JOBS)


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _seeds(text: str | None) -> list[int] | None:
    """'3' is 1, 2, 3; '3,' and '1,3' are what they say."""
    words = _words(text)
    if text is None or words is None:
        return None
    if not words or not all(word.isdecimal() for word in words):
        raise UsageError(f"--seeds {text!r} is neither a number nor a list of numbers")
    return [int(word) for word in words] if "," in text else list(range(1, int(text) + 1))
