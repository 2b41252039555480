"""Named presets, configuration files and overrides, resolved into the settings of a run.

Precedence: flag > `--set key=value` > `--config FILE` > preset.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rnnnas.cnn import zoo as images
from rnnnas.config.images import ImageSearchConfig, ImageTrainConfig
from rnnnas.config.plain import from_plain as from_plain
from rnnnas.config.plain import merge as merge
from rnnnas.config.plain import to_plain as to_plain
from rnnnas.config.plain import value_of
from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.errors import UsageError, nearest
from rnnnas.nas.zoo import BASELINES, ZOO, genotype_of
from rnnnas.plugins.load import load

DEFAULT_PRESET = "quick"


DEFAULT_IMAGE_PRESET = "cifar10-quick"


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
    _load_plugins(table.pop("plugins", {}), file)
    # A preset's own form, [search] and [train] tables, is understood too.
    inner = table.get(kind, table)
    return inner if isinstance(inner, dict) else table


def _load_plugins(table: Any, file: Path) -> None:
    """Load the files that a settings file names in its `[plugins]`, as seen from its folder."""
    names = table.get("files") if isinstance(table, dict) and set(table) <= {"files"} else None
    if table == {}:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f'[plugins] of {file} must be files = ["my_ops.py", ...]')
    load(*(file.parent / name for name in names))
