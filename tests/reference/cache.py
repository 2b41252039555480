"""The continuous cache: a word is likely where it came after states like the present one.

Grave, Joulin, Usunier: Improving Neural Language Models with a Continuous Cache, ICLR 2017,
equations 2 and 5 (a linear mixture). One stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]


def cache(states: Sequence[Vector], words: Sequence[int], size: int, theta: float) -> list[float]:
    """p_cache of every word: states[t] is what the model had when words[t] was to come.

    Of the last `size` pairs before it, with weight exp(theta h_t · h_i); nan where there is none.
    """
    found = []
    for t, (h, word) in enumerate(zip(states, words, strict=True)):
        past = range(max(0, t - size), t)
        weights = [math.exp(theta * inner(h, states[i])) for i in past]
        hits = [weight for weight, i in zip(weights, past, strict=True) if words[i] == word]
        found.append(sum(hits) / sum(weights) if weights else math.nan)
    return found


def inner(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def mixture(model: Sequence[float], cached: Sequence[float], share: float) -> list[float]:
    """(1 - λ) p_model + λ p_cache; the model's own while the cache is empty."""
    return [
        p if math.isnan(q) else (1 - share) * p + share * q
        for p, q in zip(model, cached, strict=True)
    ]
