"""Every setting there is: what it means, its default, and which presets change it to what."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rnnnas.config.describe import (
    RELAX,
    Description,
    Field,
    descriptions,
    fields_of,
)
from rnnnas.config.plain import leaves, to_plain, to_toml
from rnnnas.config.presets import IMAGE, preset_names, preset_tables
from rnnnas.errors import UsageError, nearest
from rnnnas.nas.methods import METHODS

WIDTH = 98  # of a comment's text


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A preset that gives a setting another value than its default, in runs of `kind`."""

    preset: str
    kind: str
    value: Any


@dataclass(slots=True, kw_only=True)
class Setting:
    """A setting of one or more kinds of runs, and of some methods where they are not all."""

    field: Field
    kinds: list[str]
    methods: list[str] = dataclasses.field(default_factory=list)
    changes: list[Change] = dataclasses.field(default_factory=list)

    @property
    def key(self) -> str:
        return self.field.key

    def to_plain(self) -> dict[str, Any]:
        """As `rnnnas settings --json` prints it."""
        about = self.field.about
        return {
            "key": self.key,
            "kinds": self.kinds,
            "methods": self.methods,
            "meaning": about.meaning,
            "type": self.field.kind,
            "unit": about.unit or None,
            "range": about.range or None,
            "required": self.field.required,
            "default": self.field.default,
            "why": about.why or None,
            "presets": [dataclasses.asdict(change) for change in self.changes],
        }

    def default_text(self) -> str:
        """'300', 'required', or nothing for a group."""
        if self.field.required:
            return "required"
        return "" if self.field.group else json.dumps(self.field.default, ensure_ascii=False)

    def changes_text(self) -> list[str]:
        """'quick 100 (search)' for each change; the kind where there are several."""
        many = len(self.kinds) > 1
        return [
            f"{change.preset} {json.dumps(change.value, ensure_ascii=False)}"
            + (f" ({change.kind})" if many else "")
            for change in self.changes
        ]


def catalogue(kinds: Mapping[str, type]) -> list[Setting]:
    """The settings of every kind of run, groups before what is in them.

    Args:
        kinds: the configuration dataclass of each kind. A setting that two kinds have alike, with
            one default, is listed once.
    """
    changed = list(_changes(kinds))
    found: list[Setting] = []
    for kind, cls in kinds.items():
        own = _changed_in(changed, kind)
        for one in fields_of(cls):
            _add(found, Setting(field=one, kinds=[kind], changes=_of(one, own)))
            if one.key == RELAX:
                _add_methods(found, kind, own)
    return _in_order(found)


def _add_methods(found: list[Setting], kind: str, own: list[tuple[Change, str, str]]) -> None:
    """The settings of each method that runs of `kind` may have."""
    for name, method in METHODS.items():
        if kind.startswith(IMAGE) and method.derive != "scores":
            continue
        for one in fields_of(method.relaxation, f"{RELAX}."):
            mine = [item for item in own if item[2] == name]
            _add(found, Setting(field=one, kinds=[kind], methods=[name], changes=_of(one, mine)))


def _add(found: list[Setting], new: Setting) -> None:
    """Append a setting, or join it to one that is the same in another kind or method."""
    for known in found:
        if known.field == new.field and bool(known.methods) == bool(new.methods):
            known.kinds += [kind for kind in new.kinds if kind not in known.kinds]
            known.methods += [name for name in new.methods if name not in known.methods]
            known.changes += [change for change in new.changes if change not in known.changes]
            return
    found.append(new)


def _in_order(found: list[Setting]) -> list[Setting]:
    """Top-level settings first, then group by group, in the order of the first kind that has it."""
    groups = dict.fromkeys(["", *(one.key for one in found if one.field.group)])
    place = {group: number for number, group in enumerate(groups)}

    def where(one: Setting) -> int:
        head = one.key if one.field.group else one.key.rpartition(".")[0]
        return place.get(head, len(place))

    return sorted(found, key=lambda one: (where(one), not one.field.group))


def _changes(kinds: Mapping[str, type]) -> Iterator[tuple[Change, str, str]]:
    """(change, dotted key, the preset's method) of every value in every preset."""
    for name in preset_names():
        tables = preset_tables(name)
        for kind in kinds:
            table = tables.get(kind, {})
            for key, value in leaves(table):
                yield Change(preset=name, kind=kind, value=value), key, table.get("method", "")


def _changed_in(
    changed: list[tuple[Change, str, str]], kind: str
) -> list[tuple[Change, str, str]]:  # fmt: skip
    """Those of one kind of run."""
    return [item for item in changed if item[0].kind == kind]


def _of(one: Field, changed: list[tuple[Change, str, str]]) -> list[Change]:
    if one.group or one.kind == "table":
        return []
    return [change for change, key, _ in changed if key == one.key and change.value != one.default]


def select(settings: list[Setting], key: str | None, kind: str | None) -> list[Setting]:
    """The settings of that key or in that group, and of that kind of run.

    Raises:
        UsageError: where there are none, with the nearest key.
    """
    chosen = [one for one in settings if kind is None or kind in one.kinds]
    if key is None:
        return chosen
    exact = [one for one in chosen if one.key == key and not one.field.group]
    inside = [one for one in chosen if one.key == key or one.key.startswith(f"{key}.")]
    ending = [one for one in chosen if one.key.endswith(f".{key}")]
    if not (exact or inside or ending):
        keys = list(dict.fromkeys(one.key for one in chosen))
        keys += [known.rpartition(".")[2] for known in keys if "." in known]
        what = f" of a {kind}" if kind else ""
        raise UsageError(
            f"there is no setting {key!r}{what}{nearest(key, keys)}",
            "all of them: rnnnas settings",
        )
    return exact or inside or ending


# Settings of one run


def commented(config: Any) -> str:
    """A run's settings as TOML that `--config` reads, each under what it means.

    What its method may be told besides, and was not, stands there as a comment.
    """
    relaxation = getattr(config, "relaxation", None)
    return _commented(to_plain(config), type(config), type(relaxation))


def _commented(plain: Mapping[str, Any], cls: type, relaxation: type, prefix: str = "") -> str:
    hints, known = typing.get_type_hints(cls), descriptions(cls)
    lines, tables = [], []
    for key, value in plain.items():
        comment = _comment(known.get(key, Description()))
        if not isinstance(value, Mapping):
            lines.append(comment + to_toml({key: value}))
            continue
        tables.append(f"\n{comment}[{prefix}{key}]\n")
        if key == RELAX:
            tables.append(_commented(value, relaxation, relaxation, f"{prefix}{key}."))
            tables += [
                f"{_comment(one.about)}# {to_toml({one.key: one.default})}"
                for one in fields_of(relaxation)
                if one.key not in value
            ]
        elif dataclasses.is_dataclass(hints.get(key)):
            inner = typing.cast(type, hints[key])
            tables.append(_commented(value, inner, relaxation, f"{prefix}{key}."))
        else:
            tables.append(to_toml(value, f"{prefix}{key}."))
    return "".join(lines) + "".join(tables)


def _comment(about: Description) -> str:
    text = textwrap.wrap(about.line(), WIDTH, break_on_hyphens=False, break_long_words=False)
    return "".join(f"# {line}\n" for line in text)
