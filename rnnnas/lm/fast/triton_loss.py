"""The loss of rows of logits on a device, in Triton: two passes over each row."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def losses(
    logits, bias, targets, nats, words, scale, WANTED: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One row an instance. logits (M, V) without bias (V), targets (M) → nats (M), in float32.

    With WANTED the logits become scale times the gradient. A target that is no word gives NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    full = bias.dtype.element_ty
    kind = logits.dtype.element_ty
    line = logits + row * words
    place = tl.arange(0, WORDS)
    target = tl.load(targets + row)
    most = tl.full((WORDS,), float("-inf"), full)
    mass = tl.zeros((WORDS,), full)
    hit = tl.zeros((WORDS,), full)
    # Each lane keeps its own maximum and sum: they are joined once, after the loop.
    for start in range(0, words, WORDS):
        word = start + place
        there = word < words
        x = tl.load(line + word, mask=there, other=float("-inf")).to(full)
        x += tl.load(bias + word, mask=there, other=0.0)
        higher = tl.where(x > most, x, most)
        # A logit that is no number is never the higher one; it shows in the sum.
        nothing = (higher == float("-inf")) & (x == x)
        mass = tl.where(nothing, mass, mass * tl.exp(most - higher) + tl.exp(x - higher))
        most = higher
        hit += tl.where(word == target, x, 0.0)
    top = tl.max(most, 0)
    mass = tl.where(mass == 0, mass, mass * tl.exp(most - top))
    total = tl.sum(mass, 0)
    diverged = (target < 0) | (target >= words)
    value = tl.where(diverged, float("nan"), tl.log(total) + top - tl.sum(hit, 0))
    tl.store(nats + row, value)
    if WANTED:
        for start in range(0, words, WORDS):
            word = start + place
            there = word < words
            x = tl.load(line + word, mask=there, other=float("-inf")).to(full)
            x += tl.load(bias + word, mask=there, other=0.0)
            gradient = (tl.exp(x - top) / total - tl.where(word == target, 1.0, 0.0)) * scale
            tl.store(line + word, gradient.to(kind), mask=there)
