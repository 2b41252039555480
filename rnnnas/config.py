"""What a run is: the components' own configurations, composed, validated, and read from presets.

Precedence: flag > `--set key=value` > `--config FILE` > preset.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from rnnnas.cnn import zoo as images
from rnnnas.data.streams import WindowConfig
from rnnnas.errors import UsageError, nearest
from rnnnas.image_config import ImageSearchConfig, ImageTrainConfig
from rnnnas.lm.baseline import Baseline
from rnnnas.lm.cell import check_cell
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.cost import LatencyConfig
from rnnnas.nas.evolution import BlackboxConfig
from rnnnas.nas.genotype import BASELINES, ZOO, CellGene, Genotype
from rnnnas.nas.methods import method_of
from rnnnas.nas.perturbation import DeriveConfig
from rnnnas.nas.space import RECURRENT_OPS, genotype_of
from rnnnas.optim import AlphaConfig, WeightConfig
from rnnnas.search_config import MethodChoice
from rnnnas.settings import at_least as _at_least
from rnnnas.settings import from_plain as from_plain
from rnnnas.settings import merge as merge
from rnnnas.settings import to_plain as to_plain
from rnnnas.settings import to_toml as to_toml
from rnnnas.settings import value_of
from rnnnas.stages import Stage, StageConfig, plan
from rnnnas.stopping import StopConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same module under its name before Python 3.11

DEFAULT_PRESET = "quick"
DEFAULT_IMAGE_PRESET = "cifar10-quick"
WITHOUT_RESULT = ("save_seconds", "capture")  # settings that act, though on no result


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig(MethodChoice):
    """One search. epochs: passes over the text the weights are trained on; valid_streams: B of
    the validation pass (batch statistics need at least 2); save_seconds: between saved states;
    relax: the method's own settings, the fields of its relaxation; blackbox: of methods that try
    cells one by one; latency: its price in what the alphas minimise; derive and stop: how a cell
    is read off alphas, and when they have moved enough; capture: see `programs.programs_for`.
    """

    corpus: str
    method: str = "darts"
    seed: int = 1
    epochs: int = 50
    valid_streams: int = 64
    save_seconds: float = 60.0
    capture: Literal["auto", "on", "off"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)
    alphas: AlphaConfig = field(default_factory=AlphaConfig)
    stages: StageConfig = field(default_factory=StageConfig)
    relax: dict[str, Any] = field(default_factory=dict)
    blackbox: BlackboxConfig = field(default_factory=BlackboxConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    derive: DeriveConfig = field(default_factory=DeriveConfig)
    stop: StopConfig = field(default_factory=StopConfig)

    def __post_init__(self) -> None:
        assert self.relaxation is not None  # refuses an unknown method or setting of one
        # Settings that the components share with a training but that a search has no place for.
        for name, value, only in (
            ("model.layers", self.model.layers, 1),
            ("noise.weightdrop", self.noise.weightdrop, 0.0),
            ("weights.finetune_epochs", self.weights.finetune_epochs, 0),
        ):
            if value != only:
                raise UsageError(f"{name} = {value} is for trainings: a search has {only}")
        _at_least(epochs=(self.epochs, 1), valid_streams=(self.valid_streams, 2))
        assert self.plan  # refuses stages that do not fit
        if self.windows.streams < 2:
            raise UsageError("windows.streams must be at least 2: search normalises over streams")
        if self.order == "exact" and self.model.path == "fast":
            raise UsageError(
                "alphas.second_order = 'exact' differentiates twice, which the fast path cannot",
                "add --set model.path=eager",
            )
        if self.blackbox.weights == "shared" and method_of(self.method).weights == "scratch":
            raise UsageError(
                f"method {self.method!r} trains every cell from scratch: "
                "it has no blackbox.weights = 'shared'",
                "take --method random-ws",
            )
        self._check_alphas_use()

    def _check_alphas_use(self) -> None:
        """Refuse what needs alphas that gradients move, and what does not go together."""
        if self.latency.weight and method_of(self.method).alphas == "none":
            raise UsageError(
                f"method {self.method!r} has no alphas: latency.weight = {self.latency.weight} "
                "has no place in it",
                "take a method with alphas, e.g. --method darts-1st",
            )
        method = method_of(self.method)
        if len(self.plan) > 1 and (method.alphas == "none" or method.derive != "scores"):
            raise UsageError(
                f"stages prune operations by the scores of alphas: method {self.method!r} has none "
                "for each operation of every edge",
                "leave stages.ops out, or take another method, e.g. --method darts-1st",
            )
        perturbs, stops = self.derive.by == "perturbation", self.stop.eigenvalue
        for asked, key in ((perturbs, "derive.by = 'perturbation'"), (stops, "stop.eigenvalue")):
            if asked and method_of(self.method).alphas != "gradient":
                raise UsageError(f"{key} needs alphas that gradients move: not {self.method!r}")
        if stops and perturbs:
            raise UsageError(
                "stop.eigenvalue goes back to the cell of an earlier epoch, which "
                "derive.by = 'perturbation' cannot derive: its weights are gone",
                "leave one of them out",
            )
        if stops and len(self.plan) > 1:
            raise UsageError("stop.eigenvalue compares epochs of one stage: the search has several")
        if stops and self.stop.every > self.epochs:
            raise UsageError(
                f"stop.every = {self.stop.every} is more than all {self.epochs} epochs: "
                "there would be no report"
            )

    @property
    def from_scratch(self) -> bool:
        weights = method_of(self.method).weights
        return (self.blackbox.weights if weights == "either" else weights) == "scratch"

    @property
    def cells(self) -> int:
        """How many cells are tried one by one."""
        return self.blackbox.cells or method_of(self.method).cells

    def _idle(self) -> set[str]:
        keys = MethodChoice._idle(self) | {*WITHOUT_RESULT}
        if self.derive.by == "scores":
            keys |= {f"derive.{f.name}" for f in dataclasses.fields(DeriveConfig)} - {"derive.by"}
        elif not self.derive.tune_windows:
            keys.add("derive.lr")
        if not self.stop.eigenvalue:
            keys |= {f"stop.{f.name}" for f in dataclasses.fields(StopConfig)}
            keys.remove("stop.eigenvalue")
        return keys

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages; one, unless `stages.ops` or the method ask for more."""
        return plan(
            self.stages,
            staged=method_of(self.method).staged,
            operations=len(RECURRENT_OPS),
            hidden=self.model.hidden,
            partial=self.model.partial,
            dropouth=self.noise.dropouth,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training. cell: a derived cell, which `genotype` describes, or a baseline, which has no
    genotype. valid_streams and test_streams: B of the evaluations (10 and 1 in the literature).
    capture: see `programs.programs_for`.
    """

    corpus: str
    cell: Literal["derived", "lstm", "gru"] = "derived"
    genotype: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    epochs: int = 50
    valid_streams: int = 10
    test_streams: int = 1
    save_seconds: float = 60.0
    capture: Literal["auto", "on", "off"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)

    def __post_init__(self) -> None:
        if self.cell != "derived" and self.genotype:
            raise UsageError(f"cell = {self.cell!r} takes no genotype", "leave one of them out")
        if self.cell == "derived":
            if not self.genotype:
                raise UsageError("the setting 'genotype' is missing")
            check_cell(Genotype.from_plain(self.genotype).recurrent)
            if self.noise.weightdrop:
                raise UsageError(
                    f"noise.weightdrop = {self.noise.weightdrop} is for LSTM and GRU: a derived "
                    "cell has noise.dropouth and noise.dropoutx"
                )
        if self.model.partial != 1:
            raise UsageError(
                f"model.partial = {self.model.partial} is for searches: a training has 1"
            )
        _at_least(
            epochs=(self.epochs, 1),
            valid_streams=(self.valid_streams, 1),
            test_streams=(self.test_streams, 1),
        )

    @property
    def network(self) -> CellGene | Baseline:
        """What `RecurrentLM` runs."""
        if self.cell == "derived":
            return Genotype.from_plain(self.genotype).recurrent
        return self.cell

    @property
    def idle(self) -> frozenset[str]:
        """Dotted keys of settings that change nothing in the result of this training."""
        keys = {*WITHOUT_RESULT, "model.nodes"}
        if self.cell != "derived":
            keys.add("noise.dropoutx")
            if self.model.layers == 1:
                keys.add("noise.dropouth")
        return frozenset(keys)


AnySearch = SearchConfig | ImageSearchConfig
AnyTrain = TrainConfig | ImageTrainConfig
IMAGE = "image-"  # begins the kinds of runs on images
KINDS: dict[str, type] = {
    "search": SearchConfig,
    "train": TrainConfig,
    "image-search": ImageSearchConfig,
    "image-train": ImageTrainConfig,
}
TABLES = (*KINDS, "study")  # what a preset may hold; study.plan has the study's class


def resolve(
    kind: str,
    *,
    preset: str | None,
    file: Path | None,
    settings: Iterable[str],
    flags: Mapping[str, Any],
) -> Any:
    """The configuration of a run of `kind`, one of `KINDS`.

    Args:
        settings: 'dotted.key=value' texts; a value is read as TOML, or else as a plain word.
        flags: values by key, None for those not given.

    Raises:
        UsageError: naming the key, the value, what is allowed and the nearest known key.
    """
    cls = KINDS[kind]
    table = compose(kind, preset=preset, file=file, settings=settings, flags=flags)
    if "capture" in table and kind.startswith(IMAGE):
        raise UsageError("the setting 'capture' is for text: runs on images are never captured")
    if isinstance(table.get("genotype"), str):
        _check_medium(table["genotype"], kind)
    if isinstance(table.get("genotype"), str) and kind.startswith(IMAGE):
        table["genotype"] = images.genotype_of(table["genotype"], table.get("seed", 1)).to_plain()
    elif isinstance(table.get("genotype"), str):
        # A baseline, a name, a file or `random`, which the run's seed decides.
        name = table["genotype"]
        if name.upper() in BASELINES:
            table["cell"], table["genotype"] = name.lower(), {}
        else:
            table["cell"] = "derived"
            table["genotype"] = genotype_of(name, table.get("seed", 1)).to_plain()
    return from_plain(cls, table)


def _check_medium(name: str, kind: str) -> None:
    """Raises UsageError where `name` is published for the other kind of corpus alone."""
    text, pictures = [*ZOO, *BASELINES], [*images.ZOO]
    pictures += [images.PREFIX.upper() + word for word in pictures]
    if kind.startswith(IMAGE):
        own, other, what = pictures, text, ("a recurrent cell", "images")
    else:
        own, other, what = text, pictures, ("a pair of image cells", "text")
    word = name.upper()
    if word in other and word not in own and not Path(name).exists():
        raise UsageError(
            f"genotype {name!r} is {what[0]}, and this corpus holds {what[1]}",
            f"published ones that fit: {', '.join(name for name in own if ':' not in name)}",
        )


def compose(
    kind: str,
    *,
    preset: str | None,
    file: Path | None,
    settings: Iterable[str],
    flags: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings of `resolve` as they were given, merged and not yet checked."""
    table: dict[str, Any] = {}
    if preset is not None or file is None:
        default = DEFAULT_IMAGE_PRESET if kind.startswith(IMAGE) else DEFAULT_PRESET
        merge(table, preset_table(preset or default, kind))
    if file is not None:
        merge(table, _file_table(file, kind))
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set {setting!r} is not key=value")
        nested: dict[str, Any] = {}
        place = nested
        *parents, last = key.strip().split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value_of(text.strip())
        merge(table, nested)
    merge(table, {key: value for key, value in flags.items() if value is not None})
    return table


def given(kind: str, file: Path | None, settings: Iterable[str]) -> list[str]:
    """Keys that the user set: with --set, or in a group of a file to other than their default.

    Defaults do not count there: --print-config writes them all.
    """
    keys = [setting.partition("=")[0].strip() for setting in settings]
    table = {} if file is None else _file_table(file, kind)
    for group in dataclasses.fields(typing.cast(Any, KINDS[kind])):
        inner = table.get(group.name)
        if isinstance(inner, Mapping) and dataclasses.is_dataclass(group.default_factory):
            known = to_plain(group.default_factory())
            keys += [f"{group.name}.{k}" for k, v in inner.items() if known.get(k) != v]
    return list(dict.fromkeys(keys))


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    folder = resources.files("rnnnas") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith("toml"))


