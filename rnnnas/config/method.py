"""What a search on text and one on images have in common, read off their settings."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, ClassVar, Literal

from rnnnas.config.plain import from_plain
from rnnnas.nas.latency_price import LatencyConfig
from rnnnas.nas.methods import method_of
from rnnnas.nas.relax.base import Relaxation
from rnnnas.optim import AlphaConfig


class MethodChoice:
    """A search's method: a name, its own settings, and how its alphas are moved."""

    __slots__ = ()
    second: ClassVar[Literal["finite", "exact"]] = "finite"  # which order "auto" stands for
    # What only searches on text have; their configuration overrides these.
    stops_by_eigenvalue: ClassVar[bool] = False
    derives_by_perturbation: ClassVar[bool] = False
    races: ClassVar[bool] = False
    method: str
    relax: dict[str, Any]
    alphas: AlphaConfig
    latency: LatencyConfig

    @property
    def from_scratch(self) -> bool:
        """Whether every cell is trained on its own, rather than with shared weights."""
        return method_of(self.method).weights == "scratch"

    @property
    def order(self) -> Literal["first", "finite", "exact"]:
        """The order of the hypergradient that the method and the alphas' settings ask for."""
        if method_of(self.method).order == "first":
            return "first"
        asked = self.alphas.second_order
        return self.second if asked == "auto" else asked

    @property
    def relaxation(self) -> Relaxation:
        """The method's relaxation with the settings `relax.*`.

        Raises:
            UsageError: for a setting that the method does not have, or a value out of range.
        """
        settings = json.dumps(self.relax, sort_keys=True, default=repr)
        return _relaxation(method_of(self.method).relaxation, settings)

    @property
    def idle(self) -> frozenset[str]:
        """Dotted keys of settings that change nothing in the result of this search."""
        return frozenset({"save_seconds", *self._idle()})

    def _idle(self) -> set[str]:
        """The same, of those that depend on other settings."""
        method, keys = method_of(self.method), set[str]()
        single = self.relaxation.level == "train"  # weights and alphas learn from one text
        if single or self.alphas.text == "valid":
            keys.add("alphas.held_out")
        if single:
            keys.add("alphas.text")
        if method.order == "first":
            keys.add("alphas.second_order")
        if method.alphas != "gradient":
            keys.add("alphas.balanced")
        if method.alphas == "none":
            keys |= {"alphas.lr", "alphas.betas", "alphas.weight_decay", "alphas.warmup"}
        if not self.latency.weight:
            keys |= {"latency.form", "latency.ref", "latency.table"}
        elif method.alphas == "policy":
            keys.add("latency.form")
        return keys


@lru_cache(maxsize=64)
def _relaxation(kind: type[Relaxation], settings: str) -> Relaxation:
    """A method's relaxation, built once for the settings that are given as JSON."""
    return from_plain(kind, json.loads(settings), "relax.")
