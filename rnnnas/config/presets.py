"""Named presets, configuration files and overrides, resolved into the settings of a run.

Precedence: flag > `--set key=value` > `--config FILE` > preset.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

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
from rnnnas.config.recipes import Reading, recipe
from rnnnas.config.text import WITHOUT_RESULT, SearchConfig, TrainConfig
from rnnnas.errors import UsageError
from rnnnas.nas.zoo import BASELINES, ZOO, genotype_of

DEFAULT_PRESET = "quick"


DEFAULT_IMAGE_PRESET = "cifar10-quick"


Run = TypeVar("Run", bound="AnySearch | AnyTrain")
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
    base: Mapping[str, Any] | None = None,
    reading: Reading | None = None,
    kept: Mapping[str, Any] | None = None,
) -> Any:
    """The configuration of a run of `kind`, one of `KINDS`.

    Args:
        reading: what the time given allows, for the recipe of a time budget where no preset is
            named.
        kept: what takes the recipe's place: what was chosen for the run that goes on.
        base: what takes the place of the default preset, where neither preset nor file is given.
        settings: 'dotted.key=value' texts; a value is read as TOML, or else as a plain word.
        flags: values by key, None for those not given.

    Raises:
        UsageError: naming the key, the value, what is allowed and the nearest known key.
    """
    cls = KINDS[kind]
    settings = list(settings)
    seconds = flags.get("seconds")
    if seconds and reading is not None and base is None and not kind.startswith(IMAGE):
        base = {}
        merge(base, preset_table(DEFAULT_PRESET, kind))
        merge(base, recipe(kind, reading, seconds) if kept is None else dict(kept))
    table = compose(kind, preset=preset, file=file, settings=settings, flags=flags, base=base)
    _settle_length(table, kind, file, settings, flags)
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


def _settle_length(
    table: dict[str, Any], kind: str, file: Path | None, settings: list[str],
    flags: Mapping[str, Any],
) -> None:  # fmt: skip
    """Let what was given of epochs, windows and time win over what the preset has of them.

    Raises:
        UsageError: for a time and a number of epochs, or a race's cost.
    """
    filed = {} if file is None else own_table(file, kind)
    said = {setting.partition("=")[0].strip() for setting in settings}
    said |= _keys(flags)
    if table.get("seconds"):
        if "epochs" in said:
            raise UsageError(
                f"a budget of {table['seconds']:g} s decides how many epochs there are",
                "give a time or --epochs, not both",
            )
        if costs := sorted({"blackbox.budget", "select.budget"} & said):
            raise UsageError(
                f"a budget of {table['seconds']:g} s decides what the trainings of a race cost: "
                f"{costs[0]} has no place beside it",
                "give a time or that setting, not both",
            )
        if kind.startswith(IMAGE):
            raise UsageError(
                "a time budget is for text so far", "give the length of a run on images by --epochs"
            )
        if "windows.limit" not in said | _keys(filed):
            table.setdefault("windows", {})["limit"] = 0  # all of the text, as time permits
    given = said | _keys(filed)
    if (
        {"epochs", "windows.limit"} & given
        and "least_steps" in table
        and "least_steps" not in given
    ):
        table["least_steps"] = 0


def _keys(table: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The dotted keys of all values of nested tables, but of those that are not given."""
    found = set()
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _keys(value, f"{prefix}{key}.")
        elif value is not None:
            found.add(prefix + key)
    return found


def _check_medium(name: str, kind: str) -> None:
    """Raises UsageError where `name` is published for the other kind of corpus alone."""
    text, pairs = [*ZOO, *BASELINES], [*images.ZOO]
    pairs += [images.PREFIX.upper() + word for word in pairs]
    if kind.startswith(IMAGE):
        own, other, what = pairs, text, ("a recurrent cell", "images")
    else:
        own, other, what = text, pairs, ("a pair of image cells", "text")
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
    base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The settings of `resolve` as they were given, merged and not yet checked."""
    table: dict[str, Any] = {}
    if base is not None and preset is None and file is None:
        merge(table, base)
    elif preset is not None or file is None:
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


def resolve_run(
    kind: str,
    *,
    preset: str | None,
    file: str | os.PathLike[str] | None,
    flags: Mapping[str, Any],
    images: bool,
    settings: Iterable[str] = (),
    base: Mapping[str, Any] | None = None,
    reading: Reading | None = None,
    kept: Mapping[str, Any] | None = None,
) -> Any:
    """The configuration of a "search" or a "train" run; arguments as of `resolve`, `images`
    says of what medium it is.

    Raises:
        UsageError: naming the key, the value, what is allowed and the nearest known key.
    """
    return resolve(
        (IMAGE if images else "") + kind,
        preset=preset,
        file=None if file is None else Path(file),
        settings=settings,
        flags=flags,
        base=base,
        reading=reading,
        kept=kept,
    )


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


def without_effect(
    config: Any,
    kind: str,
    file: str | os.PathLike[str] | None,
    settings: Iterable[str],
    images: bool,
) -> list[str]:
    """Keys that the user set and that change nothing in this run."""
    keys = given((IMAGE if images else "") + kind, None if file is None else Path(file), settings)
    return [key for key in keys if key in config.idle and key not in WITHOUT_RESULT]


def with_budget(config: Run, minutes: float) -> Run:
    """The settings of a run with a time budget, which still reads no more than `windows.limit`.

    Raises:
        UsageError: for a run on images, which has none.
    """
    if not any(f.name == "seconds" for f in dataclasses.fields(config)):
        raise UsageError("a time budget is for text so far", "leave out `minutes`")
    budget: dict[str, Any] = {"seconds": 60.0 * minutes}
    return dataclasses.replace(config, **budget)
