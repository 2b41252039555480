"""Keeping the operations of a cell level over its edges, so that alphas say where each belongs.

While the weights are young an operation wins on nearly every edge by how much signal it passes
(an identity all of it, a sigmoid a quarter) and not by where it stands. That advantage is the same
on all edges: it is the operation's mean alpha, and it is taken out. What is left is how much better
than elsewhere an operation does on an edge.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnnnas.nas.relax.base import Spaces
from rnnnas.nas.space import NONE


@torch.no_grad()
def balance(alphas: Mapping[str, Tensor], spaces: Spaces) -> None:
    """Shift each operation's alphas by one amount, so that all operations have the same mean.

    α[e, o] ← α[e, o] - m_o + m, with m_o the mean of operation o over the edges that may have it
    and m that of all m_o, in place. `none` is left as it is: no derived cell has it. Other
    parameters than the cells' alphas (E, O) are not touched.
    """
    for name, space in spaces.items():
        table = alphas[name]
        means = {}
        for o, op in enumerate(space.ops):
            edges = [e for e, row in enumerate(space.allowed) if row[o]]
            if op != NONE and edges:
                means[o] = table[edges, o].mean()
        if means:
            level = torch.stack([*means.values()]).mean()
            for o, mean in means.items():
                table[:, o] += level - mean
