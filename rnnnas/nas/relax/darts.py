"""DARTS: every operation of every edge, weighted by a softmax (Liu et al. 2019, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass

from rnnnas.nas.relax.base import Softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Darts(Softmax):
    """Softmax over the allowed operations of each edge."""