def preset_text(name: str) -> str:
    """The TOML text of a preset.

    Raises:
        UsageError: where there is none of that name, with the nearest one.
    """
    if name not in preset_names():
        raise UsageError(
            f"preset {name!r} is unknown{nearest(name, preset_names())}",
            f"presets: {', '.join(preset_names())}",
        )
    return (resources.files("rnnnas") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def preset_tables(name: str) -> dict[str, Any]:
    """A preset as tables: `about`, and one or more of `TABLES`."""
    tables: dict[str, Any] = tomllib.loads(preset_text(name))
    return tables


def preset_table(name: str, kind: str) -> dict[str, Any]:
    """The settings that a preset has for runs of `kind`.

    Raises:
        UsageError: where it has none, naming the presets that do.
    """
    tables = preset_tables(name)
    if kind not in tables:
        able = [other for other in preset_names() if kind in preset_tables(other)]
        other = kind.removeprefix(IMAGE) if kind.startswith(IMAGE) else IMAGE + kind
        why = f"preset {name!r} has no settings for {kind}"
        if other in tables:
            what = ("text", "images") if kind.startswith(IMAGE) else ("images", "text")
            why = f"preset {name!r} is for {what[0]}, and this corpus holds {what[1]}"
        raise UsageError(why, f"presets that fit: {', '.join(able)}")
    table: dict[str, Any] = tables[kind]
    return table


def _file_table(file: Path, kind: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {file} cannot be read as TOML: {error}") from error
    # A preset's own form, [search] and [train] tables, is understood too.
    inner = table.get(kind, table)
    return inner if isinstance(inner, dict) else table
