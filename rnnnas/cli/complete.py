"""What the shell completes beside options: corpora, presets, methods, cells, settings, runs.

Each function gets what was typed so far and answers in a moment: it lists names, and opens none of
what they name. A failure completes nothing, for there is nobody to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from click import Context, Parameter


def _completer(
    names: Callable[[], Iterable[str]], *, files: bool = False
) -> Callable[[Context, Parameter, str], list[CompletionItem]]:
    """Completes by the names that begin with what was typed, in either case.

    Args:
        files: whether a path may stand there, too; the shell completes it.
    """

    def complete(ctx: Context, parameter: Parameter, typed: str) -> list[CompletionItem]:
        try:
            known = list(names())
        except Exception:  # a half-typed line is no place to tell of it
            known = []
        found = [name for name in known if name.lower().startswith(typed.lower())]
        items = [CompletionItem(name) for name in found]
        return items or ([CompletionItem(typed, type="file")] if files else [])

    return complete


def _corpora() -> list[str]:
    from rnnnas.data.corpus import corpus_names

    return corpus_names()


def _prepared() -> list[str]:
    from rnnnas.data.corpus import prepared_names

    return prepared_names()


def _presets() -> list[str]:
    from rnnnas.config.preset_files import preset_names

    return preset_names()


def _methods() -> list[str]:
    from rnnnas.nas.methods import METHODS

    return list(METHODS)


def _cells() -> list[str]:
    from rnnnas.cnn import zoo as images
    from rnnnas.nas.zoo import BASELINES, ZOO

    return [*ZOO, *BASELINES, "random", *(images.PREFIX + name for name in images.ZOO)]


def _keys() -> list[str]:
    from rnnnas.config.describe import fields_of
    from rnnnas.nas.methods import METHODS
    from rnnnas.studies.plan import ALL_KINDS

    keys = [one.key for cls in ALL_KINDS.values() for one in fields_of(cls) if not one.group]
    relaxations = {method.relaxation for method in METHODS.values()}
    keys += [one.key for cls in relaxations for one in fields_of(cls, "relax.")]
    return sorted(set(keys))


def _runs() -> list[str]:
    from rnnnas.home import checkpoints_folder

    found = checkpoints_folder().glob("*/config.json")
    return sorted(str(path.parent) for path in found)


def _trained() -> list[str]:
    return [name for name in _runs() if (Path(name) / "best.pt").exists()]


corpora = _completer(_corpora)
prepared = _completer(_prepared)
presets = _completer(_presets)
methods = _completer(_methods)
cells = _completer(lambda: [*_cells(), *_runs()], files=True)
trained = _completer(_trained, files=True)
runs = _completer(_runs, files=True)
setting_keys = _completer(_keys)


def key_values(ctx: Context, parameter: Parameter, typed: str) -> list[CompletionItem]:
    """For --set: the keys, and behind 'key=' the words that may stand there."""
    key, sign, value = typed.partition("=")
    if not sign:
        return [CompletionItem(f"{item.value}=") for item in setting_keys(ctx, parameter, key)]
    from rnnnas.config.describe import fields_of
    from rnnnas.studies.plan import ALL_KINDS

    for cls in ALL_KINDS.values():
        for one in fields_of(cls):
            if one.key == key and (one.kind in ("one word of a few", "true or false")):
                words = one.about.range.replace(" or ", ", ").replace('"', "").split(", ")
                return [CompletionItem(f"{key}={word}") for word in words if word.startswith(value)]
    return []


def method_list(ctx: Context, parameter: Parameter, typed: str) -> list[CompletionItem]:
    """For --methods of a study: the last of several names with commas between."""
    before, comma, last = typed.rpartition(",")
    return [
        CompletionItem(before + comma + item.value) for item in methods(ctx, parameter, last)
    ]  # fmt: skip
