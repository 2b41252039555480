"""What people call from Python: corpora, searches, trainings, evaluations, models.

Every function here is `rnnnas.NAME`. The command line is a skin over them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnnas.config.plain import leaves, to_plain
from rnnnas.config.presets import resolve_run
from rnnnas.config.recipes import Reading
from rnnnas.config.text import WITHOUT_RESULT
from rnnnas.data import corpus as corpora
from rnnnas.engine.device import pick_device
from rnnnas.errors import CheckpointError, UsageError, visible
from rnnnas.evaluation.result import Evaluation
from rnnnas.home import checkpoints_folder, default_folder, home_at, run_folder
from rnnnas.nas.genotype import Genotype
from rnnnas.runs.hub_folder import model_path
from rnnnas.searching.result import SearchResult
from rnnnas.training.result import TrainResult

if TYPE_CHECKING:
    import torch

    from rnnnas.data.corpus import AnyCorpus, Corpus, ImageCorpus
    from rnnnas.evaluation.image_model import ImageModel
    from rnnnas.evaluation.language_model import LanguageModel
    from rnnnas.evaluation.line_scores import LineScore
    from rnnnas.studies.listing import RunInfo
    from rnnnas.studies.result import StudyResult

Paths = str | os.PathLike[str]
# Settings that have a short name of their own, as `--hidden` on the command line.
SHORT = {"hidden": "model.hidden", "layers": "model.layers", "lr": "weights.lr"}


# Corpora


def open_corpus(name: str, *, home: Paths | None = None) -> AnyCorpus:
    """Open a prepared or built-in corpus by its name; one of text or of images.

    Args:
        home: the folder that `corpora/` lies in; by default $RNNNAS_HOME, or the current one.

    Raises:
        DataError: where it is unknown, not prepared, or damaged.
    """
    with home_at(None if home is None else os.fspath(home)):
        return corpora.open_any(name)


def add_corpus(
    name: str,
    source: Paths,
    *,
    vocab: str = "auto",
    vocab_size: int = 0,
    vocab_of: str = "",
    lower: bool = False,
    replace: bool = False,
    column: str | None = None,
    encoding: str | None = None,
    label: str | None = None,
    home: Paths | None = None,
) -> AnyCorpus:
    """Prepare a corpus of one's own from a text file, a folder, an archive, or images.

    Args:
        vocab: "auto" (what suits the text), "words", "sentencepiece", "characters", "bytes".
        vocab_size: how many entries; 0: as many as suit the text.
        vocab_of: the name of a prepared corpus whose vocabulary is taken, so that a model of that
            corpus can be tuned on this one.
        replace: put it in place of a corpus of that name with other content.
        column: the text column of JSON lines, CSV, TSV or parquet files.
        encoding: of text that is not UTF-8.
        label: the column of the classes, of images in parquet files.

    Raises:
        DataError: where the source cannot be read; with file, line and remedy.
    """
    options = corpora.VocabOptions(kind=vocab, size=vocab_size, lower=lower, like=vocab_of)
    with home_at(None if home is None else os.fspath(home)):
        return corpora.add_corpus(
            name, Path(source), options,
            replace=replace, column=column, encoding=encoding, label=label,
        )  # fmt: skip


def load_plugin(*files: Paths) -> None:
    """Run plug-in files, which register operations or methods; each once in a process.

    Raises:
        UsageError: where a file cannot be read, or fails, with its line.
    """
    from rnnnas.plugins.load import load as run

    run(*files)


# Runs


def search(
    corpus: AnyCorpus | str,
    *,
    preset: str | None = None,
    method: Any = None,
    seed: int | None = None,
    out: Paths | None = None,
    fresh: bool = False,
    device: str | torch.device = "auto",
    config: Paths | None = None,
    quiet: bool = False,
    minutes: float | None = None,
    **settings: Any,
) -> SearchResult:
    """Search a recurrent cell on a text, or the cells of an image network on images.

    The same call with the same `out` goes on where it stopped, or returns the finished result.

    Args:
        corpus: a corpus, or the name of one.
        preset: a named run; `rnnnas presets list`. By default "quick", for images "cifar10-quick".
        method: a name of `rnnnas.nas.methods.METHODS`, or a relaxation object of your own.
        seed: decides every random draw.
        out: the run folder. By default one under `checkpoints/` that is named after the run.
        fresh: start anew in a folder beside an existing run.
        config: a TOML file of settings.
        quiet: show no progress.
        minutes: the time that the run may take, on a text: its length, and where nothing else is
            said its sizes, follow. The setting `seconds` is the same.
        settings: settings by name: `epochs=2`, `windows={"limit": 100}`, `**{"alphas.lr": 1e-2}`;
            `hidden`, `layers` and `lr` are short for `model.hidden`, `model.layers`, `weights.lr`.

    Raises:
        RnnnasError: with a cause and a remedy, as the command line would print them.
    """
    from rnnnas.engine.budget import Stopwatch
    from rnnnas.engine.computed_by import notes_on_run
    from rnnnas.searching.run import search as run

    stopwatch = Stopwatch()
    opened = corpora.as_corpus(corpus)
    name, relax = _method_name(method)
    flags = {**relax, **_timed(settings, minutes)}
    flags |= {"corpus": opened.name, "method": name, "seed": seed}
    images = is_of_images(opened)
    resolved = resolve_run(
        "search", preset=preset, file=config, flags=flags, images=images,
        reading=Reading() if flags.get("seconds") else None,
    )  # fmt: skip
    folder = Path(out) if out is not None else default_folder("search", resolved)
    where = pick_device(device)
    if not quiet:
        _say(_idle_notes(settings, resolved, "search"))
    if not images and not quiet:
        _say(notes_on_run(resolved, where))
    timed: dict[str, Any] = {} if images else {"stopwatch": stopwatch}
    result = run(resolved, opened, folder, device=where, fresh=fresh, quiet=quiet, **timed)
    return SearchResult.of(result)


def train(
    corpus: AnyCorpus | str,
    genotype: Genotype | SearchResult | Paths | None = None,
    *,
    preset: str | None = None,
    seed: int | None = None,
    out: Paths | None = None,
    fresh: bool = False,
    device: str | torch.device = "auto",
    config: Paths | None = None,
    quiet: bool = False,
    minutes: float | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a cell from scratch and report its perplexity, or on images its accuracy.

    Args:
        genotype: a genotype, a search's result or run folder, a file, a published name
            ("DARTS_V2"), "LSTM", "GRU", "random", "random:7", or a cell ("sigmoid0 relu1 tanh1").
        (others): as of `search`.

    Raises:
        RnnnasError: with a cause and a remedy, as the command line would print them.
    """
    from rnnnas.engine.budget import Stopwatch
    from rnnnas.engine.computed_by import notes_on_run
    from rnnnas.training.reading import kept, resolve_train
    from rnnnas.training.run import train as run

    stopwatch = Stopwatch()
    opened = corpora.as_corpus(corpus)
    flags = {**_timed(settings, minutes), "corpus": opened.name, "seed": seed}
    if genotype is not None:
        flags["genotype"] = _genotype_setting(genotype)
    images = is_of_images(opened)
    called = str(genotype if isinstance(genotype, str | os.PathLike) else "cell")
    there = Path(out) if out is not None else run_folder("train", opened.name, called, seed)
    before = None if fresh or not flags.get("seconds") else kept(there)
    resolved = resolve_train(
        opened, device, preset=preset, file=config, flags=flags, images=images, kept=before
    )
    where = pick_device(device)
    if not quiet:
        _say(_idle_notes(settings, resolved, "training"))
    if not images and not quiet:
        _say(notes_on_run(resolved, where))
    folder = Path(out) if out is not None else default_folder("train", resolved, called)
    timed: dict[str, Any] = {} if images else {"stopwatch": stopwatch}
    result = run(resolved, opened, folder, device=where, fresh=fresh, quiet=quiet, **timed)
    return TrainResult.of(result, opened)


def study(
    corpus: AnyCorpus | str,
    *,
    preset: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    out: Paths | None = None,
    jobs: int = 1,
    fresh: bool = False,
    device: str = "auto",
    config: Paths | None = None,
    quiet: bool = False,
    minutes: float | None = None,
    **settings: Any,
) -> StudyResult:
    """Compare search methods with one another and with random cells; see `rnnnas study --help`.

    Args:
        seeds: how many, or which.
        jobs: how many runs work at a time, each in a process of its own.
        config: a TOML file of settings, as in the `[study]` of a preset.
        minutes: the time that all runs together may take, on a text; of methods and seeds that
            are not named as many are taken as get a minute a training.
    """
    import sys

    from rnnnas.engine.budget import Stopwatch
    from rnnnas.plugins.load import files as plugin_files
    from rnnnas.studies import budget
    from rnnnas.studies.execute import study as run
    from rnnnas.studies.plan import resolve_study, study_name
    from rnnnas.studies.result import StudyResult

    if jobs < 1:
        raise UsageError(f"jobs = {jobs} must be at least 1")
    opened = corpora.as_corpus(corpus)
    which = list(range(1, seeds + 1)) if isinstance(seeds, int) else seeds
    flags: dict[str, Any] = {
        **_nested(settings),
        "corpus": opened.name,
        "methods": None if methods is None else list(methods),
        "seeds": None if which is None else list(which),
    }
    resolved = resolve_study(preset=preset, file=config, settings=(), flags=flags)
    name = study_name(opened.folder.name, preset, config)
    folder = Path(out) if out is not None else checkpoints_folder() / name
    pace = None
    if minutes is not None:
        seconds = 60.0 * minutes
        stopwatch = Stopwatch()
        resolved = budget.in_time(
            resolved, folder, seconds, jobs, start=budget.JOB_START,
            methods=methods is not None, seeds=seeds is not None, fresh=fresh,
        )  # fmt: skip
        pace = budget.StudyPace(seconds, stopwatch, jobs)

    def say(text: str) -> None:
        if not quiet:
            print(visible(text), file=sys.stderr)

    more: tuple[str, ...] = () if device == "auto" else ("--device", str(device))
    more += tuple(word for path in plugin_files() for word in ("--plugin", str(path)))
    result = run(
        resolved, opened, folder, cluster="local", slots=jobs, fresh=fresh, pace=pace, say=say,
        more=more,
    )  # fmt: skip
    return StudyResult.of(result)


# Models


def load(path: Paths, *, device: str | torch.device = "auto") -> LanguageModel | ImageModel:
    """The trained model of a best.pt, a run folder, or a folder that `export` wrote for the hub.

    Raises:
        CheckpointError: where there is none, or it is damaged.
    """
    from rnnnas.evaluation.load import load_model
    from rnnnas.exporting.run import export

    model = load_model(checkpoint_of(path), pick_device(device))
    model.exporter = export
    return model


def evaluate(
    model: LanguageModel | ImageModel | TrainResult | Paths,
    split: str = "test",
    *,
    text: Paths | None = None,
    dynamic: bool = False,
    cache: bool = False,
    corpus: AnyCorpus | str | None = None,
    encoding: str | None = None,
    device: str | torch.device = "auto",
    quiet: bool = False,
    **settings: Any,
) -> Evaluation:
    """The perplexity of a trained model, or of an image network its accuracy.

    Args:
        model: a model, the result of a training, a best.pt or a run folder.
        split: "train", "valid" or "test" of the corpus that it was trained on.
        text: a file that is evaluated instead.
        dynamic: dynamic evaluation; cache: the neural cache (`rnnnas eval --help`).
        corpus: that corpus, or its name; by default the one that the training was given, or what
            lies under its name here.
        encoding: of the text, where that is not UTF-8.
        settings: of dynamic evaluation, which are then not chosen: `**{"dynamic.lr": 1e-4}`.

    Raises:
        UsageError: for an unknown split or setting.
    """
    from rnnnas.evaluation.from_python import evaluate_from_python

    if corpus is None and isinstance(model, TrainResult):
        corpus = model.corpus
    return evaluate_from_python(
        checkpoint_of(model), split, text=text, corpus=corpus, encoding=encoding,
        device=pick_device(device), dynamic=dynamic, cache=cache, quiet=quiet, **settings,
    )  # fmt: skip


