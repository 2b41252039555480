"""The command line that repeats a run or a study, found from its settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from rnnnas.cnn import zoo as image_zoo
from rnnnas.config.images import ImageSearchConfig, ImageTrainConfig
from rnnnas.config.plain import from_plain, leaves, to_plain
from rnnnas.config.presets import IMAGE, preset_names, resolve
from rnnnas.config.text import BY_BUDGET, SearchConfig, TrainConfig
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.reporting.read import RunData, StudyData
from rnnnas.runs.files import json_plain
from rnnnas.studies.plan import StudyConfig, resolve_study

_LATER = ("save_seconds", "capture")  # change no result
_CLASSES: Mapping[str, Any] = {
    "search": SearchConfig, "train": TrainConfig,
    f"{IMAGE}search": ImageSearchConfig, f"{IMAGE}train": ImageTrainConfig,
}  # fmt: skip


def command_of(run: RunData) -> str | None:
    """The command that gives the same settings from the preset that is nearest to them.

    Returns:
        None where none does: settings of another version, a cell that has no short text, or a
        training that went on from another's weights.
    """
    images = run.config.get("augment") is not None
    kind = f"{IMAGE if images else ''}{run.kind}"
    wanted = _completed(kind, {k: v for k, v in run.config.items() if k != "corpus_sha256"})
    if wanted.get("start"):  # the weights that it went on from are known by their digest alone
        return None
    words = ["--corpus", str(wanted.get("corpus", ""))]
    words += [word for name in run.plugins for word in ("--plugin", name)]
    flags: dict[str, Any] = {"corpus": wanted.get("corpus"), "seed": wanted.get("seed")}
    if run.kind == "search":
        flags["method"] = wanted.get("method")
        words += ["--method", str(flags["method"])]
    else:
        flags["genotype"] = wanted.get("genotype") or run.cell
        cell = _cell_words(wanted.get("genotype"), run.cell)
        if cell is None:
            return None
        words += ["--genotype", cell]
    words += ["--seed", str(flags["seed"])]
    best: list[str] | None = None
    for preset in preset_names():
        found = _settings(kind, preset, flags, wanted)
        if found is not None and (best is None or len(found) < len(best)):
            best = ["--preset", preset, *found]
    if best is None:
        return None
    return shlex.join(["rnnnas", run.kind, *words, *best, "--out", f"checkpoints/{run.name}"])


def _completed(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """The settings with those that an older version did not have yet, at their defaults.

    Settings that this version does not know stay as they are: no preset will lead to them.
    """
    try:
        plain: dict[str, Any] = json_plain(to_plain(from_plain(_CLASSES[kind], config)))
    except (KeyError, TypeError, ValueError, UsageError):
        return config
    return plain


def image_name(genotype: Genotype) -> str:
    """'image:DARTS_V2' of published cells of image networks; empty of others."""
    for name, known in image_zoo.ZOO.items():
        if known.genotype == genotype:
            return f"{image_zoo.PREFIX}{name}"
    return ""


def _cell_words(plain: object, cell: str) -> str | None:
    if not isinstance(plain, Mapping) or not plain:
        return cell or None
    try:
        genotype = Genotype.from_plain(plain)
        return image_name(genotype) or genotype.to_text()
    except UsageError:
        return None


def _settings(
    kind: str, preset: str, flags: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[str] | None:
    """The `--set` words that lead from a preset to the settings, None where they do not."""
    try:
        base = json_plain(to_plain(_resolved(kind, preset, (), flags)))
        settings = _differences(base, wanted)
        reached = json_plain(to_plain(_resolved(kind, preset, settings, flags)))
    except UsageError:
        return None
    free = {*_LATER, *(BY_BUDGET if wanted.get("seconds") else ())}
    same = {k: v for k, v in leaves(reached) if k not in free}
    if same != {k: v for k, v in leaves(json_plain(wanted)) if k not in free}:
        return None
    return [word for setting in settings for word in ("--set", setting)]


def _resolved(kind: str, preset: str, settings: Any, flags: Mapping[str, Any]) -> Any:
    return resolve(kind, preset=preset, file=None, settings=settings, flags=flags)


def _differences(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """'key=value' of each setting that is not what `base` has; the genotype is a flag's."""
    there = dict(leaves(base))
    return [
        f"{key}={json.dumps(value)}"
        for key, value in leaves(wanted)
        if there.get(key) != value
        and not key.startswith("genotype")
        and key not in _LATER
        and not (key in BY_BUDGET and wanted.get("seconds"))
    ]


def study_command(study: StudyData) -> str | None:
    """As `command_of`, for a study."""
    wanted = json_plain(study.plan["config"])
    if not isinstance(wanted, Mapping):
        return None
    flags = {name: wanted.get(name) for name in ("corpus", "methods", "seeds")}
    best: list[str] | None = None
    for preset in preset_names():
        try:
            base = _plain_study(preset, (), flags)
            settings = _differences(base, wanted)
            reached = _plain_study(preset, settings, flags)
        except UsageError:
            continue
        if reached == wanted and (best is None or 2 * len(settings) + 2 < len(best)):
            sets = [word for setting in settings for word in ("--set", setting)]
            best = ["--preset", preset, *sets]
    if best is None:
        return None
    methods, seeds = (",".join(map(str, wanted[name])) for name in ("methods", "seeds"))
    seeds += "," if "," not in seeds else ""
    words = ["--corpus", str(wanted["corpus"]), "--methods", methods, "--seeds", seeds]
    out = ["--out", f"checkpoints/{study.name}"]
    return shlex.join(["rnnnas", "study", *words, *best, *out])


def _plain_study(preset: str, settings: Any, flags: Mapping[str, Any]) -> dict[str, Any]:
    config: StudyConfig = resolve_study(preset=preset, settings=settings, flags=flags)
    plain: dict[str, Any] = json_plain(to_plain(config))
    return plain
