"""Loads plug-ins, remembers which, and says which are missing.

A plug-in file is code of the user's own, and is run only where the user names it: with `--plugin`,
in a `[plugins]` table of a settings file that is named, or by this module's `load`. A package that
is installed brings one as an entry point of group `rnnnas.plugins`; those are imported when an
operation or a method is asked for that nothing else has.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rnnnas.errors import CheckpointError, UsageError

GROUP = "rnnnas.plugins"
MODULE = "rnnnas_plugin_"  # what the module of a plug-in file is called, in the beginning


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plug-in that is loaded.

    name: of the file, or of the entry point. digest: SHA-256 of the file; of an entry point the
    package and its version. path: of the file, None for an entry point.
    """

    name: str
    digest: str
    path: Path | None = None


_LOADED: dict[str, Plugin] = {}  # by resolved path, or by "entry point NAME"
_SEARCHED = [False]  # whether the entry points were imported


def load(*files: str | os.PathLike[str]) -> None:
    """Run plug-in files, each once in a process: they register what they bring.

    Raises:
        UsageError: where a file cannot be read, or fails, with its line.
    """
    for file in files:
        path = Path(file).resolve()
        if str(path) not in _LOADED:
            _LOADED[str(path)] = _run(Path(file), path)


def _run(shown: Path, path: Path) -> Plugin:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"plug-in {shown} cannot be read: {error.strerror or error}",
            "--plugin takes a Python file",
        ) from error
    digest = hashlib.sha256(source).hexdigest()
    # A name of its own, by which dataclasses and pickles find it again.
    name = f"{MODULE}{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digest[:8]}"
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"plug-in {shown} fails{_line_of(error, path)}: {type(error).__name__}: {error}"
        ) from error
    return Plugin(name=path.name, digest=digest, path=path)


def _line_of(error: Exception, path: Path) -> str:
    """' in line 7' for the last line of the file that an error came through."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f" in line {lines[-1]}" if lines else ""


def load_installed() -> bool:
    """Import the plug-ins of installed packages, once a process; whether there were any.

    Raises:
        UsageError: where one fails.
    """
    if _SEARCHED[0]:
        return any(plugin.path is None for plugin in _LOADED.values())
    _SEARCHED[0] = True
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise UsageError(
                f"plug-in {point.name!r} of an installed package fails: "
                f"{type(error).__name__}: {error}",
                f"repair or uninstall what provides {point.value}",
            ) from error
        package = "" if point.dist is None else f"{point.dist.name} {point.dist.version}"
        _LOADED[f"entry point {point.name}"] = Plugin(name=point.name, digest=package)
    return any(plugin.path is None for plugin in _LOADED.values())


def loaded() -> list[dict[str, str]]:
    """Name and digest of every plug-in that is loaded, for a run folder or a checkpoint."""
    return [{"name": p.name, "digest": p.digest} for p in _LOADED.values()]


def files() -> list[Path]:
    """The plug-in files that are loaded, for the command lines of processes that are started."""
    return [plugin.path for plugin in _LOADED.values() if plugin.path is not None]


def missing(wanted: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of those plug-ins, as `loaded` noted them, that are not loaded here."""
    names = {plugin.name for plugin in _LOADED.values()}
    gone = [str(plugin["name"]) for plugin in wanted if plugin["name"] not in names]
    if gone and load_installed():
        names = {plugin.name for plugin in _LOADED.values()}
        gone = [name for name in gone if name not in names]
    return gone


def changed(wanted: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of those plug-ins whose content is another here."""
    here = {plugin.name: plugin.digest for plugin in _LOADED.values()}
    return [
        str(plugin["name"])
        for plugin in wanted
        if here.get(str(plugin["name"]), plugin["digest"]) != plugin["digest"]
    ]


def require(wanted: object, what: str) -> None:
    """Refuse to use what was made with plug-ins that are not loaded here.

    Args:
        wanted: what `loaded` returned when it was made; None where there were none.
        what: begins the sentence: a checkpoint, a run folder.

    Raises:
        CheckpointError: which names the files to name again.
    """
    if not isinstance(wanted, list) or not wanted:
        return
    if gone := missing(wanted):
        again = " ".join(f"--plugin {name}" for name in gone)
        raise CheckpointError(
            f"{what} was made with plug-in {', '.join(gone)}, which is not loaded",
            f"name it again: {again}; in Python: rnnnas.load_plugin",
        )


def require_for(folder: str | os.PathLike[str]) -> None:
    """As `require`, for the run in a folder; what is no run folder is left to others.

    Raises:
        CheckpointError: which names the files to name again.
    """
    try:
        about = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(about, dict):
        require(about.get("plugins"), str(folder))
