"""Files of settings: the presets of the package and those of `--config`, and what they extend."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from rnnnas.config.plain import merge, parse_toml
from rnnnas.errors import UsageError, nearest
from rnnnas.plugins.load import load

IMAGE = "image-"  # begins the kinds of runs on images
# What a preset may hold.
TABLES = ("search", "train", "image-search", "image-train", "study", "table")
_MOST_BYTES = 10_000_000  # of a file of settings
_MOST_FILES = 50  # that extend one another
EXTENDS = "extends"  # names a preset, or another file, whose settings lie under a file's own


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
    """A preset as tables: `about`, and one or more of `TABLES`, with what it extends in them."""
    return _extended(tomllib.loads(preset_text(name)), f"preset {name!r}", None, (name,))


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


def file_table(file: Path, kind: str) -> dict[str, Any]:
    """The settings that a file has for runs of `kind`, with those of what it extends under them.

    It holds the settings themselves, or has the form of a preset: a table for each kind, and
    outside of these tables what is for all of them.

    Raises:
        UsageError: where it is no TOML, extends what there is not, or is for other kinds of runs.
    """
    tables = _file_tables(file)
    kinds = [name for name in TABLES if isinstance(tables.get(name), dict)]
    if kinds and kind not in kinds:
        raise UsageError(
            f"--config {file} has no settings for {kind}", f"it has some for {', '.join(kinds)}"
        )
    return _of_kind(tables, kind)


def own_table(file: Path, kind: str) -> dict[str, Any]:
    """As `file_table`, of what the user says: the file and the files that it extends, no preset."""
    tables = _read(file)
    base = tables.pop(EXTENDS, None)
    settings = _of_kind(tables, kind)
    if isinstance(base, str) and base.endswith(".toml"):
        under = own_table(file.parent / base, kind)
        merge(under, settings)
        return under
    return settings


def _of_kind(tables: dict[str, Any], kind: str) -> dict[str, Any]:
    """The settings for all kinds of runs, and over them those for one."""
    settings = {name: value for name, value in tables.items() if name not in (*TABLES, "about")}
    merge(settings, tables.get(kind, {}))
    return settings


def corpus_in(file: Path, kind: str) -> str | None:
    """The corpus that a file names for a "search" or a "train", on text or on images."""
    tables = _file_tables(file)
    places = (tables.get(kind), tables.get(IMAGE + kind), tables)
    names = [place["corpus"] for place in places if isinstance(place, dict) and "corpus" in place]
    return names[0] if names and isinstance(names[0], str) else None


def _file_tables(file: Path) -> dict[str, Any]:
    return _extended(_read(file), f"--config {file}", file, (str(file.resolve()),))


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:  # perhaps a pipe, or a device without an end
            data = opened.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes")
        table = parse_toml(data.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--config {file} cannot be read as TOML: {error}") from error
    _load_plugins(table.pop("plugins", {}), file)
    return table


def _load_plugins(table: Any, file: Path) -> None:
    """Load the files that a settings file names in its `[plugins]`, as seen from its folder."""
    if table == {}:
        return
    names = table.get("files") if isinstance(table, dict) and set(table) <= {"files"} else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f'[plugins] of {file} must be files = ["my_ops.py", ...]')
    load(*(file.parent / name for name in names))


def _extended(
    tables: dict[str, Any], what: str, file: Path | None, seen: tuple[str, ...]
) -> dict[str, Any]:
    """The tables over those that they say they extend.

    Args:
        what: where they are from, as errors name it.
        file: that file, which paths in it are relative to; None for a preset of the package.
        seen: what was extended on the way here.
    """
    base = tables.pop(EXTENDS, None)
    if base is None:
        return tables
    if not isinstance(base, str):
        raise UsageError(
            f"{what}: {EXTENDS} = {base!r} must be the name of a preset, or of a TOML file"
        )
    path = file.parent / base if file is not None and base.endswith(".toml") else None
    name = base if path is None else str(path.resolve())
    if name in seen:
        raise UsageError(f"{what} extends itself: {' -> '.join((*seen, name))}")
    if len(seen) > _MOST_FILES:
        raise UsageError(f"{what}: more than {_MOST_FILES} files extend one another")
    below = tomllib.loads(preset_text(base)) if path is None else _read(path)
    called = f"preset {base!r}" if path is None else f"--config {path}"
    merged = _extended(below, called, path, (*seen, name))
    kinds = [kind for kind in TABLES if isinstance(merged.get(kind), dict)]
    if kinds:  # what stands outside of tables goes before the base's tables, too
        own = [kind for kind in TABLES if isinstance(tables.get(kind), dict)]
        about = {name: tables[name] for name in ("about",) if name in tables}
        tables = about | {kind: _of_kind(tables, kind) for kind in {*kinds, *own}}
    merge(merged, tables)
    return merged
