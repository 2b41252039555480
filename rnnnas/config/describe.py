"""Descriptions of settings, read from the docstrings of the dataclasses that declare them.

A field has a line of its own, continued by indented lines:

    name: meaning; unit; range; why this default

The unit is `-` where there is none. Of a field that is true or false, or one of a few words, the
type says the range: `name: meaning; why this default`. A group of settings has a meaning alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

# Groups that no dataclass of the configuration describes: the fields of the method's relaxation.
RELAX = "relax"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What is known of a setting. unit, range and why are empty where there are none."""

    meaning: str = ""
    unit: str = ""
    range: str = ""
    why: str = ""

    def line(self) -> str:
        """'step size; above 0', what stands beside a value."""
        return "; ".join(part for part in (self.meaning, self.unit, self.range) if part)


class Malformed(ValueError):
    """A line of a docstring that does not have the parts that its field needs."""


def descriptions(cls: type, *, strict: bool = False) -> dict[str, Description]:
    """The description of every field of a dataclass; empty ones for fields without a line.

    A class describes a field that it inherits anew, or leaves it to the class that it is from.

    Args:
        strict: refuse a line with too few or too many parts. Otherwise all of it is the meaning:
            a method that a user brings is documented as the user likes.

    Raises:
        Malformed: as `strict` says.
    """
    hints = typing.get_type_hints(cls)
    lines: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if dataclasses.is_dataclass(one):
            lines |= _lines(one, {f.name for f in dataclasses.fields(one)})
    return {
        f.name: _parsed(cls, f.name, lines.get(f.name, ""), hints[f.name], strict)
        for f in dataclasses.fields(cls)
    }


def _lines(cls: type, names: set[str]) -> dict[str, str]:
    """Field by field what a class' own docstring says, its continued lines joined."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(cls.__dict__.get("__doc__") or "").splitlines():
        begins = re.match(r"(\w+): (.*)", line)
        if begins and begins[1] in names:
            name = begins[1]
            found[name] = begins[2].strip()
        elif name and line.startswith(" "):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


def _parsed(cls: type, name: str, line: str, hint: Any, strict: bool) -> Description:
    if not line:
        return Description()
    parts = [part.strip() for part in line.split(";")]
    choices = _choices(hint)
    wanted = 1 if is_group(name, hint) else 2 if choices else 4
    if len(parts) != wanted or not all(parts):
        if not strict:
            return Description(meaning=line, range=choices)
        raise Malformed(
            f"{cls.__name__}.{name} is described in {len(parts)} parts and needs {wanted}, "
            f"separated by semicolons: {line!r}"
        )
    if wanted == 1:
        return Description(meaning=parts[0])
    if wanted == 2:
        return Description(meaning=parts[0], range=choices, why=parts[1])
    unit = "" if parts[1] == "-" else parts[1]
    return Description(meaning=parts[0], unit=unit, range=parts[2], why=parts[3])


def _choices(hint: Any) -> str:
    """'"a", "b"' for a type of a few words, 'true or false', or nothing."""
    if hint is bool:
        return "true or false"
    if typing.get_origin(hint) is Literal:
        return ", ".join(json.dumps(word) for word in typing.get_args(hint))
    return ""


def is_group(name: str, hint: Any) -> bool:
    """Whether a field holds settings of its own rather than a value."""
    return name == RELAX or dataclasses.is_dataclass(hint)


def kind_of(hint: Any) -> str:
    """A type in plain words: 'whole number', 'list of numbers' ..."""
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if hint in words:
        return words[hint]
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one word of a few"
    if origin is tuple:
        inner = kind_of(typing.get_args(hint)[0])
        return f"list of {inner}s" if inner != "text" else "list of texts"
    if origin is dict or isinstance(hint, types.GenericAlias):
        return "table"
    return getattr(hint, "__name__", str(hint))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A setting where it stands: its dotted key, its description, type and default.

    default is plain, a list for a tuple; `required` says that there is none. group: whether it
    holds the settings that follow.
    """

    key: str
    about: Description
    kind: str
    default: Any
    required: bool
    group: bool


def fields_of(cls: type, prefix: str = "") -> Iterator[Field]:
    """Every setting of a configuration dataclass, groups before what is in them."""
    hints, known = typing.get_type_hints(cls), descriptions(cls)
    for f in dataclasses.fields(cls):
        hint, key = hints[f.name], prefix + f.name
        group = is_group(f.name, hint)
        default, required = _default(f)
        yield Field(
            key=key, about=known[f.name], kind="group" if group else kind_of(hint),
            default=None if group else default, required=required, group=group,
        )  # fmt: skip
        if dataclasses.is_dataclass(hint):
            yield from fields_of(typing.cast(type, hint), key + ".")


def _default(f: dataclasses.Field[Any]) -> tuple[Any, bool]:
    value: Any = f.default
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
    if value is dataclasses.MISSING:
        return None, True
    return (list(value) if isinstance(value, tuple) else value), False


def hint_for(cls: type, message: str, where: str = "") -> str:
    """What the settings mean that a message names by their dotted keys; at most two of them."""
    known = [(where + name, about) for name, about in descriptions(cls).items()]
    said = [
        f"{key}: {about.line()}"
        for key, about in known
        if about.range and re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", message)
    ]
    return ". ".join(said[:2])
