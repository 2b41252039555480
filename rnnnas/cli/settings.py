"""settings: every setting, what it means, and which presets change it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from rnnnas.cli.common import echo, json_option, print_json
from rnnnas.cli.complete import setting_keys

if TYPE_CHECKING:
    from rnnnas.config.catalogue import Setting

KINDS = ["search", "train", "image-search", "image-train", "study", "table"]


@click.command()
@click.argument("key", required=False, shell_complete=setting_keys)
@click.option("--kind", type=click.Choice(KINDS), help="Of one kind of run only.")
@json_option
def settings(key: str | None, kind: str | None, as_json: bool) -> None:
    """Every setting, or those of one KEY or group: meaning, unit, range, default, presets.

    A setting is given as `--set KEY=VALUE`, or in a file for --config.

    \b
    Examples:
      rnnnas settings
      rnnnas settings weights.lr
      rnnnas settings windows --kind train
    """
    from rnnnas.config.catalogue import catalogue, select
    from rnnnas.studies.plan import ALL_KINDS

    chosen = select(catalogue(ALL_KINDS), key, kind)
    if as_json:
        print_json({"settings": [one.to_plain() for one in chosen]})
        return
    if key is None:
        _table(chosen)
        return
    echo("\n\n".join(_whole(one) for one in chosen))


def _table(chosen: list[Setting]) -> None:
    """A line a setting, under its group."""
    plain = [one for one in chosen if not one.field.group]
    width = max(len(one.key) for one in plain)
    for one in chosen:
        if one.field.group:
            echo(f"\n{one.key}: {one.field.about.meaning}")
            continue
        echo(f"  {one.key:{width}}  {one.default_text():12} {_of(one)}")
    echo("\nmeaning, range and presets of one of them or of a group: rnnnas settings KEY")


def _of(one: Setting) -> str:
    """'search, train', and of which methods."""
    methods = f" ({', '.join(one.methods)})" if one.methods else ""
    return ", ".join(one.kinds) + methods


def _whole(one: Setting) -> str:
    about = one.field.about
    lines = [f"{one.key}  [{_of(one)}]", *_wrapped(about.meaning)]
    if one.field.group:
        return "\n".join(lines)
    facts = [("kind", one.field.kind), ("unit", about.unit), ("range", about.range)]
    lines += [f"  {name:8} {text}" for name, text in facts if text]
    default = one.default_text()
    lines += _wrapped(f"{default}: {about.why}" if about.why else default, f"  {'default':8} ")
    if one.changes:
        lines += _wrapped(", ".join(one.changes_text()), f"  {'presets':8} ")
    return "\n".join(lines)


def _wrapped(text: str, start: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, 80, initial_indent=start, subsequent_indent=" " * len(start),
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip
