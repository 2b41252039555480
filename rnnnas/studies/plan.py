"""What a study is, and the command lines that it comes to.

search (every method, every seed) -> short training of each found cell and of random cells ->
the best cell of each by validation -> final training, which alone is tested.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rnnnas.cnn import zoo as image_zoo
from rnnnas.cnn.space import NODES
from rnnnas.config.images import ImageSearchConfig, ImageTrainConfig
from rnnnas.config.plain import from_plain, leaves, merge, to_plain
from rnnnas.config.presets import IMAGE, KINDS, AnySearch, AnyTrain, compose, resolve
from rnnnas.config.table import TableConfig
from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.data.text_streams import epochs_for, window_lengths
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.methods import method_of
from rnnnas.nas.race_plan import plan_of
from rnnnas.nas.zoo import BASELINES, ZOO

DEFAULT_PRESET = "study-quick"
# Stands where a method's name stands for the random cells. No method's name: `random` is one.
RANDOM = "random cells"
Paths = str | os.PathLike[str]
BY_STUDY = ("corpus", "method", "seed", "genotype")  # what no stage says for itself
Kind = Literal["search", "short", "final"]
TIMED = "seconds="  # how the setting of a job with a time budget begins


def _stage() -> dict[str, Any]:
    return {"preset": DEFAULT_PRESET}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """One study: methods compared with one another and with random cells.

    `search`, `short` and `final` hold a `preset` and settings over it, as of `rnnnas search` and
    `rnnnas train`.

    corpus: name of the text that is studied; -; a prepared corpus (`rnnnas corpus list`); no
        default, since only you know
    medium: what the corpus holds, "text" or "images", which decides what presets fit; text, as in
        most studies
    methods: search methods that are compared; -; names that `rnnnas search --help` lists; no
        default, since only you know
    seeds: of the searches, and a found cell is trained with its search's seed; -; whole numbers
        from 0, each once; no default, since the time grows with each
    random_cells: random cells that are trained, number k with seed k; cells; 0 or more, 0 for as
        many as there are searches; chance gets as many tries as the methods
    finals: whether the "best" cell of each method by validation gets the final trainings, or "all"
        do, without short ones before, with fixed cells beside them; one, since they are long
    fixed: cells that get the same final trainings as those that were found; -; published names,
        LSTM, GRU; none
    final_seeds: of the trainings of each chosen cell; -; whole numbers from 0, each once; one,
        since final trainings are long
    retries: how often a job that failed is started again; times; 0 or more; once, for what was no
        fault of its own
    search: settings of the searches, over their preset; -; a table; the preset `study-quick` has
        settings for all stages
    short: settings of the short trainings that choose cells; -; a table; the preset `study-quick`
        has settings for all stages
    final: settings of the final trainings, which alone are tested; -; a table; the preset
        `study-quick` has settings for all stages
    own: settings of single methods' searches; -; a table a method; methods differ in nothing else
    slurm: what `submitit` is told of the cluster, as time (minutes), partition, cpus_per_task,
        gpus_per_node, mem, account; -; a table; nothing unless there is a cluster
    """

    corpus: str
    medium: Literal["text", "images"] = "text"
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    random_cells: int = 0
    finals: Literal["best", "all"] = "best"
    fixed: tuple[str, ...] = ()
    final_seeds: tuple[int, ...] = (1,)
    retries: int = 1
    search: dict[str, Any] = field(default_factory=_stage)
    short: dict[str, Any] = field(default_factory=_stage)
    final: dict[str, Any] = field(default_factory=_stage)
    own: dict[str, Any] = field(default_factory=dict)
    slurm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("methods", "seeds", "final_seeds"):
            values = getattr(self, name)
            if not values:
                raise UsageError(f"{name} = [] must have at least one entry")
            if len(set(values)) < len(values):
                raise UsageError(f"{name} = {list(values)} must be a list without repetitions")
        if min(*self.seeds, *self.final_seeds, self.random_cells, self.retries) < 0:
            raise UsageError("seeds, final_seeds, random_cells and retries must not be negative")
        for method, table in self.own.items():
            if not isinstance(table, Mapping):
                raise UsageError(f"own.{method} is a group of settings, not the value {table!r}")
            method_of(base(method))
        for method in self.methods:
            word = method.removeprefix(base(method)).removeprefix("@")
            if word.isdecimal() and method not in self.own:  # it looks as if it were set by it
                raise UsageError(
                    f"the row {method} would be {base(method)} itself: no setting of it is {word}",
                    f'give its settings in a file, under [study.own."{method}"]; '
                    f"known rows: {', '.join(name for name in self.own if '@' in name) or 'none'}",
                )
        known = (*image_zoo.ZOO,) if self.medium == "images" else (*BASELINES, *ZOO)
        for name in self.fixed:
            if name.upper() not in known:
                raise UsageError(
                    f"fixed cell {name!r} is not known", f"known ones: {', '.join(known)}"
                )
        if self.fixed and self.finals == "best":
            raise UsageError(
                "fixed cells get final trainings beside all others: finals = 'best' has none",
                "add --set finals=all",
            )
        stages = {name: getattr(self, name) for name in ("search", "short", "final")}
        own = {f"own.{method}": table for method, table in self.own.items()}
        for where, table in {**stages, **own}.items():
            for key in BY_STUDY:
                if key in table:
                    raise UsageError(
                        f"{where}.{key} = {table[key]!r} has no place in a study, which sets it",
                        "a study's own: --corpus, --methods, --seeds, --set final_seeds=[1,2]",
                    )

    @property
    def start(self) -> str:
        """What the kinds of its runs begin with, `image-` or nothing."""
        return IMAGE if self.medium == "images" else ""

    @property
    def randoms(self) -> int:
        """How many random cells are trained."""
        return self.random_cells or len(self.methods) * len(self.seeds)


# Every kind of run that has settings, and their classes.
ALL_KINDS: dict[str, type] = {**KINDS, "study": StudyConfig, "table": TableConfig}


def base(method: str) -> str:
    """The search method of a row: `halving` of "halving@4"."""
    return method.partition("@")[0]


# What may differ between two starts of one study; of these, methods and seeds only grow.
GROWS = ("methods", "seeds", "final_seeds")
FREE = (*GROWS, "random_cells", "retries", "slurm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command line. words: what follows `rnnnas`, without --out and --json; {study} stands
    for the study's folder. seed: of the search, or the number of the random cell; after: the job
    whose result it needs; steps: windows that it works through, or its seconds where it is `timed`;
    tokens: about as many targets as these windows have.
    """

    name: str
    kind: Kind
    method: str
    seed: int
    words: tuple[str, ...]
    steps: int
    after: str | None = None
    tokens: int = 0

    @property
    def timed(self) -> bool:
        """Whether it has a time budget in place of a number of steps."""
        return any(word.startswith(TIMED) for word in self.words)


