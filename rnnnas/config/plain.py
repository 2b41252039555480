"""Configuration dataclasses from plain values, checked on the way in, and back."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from rnnnas.config.describe import hint_for
from rnnnas.errors import UsageError, nearest

T = TypeVar("T")
LARGEST = 3.4e38  # about that of float32, which weights and step sizes are in
DEPTH = 50  # levels of nesting in settings
_DOTTED = re.compile(
    rf"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{DEPTH}}}"""
)  # a key of too many levels


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
    try:
        return cls(**values)
    except UsageError as error:
        if error.remedy:
            raise
        # The component says what is wrong; its documentation, what would be right.
        raise UsageError(error.cause, hint_for(cls, error.cause, where)) from error


def at_least(**values: tuple[float, float]) -> None:
    """Raises UsageError for the first of (value, least) that is less, by its name."""
    for name, (value, low) in values.items():
        if value < low:
            raise UsageError(f"{name} = {value} must be at least {low}")


def fixed(kind: Literal["search", "training"], **values: tuple[object, object]) -> None:
    """Raises UsageError for the first of (value, only) that differ: a run of the other kind has it.

    values: by the setting's name, with two underscores for the dot: model__layers=(2, 1).
    """
    other = {"search": "trainings", "training": "searches"}[kind]
    for name, (value, only) in values.items():
        if value != only:
            dotted = name.replace("__", ".")
            raise UsageError(f"{dotted} = {value} is for {other}: a {kind} has {only}")


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
        if parts[-1] is Ellipsis:
            if not isinstance(value, list | tuple):
                raise UsageError(f"{key} = {value!r} must be a list, e.g. [3, 2]")
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
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
        raise UsageError(f"{key} = {shown} must be of kind {hint.__name__}")
    if hint is float and not abs(value) <= LARGEST:
        raise UsageError(f"{key} = {value!r} must be finite, and no larger than {LARGEST:.1e}")
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
            # JSON's forms of strings, numbers, booleans and lists are TOML's too, but for DEL.
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{key} = {text}\n")
    return "".join(lines) + "".join(tables)


_SHORT_FLOAT = re.compile(r"[+-]?(\d+\.|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # none to TOML


def value_of(text: str) -> Any:
    """What `--set` gives: a TOML value, a number as people write it (.5, 2.), or the plain word."""
    if _SHORT_FLOAT.fullmatch(text.strip()):
        return float(text)
    try:
        table = parse_toml(f"value = {text}")
    except RecursionError as error:
        raise UsageError(f"a value is nested too deeply: {text[:20]}...") from error
    except ValueError:  # TOMLDecodeError is one; so is a number of thousands of digits
        return text
    # More than one line would be more than one setting.
    return table["value"] if set(table) == {"value"} else text


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: where it is no TOML, or has a whole number of more than 64 bits, which no
            setting has and Python does not print.
        RecursionError: where it is nested deeper than `DEPTH`.
    """
    if _DOTTED.search(text):  # for which the parser takes the square of its length
        raise RecursionError(f"nested deeper than {DEPTH} levels")
    table = tomllib.loads(text)
    level: list[Any] = [table]
    for _ in range(DEPTH):
        items = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if any(type(item) is int and item.bit_length() > 64 for item in items):
            raise ValueError("a whole number of more than 64 bits")
        level = [item for item in items if isinstance(item, (dict, list))]
        if not level:
            return table
    raise RecursionError(f"nested deeper than {DEPTH} levels")


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


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value of nested tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
