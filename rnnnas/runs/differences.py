"""How the settings of two runs differ, also where one of them is older than a setting."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Settings that came after runs had been written, and the value that says what was done before.
LATER: Mapping[str, Any] = {
    "seconds": 0.0,
    "least_steps": 0,
    "alphas.published_lookahead": False,
    "alphas.balanced": False,
    "model.auxiliary_norm": True,
    "start": "",
    "output_bias": "zeros",
    "blackbox.budget": 16.0,
    "blackbox.rung": 100,
    "blackbox.draws": 1,
    "select.by": "alphas",
    "select.budget": 6.0,
    "select.windows": 500,
    "select.rung": 100,
    "select.guards": 6,
    "select.points": 8,
    "select.samples": 4,
    "select.published": True,
    "select.schedule": "cosine",
    "space.ops": ["none", "tanh", "relu", "sigmoid", "identity"],
    "space.nodes": 0,
    "space.edges_per_node": 1,
    "space.join": "mean",
    "space.output": "mean",
}


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], idle: Collection[str]
) -> list[str]:
    """What differs between two nested configurations, a phrase each; keys in `idle` may.

    A configuration `there` that is older than a setting has what runs did before it.
    """
    one, other = dict(flattened(there)), dict(flattened(here))
    one |= {key: old for key, old in LATER.items() if key in other and key not in one}
    return [
        f"{key} is {_shown(one, key)} there and {_shown(other, key)} here"
        for key in sorted((one.keys() | other.keys()) - set(idle))
        if _shown(one, key) != _shown(other, key) and not _same(one, other, key)
    ]


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration with what runs did before the settings that it is older than, of the
    groups that it has.
    """
    found = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    for key, old in LATER.items():
        group, _, name = key.rpartition(".")
        place = found.get(group) if group else found
        if isinstance(place, dict):
            place.setdefault(name, old)
    return found


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "absent"


def _same(there: Mapping[str, Any], asked: Mapping[str, Any], key: str) -> bool:
    """Equal as numbers: 20 and 20.0 are one value, 1 and true are two."""
    values = [flat.get(key) for flat in (there, asked)]
    return all(type(value) in (int, float) for value in values) and values[0] == values[1]


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping is a leaf."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