def sample(
    model: LanguageModel | TrainResult | Paths,
    prompt: str = "",
    tokens: int = 100,
    *,
    device: str | torch.device = "auto",
    **options: Any,
) -> str:
    """Text that a trained model writes after a prompt; options as of `LanguageModel.stream`."""
    from rnnnas.evaluation.language_model import LanguageModel

    loaded = model if isinstance(model, LanguageModel) else load_language_model(model, device)
    return loaded.sample(prompt, tokens, **options)


def load_language_model(model: TrainResult | Paths, device: str | torch.device) -> LanguageModel:
    """As `load`, of text only.

    Raises:
        CheckpointError: where there is none, it is damaged, or an image network.
    """
    from rnnnas.evaluation.language_model import LanguageModel

    loaded = load(checkpoint_of(model), device=device)
    if not isinstance(loaded, LanguageModel):
        raise CheckpointError(
            f"{checkpoint_of(model)} holds an image network, which neither reads nor writes text",
            "`rnnnas.load(...).predict(image)` names what an image shows",
        )
    return loaded


def score(
    model: LanguageModel | TrainResult | Paths,
    lines: Sequence[str],
    *,
    restart: bool = False,
    device: str | torch.device = "auto",
) -> list[LineScore]:
    """The log-probability and perplexity of each line of a text, as `rnnnas score` prints them.

    Args:
        restart: read each line as if it were the first; else after those before it.
    """
    from rnnnas.evaluation.language_model import LanguageModel
    from rnnnas.evaluation.line_scores import line_scores

    loaded = model if isinstance(model, LanguageModel) else load_language_model(model, device)
    return list(line_scores(loaded, lines, restart=restart))


def list_runs(folder: Paths | None = None) -> list[RunInfo]:
    """The runs and studies under `checkpoints/`, or under a folder, the latest first.

    Raises:
        UsageError: where there is no such folder.
    """
    from rnnnas.studies import listing

    where = checkpoints_folder() if folder is None else Path(folder)
    return [] if folder is None and not where.exists() else listing.list_runs(where)


# Cells


def genotype(cell: Genotype | SearchResult | Paths, *, images: bool = False) -> Genotype:
    """The genotype that a published name, a file, a run folder, a best.pt or a cell's text stands
    for.

    Args:
        images: whether a name that is published for both means the cells of an image network.

    Raises:
        UsageError: for what is none of these, a trained LSTM for instance.
        CheckpointError: for a damaged best.pt.
    """
    from rnnnas.cnn import zoo as image_zoo
    from rnnnas.evaluation.checkpoint_cell import checkpoint_cell, trained_in
    from rnnnas.nas.zoo import genotype_of

    if isinstance(cell, Genotype):
        return cell
    if isinstance(cell, SearchResult):
        return cell.genotype
    name = os.fspath(cell)
    if path := trained_in(name):
        held = checkpoint_cell(path)
        if isinstance(held, Genotype):
            return held
        raise UsageError(held, "give a search, or a training of a cell of its own")
    return image_zoo.genotype_of(name, 1) if images else genotype_of(name, 1)


def show(cell: Genotype | SearchResult | Paths, format: str = "text") -> str:
    """A cell as "text", "svg", "dot" or "json".

    Raises:
        UsageError: for another format, or what is no cell.
    """
    import json

    from rnnnas.draw import text_svg_dot as draw

    found = genotype(cell)
    forms = {"text": draw.as_text, "svg": draw.as_svg, "dot": draw.as_dot}
    if format == "json":
        return json.dumps(found.to_plain(), indent=2)
    if format not in forms:
        raise UsageError(f"there is no format {format!r}", "formats: text, svg, dot, json")
    return forms[format](found)


# What the command line shares


def checkpoint_of(model: Any) -> Path:
    """The best.pt of a model, a training's result, a best.pt or a run folder; of a folder that
    `export` wrote for the hub, and of a model that was loaded from one, the folder.
    """
    from rnnnas.evaluation.image_model import ImageModel
    from rnnnas.evaluation.language_model import LanguageModel

    if isinstance(model, LanguageModel | ImageModel):
        model.check_as_loaded()
        return model.path
    if isinstance(model, TrainResult):
        return model.checkpoint
    if not isinstance(model, str | os.PathLike):
        raise UsageError(
            f"{type(model).__name__} is no trained model",
            "give a best.pt, a run folder, or what rnnnas.train or rnnnas.load returned",
        )
    return model_path(Path(model))


def _idle_notes(settings: Mapping[str, Any], config: Any, noun: str) -> list[str]:
    """A line for each setting that changes nothing in this run."""
    keys = [key for key, _ in leaves(_nested(settings))]
    idle = [key for key in keys if key in config.idle and key not in WITHOUT_RESULT]
    return [f"warning: {key} has no effect on this {noun}" for key in idle]


def _say(lines: Sequence[str]) -> None:
    import sys

    for line in lines:
        print(visible(line), file=sys.stderr)


def is_of_images(corpus: Corpus | ImageCorpus) -> bool:
    """Whether a corpus holds images."""
    return isinstance(corpus, corpora.ImageCorpus)


def _timed(settings: Mapping[str, Any], minutes: float | None) -> dict[str, Any]:
    """Nested settings with the time given. Raises UsageError where it is given twice."""
    table = _nested(settings)
    if minutes is not None:
        if table.get("seconds"):
            raise UsageError("minutes and seconds are one budget", "give one of them")
        table["seconds"] = 60.0 * minutes
    return table


def _nested(settings: Mapping[str, Any], short: Mapping[str, str] = SHORT) -> dict[str, Any]:
    """Keyword settings as a nested table: dotted and short names are set out, groups merged."""
    table: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, last = short.get(key, key).split(".")
        place = table
        for group in groups:
            place = place.setdefault(group, {})
        if isinstance(value, Mapping) and key != "genotype":
            place[last] = {**place.get(last, {}), **_nested(value, {})}
        else:
            place[last] = value
    return table


def _method_name(method: Any) -> tuple[str | None, dict[str, Any]]:
    """The name of a method, and its own settings where it is an object."""
    from rnnnas.nas.methods import register
    from rnnnas.nas.relax.base import Relaxation

    if method is None or isinstance(method, str):
        return method, {}
    if isinstance(method, Relaxation):
        return register(type(method)), {"relax": to_plain(method)}
    raise UsageError(
        f"{type(method).__name__} is no search method",
        "give a name, or an object of a subclass of rnnnas.nas.relax.base.Relaxation",
    )


def _genotype_setting(cell: Any) -> Any:
    """What the setting `genotype` takes: a name, or plain values."""
    if isinstance(cell, SearchResult):
        return cell.genotype.to_plain()
    if isinstance(cell, Genotype):
        return cell.to_plain()
    if isinstance(cell, str | os.PathLike):
        return os.fspath(cell)
    raise UsageError(
        f"{type(cell).__name__} is no genotype",
        "give a name, a file, a run folder, or what rnnnas.search or rnnnas.genotype returned",
    )
