"""DARTS: every operation of every edge, weighted by a softmax (Liu et al. 2019, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass

from rnnnas.nas.relax.base import Softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Darts(Softmax):
    """Softmax over the allowed operations of each edge.

    In second order the alphas take the gradient of equation 6. The published search on text takes
    another rule, which leaves the shared embedding and decoder matrix out of the look-ahead, clips
    v and does not clamp the clip factor: `alphas.published_lookahead`, for reproductions only
    (docs/methods.md).
    """
