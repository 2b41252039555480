"""What a run is: the components' own configurations, composed, validated, and read from presets.

Precedence: flag > `--set key=value` > `--config FILE` > preset.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from rnnnas.data.streams import WindowConfig
from rnnnas.errors import UsageError, nearest
from rnnnas.lm.baseline import Baseline
from rnnnas.lm.cell import check_cell
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.genotype import BASELINES, CellGene, Genotype
from rnnnas.nas.methods import method_of
from rnnnas.nas.relax.base import Relaxation
from rnnnas.nas.space import genotype_of
from rnnnas.optim import AlphaConfig, WeightConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same module under its name before Python 3.11

DEFAULT_PRESET = "quick"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """One search. epochs: passes over the text the weights are trained on; valid_streams: B of
    the validation pass (batch statistics need at least 2); save_seconds: between saved states;
    relax: the method's own settings, the fields of its relaxation.
    """

    corpus: str
    method: str = "darts"
    seed: int = 1
    epochs: int = 50
    valid_streams: int = 64
    save_seconds: float = 60.0
    model: ModelConfig = field(default_factory=ModelConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)
    alphas: AlphaConfig = field(default_factory=AlphaConfig)
    relax: dict[str, Any] = field(default_factory=dict)

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
        if self.windows.streams < 2:
            raise UsageError("windows.streams must be at least 2: search normalises over streams")
        if self.order == "exact" and self.model.path == "fast":
            raise UsageError(
                "alphas.second_order = 'exact' differentiates twice, which the fast path cannot",
                "add --set model.path=eager",
            )

    @property
    def order(self) -> Literal["first", "finite", "exact"]:
        """The order of the hypergradient that the method and the alphas' settings ask for."""
        return "first" if method_of(self.method).order == "first" else self.alphas.second_order

    @property
    def relaxation(self) -> Relaxation:
        """The method's relaxation with the settings `relax.*`."""
        return from_plain(method_of(self.method).relaxation, self.relax, "relax.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training. cell: a derived cell, which `genotype` describes, or a baseline, which has no
    genotype. valid_streams and test_streams: B of the evaluations (10 and 1 in the literature).
    """

    corpus: str
    cell: Literal["derived", "lstm", "gru"] = "derived"
    genotype: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    epochs: int = 50
    valid_streams: int = 10
    test_streams: int = 1
    save_seconds: float = 60.0
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


KINDS: dict[str, type] = {"search": SearchConfig, "train": TrainConfig}
TABLES = (*KINDS, "study")  # what a preset may hold; study.plan has the study's class


def _at_least(**values: tuple[int, int]) -> None:
    for name, (value, low) in values.items():
        if value < low:
            raise UsageError(f"{name} = {value} must be at least {low}")


def resolve(
    kind: str,
    *,
    preset: str | None,
    file: Path | None,
    settings: Iterable[str],
    flags: Mapping[str, Any],
) -> Any:
    """The configuration of a run of `kind` ("search" or "train").

    Args:
        settings: 'dotted.key=value' texts; a value is read as TOML, or else as a plain word.
        flags: values by key, None for those not given.

    Raises:
        UsageError: naming the key, the value, what is allowed and the nearest known key.
    """
    cls = KINDS[kind]
    table = compose(kind, preset=preset, file=file, settings=settings, flags=flags)
    if isinstance(table.get("genotype"), str):
        # A baseline, a name, a file or `random`, which the run's seed decides.
        name = table["genotype"]
        if name.upper() in BASELINES:
            table["cell"], table["genotype"] = name.lower(), {}
        else:
            table["cell"] = "derived"
            table["genotype"] = genotype_of(name, table.get("seed", 1)).to_plain()
    return from_plain(cls, table)


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
        merge(table, preset_table(preset or DEFAULT_PRESET, kind))
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
        place[last] = _value(text.strip())
        merge(table, nested)
    merge(table, {key: value for key, value in flags.items() if value is not None})
    return table


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
        raise UsageError(
            f"preset {name!r} has no settings for {kind}", f"presets that do: {', '.join(able)}"
        )
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


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def merge(table: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Put what `other` holds over `table`, group by group."""
    for key, value in other.items():
        # A genotype is one value, not settings to merge key by key.
        if key != "genotype" and isinstance(value, Mapping) and isinstance(table.get(key), dict):
            merge(table[key], value)
        elif isinstance(value, Mapping):
            table[key] = dict(value)
            for inner, content in value.items():
                if isinstance(content, Mapping):
                    table[key][inner] = dict(content)
        else:
            table[key] = value


def from_plain(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Build a configuration dataclass from plain values.

    Raises:
        UsageError: for an unknown key, a missing one, or a value of the wrong kind.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"the settings are {table!r}, not a table")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    values = {}
    for key, value in table.items():
        if key not in known:
            inside = [
                f"{name}.{key}"
                for name, hint in hints.items()
                if dataclasses.is_dataclass(hint)
                and key in {f.name for f in dataclasses.fields(hint)}
            ]
            hint = f" (did you mean {' or '.join(inside)}?)" if inside else ""
            raise UsageError(
                f"there is no setting {where + key!r}{hint or nearest(key, list(known))}",
                f"settings here: {', '.join(where + name for name in known)}",
            )
        values[key] = _checked(hints[key], value, where + key)
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UsageError(f"the setting {where + name!r} is missing")
    return cls(**values)


def _checked(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise UsageError(f"{key} is a group of settings, not the value {value!r}")
        return from_plain(hint, value, key + ".")
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise UsageError(f"{key} = {value!r} must be one of {', '.join(map(repr, allowed))}")
        return value
    if origin is tuple:
        parts = typing.get_args(hint)
        if parts[1:] == (...,):  # any number of one kind
            if not isinstance(value, list | tuple):
                raise UsageError(f"{key} = {value!r} must be a list")
            return tuple(_checked(parts[0], v, key) for v in value)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise UsageError(f"{key} = {value!r} must be {len(parts)} numbers, e.g. [0.9, 0.999]")
        return tuple(_checked(part, v, key) for part, v in zip(parts, value, strict=True))
    if origin is dict or isinstance(hint, types.GenericAlias):
        if not isinstance(value, Mapping):
            raise UsageError(f"{key} = {value!r} must be an object")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = float("inf")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{key} = {value!r} must be of kind {hint.__name__}")
    if hint is float and not abs(value) < float("inf"):
        raise UsageError(f"{key} = {value!r} must be finite")
    return value


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values; lists for tuples. `from_plain` is the inverse."""
    plain: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_plain(value)
        plain[f.name] = list(value) if isinstance(value, tuple) else value
    return plain


def to_toml(plain: Mapping[str, Any], prefix: str = "") -> str:
    """Nested plain values as TOML, in the form that `--config` reads."""
    import json

    lines, tables = [], []
    for key, value in plain.items():
        if isinstance(value, Mapping):
            tables.append(f"\n[{prefix}{key}]\n" + to_toml(value, f"{prefix}{key}."))
        else:
            # JSON's forms of strings, numbers, booleans and lists are TOML's too.
            lines.append(f"{key} = {json.dumps(value)}\n")
    return "".join(lines) + "".join(tables)
