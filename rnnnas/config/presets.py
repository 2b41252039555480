"""Named presets, configuration files and overrides, resolved into the settings of a run.

Precedence: flag > `--set key=value` > `--config FILE` > preset.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rnnnas.cnn import zoo as images
from rnnnas.config.images import ImageSearchConfig, ImageTrainConfig
from rnnnas.config.plain import from_plain as from_plain
from rnnnas.config.plain import merge as merge
from rnnnas.config.plain import to_plain as to_plain
from rnnnas.config.plain import value_of
from rnnnas.config.preset_files import IMAGE as IMAGE
from rnnnas.config.preset_files import TABLES as TABLES
from rnnnas.config.preset_files import corpus_in, file_table, own_table
from rnnnas.config.preset_files import preset_names as preset_names
from rnnnas.config.preset_files import preset_table as preset_table
from rnnnas.config.preset_files import preset_tables as preset_tables
from rnnnas.config.preset_files import preset_text as preset_text
from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.errors import UsageError
from rnnnas.nas.zoo import BASELINES, ZOO, genotype_of

DEFAULT_PRESET = "quick"


DEFAULT_IMAGE_PRESET = "cifar10-quick"


AnySearch = SearchConfig | ImageSearchConfig


AnyTrain = TrainConfig | ImageTrainConfig


KINDS: dict[str, type] = {
    "search": SearchConfig,
    "train": TrainConfig,
    "image-search": ImageSearchConfig,
    "image-train": ImageTrainConfig,
}


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
        merge(table, file_table(file, kind))
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


def corpus_of(
    kind: str, *, flag: str | None, settings: Iterable[str], file: Path | None
) -> str:  # fmt: skip
    """The name of the corpus of a "search" or a "train": of --corpus, --set, or --config.

    Raises:
        UsageError: where none of them has it.
    """
    sets = [text.partition("=")[2].strip() for text in settings if _key(text) == "corpus"]
    named = flag or (str(value_of(sets[-1])) if sets else None)
    if named is None and file is not None:
        named = corpus_in(file, kind)
    if not named:
        raise UsageError(
            "no corpus is named",
            'give one, --corpus NAME, or in the file of --config: corpus = "NAME" '
            "(rnnnas corpus list)",
        )
    return named


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def given(kind: str, file: Path | None, settings: Iterable[str]) -> list[str]:
    """Keys that the user set: with --set, or in a group of a file to other than their default.

    Defaults do not count there, for --print-config writes them all, nor does what it extends.
    """
    keys = [setting.partition("=")[0].strip() for setting in settings]
    table = {} if file is None else own_table(file, kind)
    for group in dataclasses.fields(typing.cast(Any, KINDS[kind])):
        inner = table.get(group.name)
        if isinstance(inner, Mapping) and dataclasses.is_dataclass(group.default_factory):
            known = to_plain(group.default_factory())
            keys += [f"{group.name}.{k}" for k, v in inner.items() if known.get(k) != v]
    return list(dict.fromkeys(keys))