class Sizes:
    """Tokens of a corpus's splits, for counting steps."""

    def __init__(self, splits: Mapping[str, Sized]) -> None:
        self.train = len(splits["train"])

    def steps(self, config: AnySearch | AnyTrain) -> int:
        """Windows that a run works through, all epochs, each taken to be as the first; of a run
        with a budget its seconds, which say as much of the time that is left.
        """
        if config.seconds:
            return max(1, round(config.seconds))  # not known yet; they go by the time
        if not isinstance(config, SearchConfig | TrainConfig):
            return self._batches(config)
        tokens = self.train
        if isinstance(config, SearchConfig) and method_of(config.method).derive == "halving":
            own = self._all_passes(config, self._searched(config))
            each = config.blackbox.windows or own
            count = config.cell_space.count()
            plan = plan_of(config.blackbox.budget, each, least=config.blackbox.rung, cells=count)
            return plan.total_steps
        if isinstance(config, SearchConfig) and config.from_scratch and config.blackbox.windows:
            count = config.cells
            if method_of(config.method).derive == "random":  # which tries no cell twice
                count = min(count, config.cell_space.count())
            return config.blackbox.windows * count
        if isinstance(config, SearchConfig) and config.holds_out:
            tokens = self._searched(config)
        steps = self._all_passes(config, tokens)
        if isinstance(config, SearchConfig) and config.races:
            each = config.select.windows or self._all_passes(config, self._searched(config))
            count = config.cell_space.count()
            plan = plan_of(config.select.budget, each, least=config.select.rung, cells=count)
            return steps + plan.total_steps
        return steps

    def _batches(self, config: ImageSearchConfig | ImageTrainConfig) -> int:
        """Batches of all epochs of a run on images."""
        images = self.train
        if isinstance(config, ImageSearchConfig) and "alphas.held_out" not in config.idle:
            images = int(images * (1 - config.alphas.held_out))
        count = -(-images // config.batches.size)
        return config.epochs * min(count, config.batches.limit or count)

    def tokens(self, config: AnySearch | AnyTrain) -> int:
        """Targets of as many windows, each as long as those of a first epoch on average, or images
        of as many batches; 0 of a run with a budget, whose steps are not known.
        """
        if config.seconds:
            return 0
        if not isinstance(config, SearchConfig | TrainConfig):
            return self._batches(config) * config.batches.size
        length = self.train // config.windows.streams
        windows = window_lengths(config.windows, length, random.Random(0))
        mean = sum(windows) * config.windows.streams / max(1, len(windows))
        return round(self.steps(config) * mean)

    def _searched(self, config: SearchConfig) -> int:
        """Tokens of the text that a search trains on."""
        return int(self.train * (1 - config.alphas.held_out))

    @staticmethod
    def _all_passes(config: SearchConfig | TrainConfig, tokens: int) -> int:
        """Windows of all epochs over so many tokens."""
        length = tokens // config.windows.streams
        windows = window_lengths(config.windows, length, random.Random(0))
        epochs = epochs_for(config.windows, tokens, 0, config.epochs, config.least_steps)
        return len(windows) * (epochs + config.weights.finetune_epochs)


def resolve_study(
    *, preset: str | None, file: Paths | None = None, settings: Iterable[str],
    flags: Mapping[str, Any],
) -> StudyConfig:  # fmt: skip
    """The configuration of a study: as `presets.resolve`, and every search and training it holds.

    Raises:
        UsageError: for whatever one of its runs would refuse, before any of them starts.
    """
    if preset is None and file is None:
        preset = DEFAULT_PRESET
    path = None if file is None else Path(file)
    table = compose("study", preset=preset, file=path, settings=settings, flags=flags)
    config = from_plain(StudyConfig, table)
    resolved_runs(config)
    return config


def study_name(corpus: str, preset: str | None, file: Paths | None) -> str:
    """What its folder is called unless it is said: after the corpus, and the preset or the file."""
    called = preset or (DEFAULT_PRESET if file is None else Path(file).stem)
    return f"study-{corpus}-{called.removeprefix('study-')}"


def resolved_runs(config: StudyConfig) -> dict[str, Any]:
    """The complete settings of the study's runs, less seed and cell: what makes it this study.

    Keys: `search.METHOD`, `short` and `final`.
    """
    runs = {f"search.{m}": to_plain(search_config(config, m)) for m in config.methods}
    for kind in ("short", "final"):
        runs[kind] = to_plain(train_config(config, kind))
    for plain in runs.values():
        for key in ("seed", "genotype"):
            plain.pop(key, None)
    return runs


def search_config(config: StudyConfig, method: str) -> AnySearch:
    """The settings of a method's first search."""
    preset, settings = _words_of(_search_table(config, method), "search")
    flags = {"corpus": config.corpus, "method": base(method), "seed": config.seeds[0]}
    resolved: AnySearch = resolve(
        config.start + "search", preset=preset, file=None, settings=settings, flags=flags
    )
    if isinstance(resolved, ImageSearchConfig) and (
        resolved.space != "cells" or resolved.model.nodes != NODES
    ):
        dense = resolved.space != "cells"
        raise UsageError(
            f"a study on images compares with random cells of {NODES} nodes, and its searches are "
            f"of {'dense blocks' if dense else f'{resolved.model.nodes} nodes'}",
            "leave out search.space and search.model.nodes, or search without a study",
        )
    return resolved


def train_config(config: StudyConfig, kind: Literal["short", "final"]) -> AnyTrain:
    """The settings of a short or final training, of the first random cell."""
    preset, settings = _words_of(getattr(config, kind), kind)
    cell: Any = random_cell(config, 1)
    if not config.start:
        cell = Genotype.from_text(cell).to_plain()
    flags = {"corpus": config.corpus, "genotype": cell, "seed": 1}
    resolved: AnyTrain = resolve(
        config.start + "train", preset=preset, file=None, settings=settings, flags=flags
    )
    return resolved


def random_cell(config: StudyConfig, number: int) -> str:
    """The short text of random cell `number`: `random:NUMBER`, of the space that is searched; of
    images that name itself.
    """
    searched = search_config(config, config.methods[0])
    if not isinstance(searched, SearchConfig):
        return f"random:{number}"
    space = searched.cell_space
    cell = space.sample(random.Random(f"{number}/cell"))
    return Genotype(cells={RECURRENT: cell}).to_text()


def first_jobs(config: StudyConfig, sizes: Sizes) -> list[Job]:
    """Every search, then every short training, of found cells and then of random ones."""
    searches = []
    for method in config.methods:
        words = _line("search", config, _search_table(config, method), "--method", base(method))
        own = search_config(config, method)
        steps, tokens = sizes.steps(own), sizes.tokens(own)
        for seed in config.seeds:
            name = f"search-{method}-s{seed}"
            full = (*words, "--seed", str(seed))
            job = Job(
                name=name, kind="search", method=method, seed=seed, words=full, steps=steps,
                tokens=tokens,
            )  # fmt: skip
            searches.append(job)
    if config.finals == "all":
        return [*searches, *_every_final(config, searches, sizes)]
    trained = train_config(config, "short")
    steps, tokens = sizes.steps(trained), sizes.tokens(trained)

    def short(method: str, seed: int, genotype: str, after: str | None) -> Job:
        name = f"train-{cell_name(method, seed)}"
        words = _line("train", config, config.short, "--genotype", genotype, "--seed", str(seed))
        return Job(
            name=name, kind="short", method=method, seed=seed, words=words, steps=steps,
            after=after, tokens=tokens,
        )  # fmt: skip

    found = [short(j.method, j.seed, f"{{study}}/{j.name}", j.name) for j in searches]
    numbers = range(1, config.randoms + 1)
    return [*searches, *found, *(short(RANDOM, k, random_cell(config, k), None) for k in numbers)]


def final_jobs(config: StudyConfig, chosen: Mapping[str, int], sizes: Sizes) -> list[Job]:
    """The final trainings. chosen: the seed (or random number) of each method's best cell."""
    trained = train_config(config, "final")
    steps, tokens = sizes.steps(trained), sizes.tokens(trained)
    jobs = []
    for method, seed in chosen.items():
        cell = cell_name(method, seed)
        # The genotype lies in the short training's folder, for random cells too.
        words = _line("train", config, config.final, "--genotype", f"{{study}}/train-{cell}")
        for own in config.final_seeds:
            full = (*words, "--seed", str(own))
            jobs.append(
                Job(
                    name=f"final-{cell}-t{own}", kind="final", method=method, seed=seed,
                    words=full, steps=steps, after=f"train-{cell}", tokens=tokens,
                )
            )  # fmt: skip
    return jobs


def _every_final(config: StudyConfig, searches: Iterable[Job], sizes: Sizes) -> list[Job]:
    """The final trainings of every found cell, of the random ones and of the fixed ones."""
    trained = train_config(config, "final")
    steps, tokens = sizes.steps(trained), sizes.tokens(trained)
    cells = [(RANDOM, k, random_cell(config, k), None) for k in range(1, config.randoms + 1)]
    cells += [(name, 0, name, None) for name in config.fixed]
    found = [(job.method, job.seed, f"{{study}}/{job.name}", job.name) for job in searches]
    jobs = []
    for method, seed, genotype, after in [*found, *cells]:
        words = _line("train", config, config.final, "--genotype", genotype)
        cell = method if method in config.fixed else cell_name(method, seed)
        jobs += [
            Job(
                name=f"final-{cell}-t{own}", kind="final", method=method, seed=seed,
                words=(*words, "--seed", str(own)), steps=steps, after=after, tokens=tokens,
            )
            for own in config.final_seeds
        ]  # fmt: skip
    return jobs


def cell_name(method: str, seed: int) -> str:
    """'gdas-s2' for the cell of a search, 'random-r5' for a random one."""
    return f"random-r{seed}" if method == RANDOM else f"{method}-s{seed}"


def command(job: Job, folder: Path) -> tuple[str, ...]:
    """The words after `rnnnas` that run a job of the study in `folder`."""
    words = (word.replace("{study}", str(folder), 1) for word in job.words)
    return (*words, "--out", str(folder / job.name), "--json")


def _search_table(config: StudyConfig, method: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(json.dumps(config.search))  # a copy, all the way down
    merge(table, config.own.get(method, {}))
    return table


def races_by_cost(config: StudyConfig, method: str) -> str | None:
    """The setting by which a method's searches may cost so many full trainings, where the study
    says it itself.
    """
    table = _search_table(config, method)
    for group in ("blackbox", "select"):
        if (said := table.get(group, {}).get("budget")) is not None:
            return f"{group}.budget = {said:g}"
    return None


def _line(run: str, config: StudyConfig, table: Mapping[str, Any], *more: str) -> tuple[str, ...]:
    preset, settings = _words_of(table, run)
    sets = [word for setting in settings for word in ("--set", setting)]
    return (run, "--corpus", config.corpus, "--preset", preset, *sets, *more)


def _words_of(table: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """A stage's preset, and its other settings as `--set` takes them."""
    rest = dict(table)
    preset = rest.pop("preset", None)
    if not isinstance(preset, str):
        raise UsageError(f"{where}.preset = {preset!r} must be the name of a preset")
    return preset, [f"{key}={json.dumps(value)}" for key, value in leaves(rest)]
