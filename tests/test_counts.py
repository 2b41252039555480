"""Unigram and bigram models: proper distributions, equal to the formulas written out."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from rnnnas.data.ngrams import (
    bigram_model,
    bigram_perplexity,
    unigram_perplexity,
    unigram_probabilities,
)


def stream(seed: int, length: int, vocabulary: int) -> np.ndarray:
    rng = random.Random(seed)
    drawn = [min(int(rng.paretovariate(0.7)), vocabulary) - 1 for _ in range(length)]
    return np.array(drawn, "<u2")


def slow_discount(counts: list[int]) -> float:
    once, twice = counts.count(1), counts.count(2)
    return once / (once + 2 * twice) if once and twice else 0.5


def slow_base(counts: Counter[int], word: int, vocabulary: int) -> float:
    d = slow_discount(list(counts.values()))
    shared = d * len(counts) / vocabulary
    return (max(counts[word] - d, 0) + shared) / sum(counts.values())


def slow_bigram(train: list[int], previous: int, word: int, vocabulary: int) -> float:
    """Interpolated Kneser-Ney, written out with dictionaries."""
    pairs = Counter(zip(train, train[1:], strict=False))
    d = slow_discount(list(pairs.values()))
    base = slow_base(Counter(w for _, w in pairs), word, vocabulary)
    successors = [n for (v, _), n in pairs.items() if v == previous]
    if not successors:
        return base
    seen = max(pairs[previous, word] - d, 0)
    return (seen + d * len(successors) * base) / sum(successors)


@pytest.mark.parametrize(("length", "vocabulary"), [(2, 5), (30, 7), (400, 40), (3000, 60)])
def test_probabilities_are_positive_and_sum_to_one(length: int, vocabulary: int) -> None:
    train = stream(1, length, vocabulary - 2)  # two words that never occur
    unigrams = unigram_probabilities(train, vocabulary)
    assert unigrams.min() > 0 and unigrams.sum() == pytest.approx(1, abs=1e-12)
    model = bigram_model(train, vocabulary)
    words = np.arange(vocabulary)
    for previous in range(vocabulary):
        found = model.probabilities(np.full(vocabulary, previous), words)
        assert found.min() > 0 and found.sum() == pytest.approx(1, abs=1e-12)
    print(f"{vocabulary + 1} distributions over {vocabulary} words sum to one")


def test_perplexities_equal_the_formulas_written_out() -> None:
    vocabulary = 30
    train, test = stream(2, 500, 28), stream(3, 80, 30)
    pairs = list(zip(test.tolist(), test[1:].tolist(), strict=False))
    counts = Counter(train.tolist())
    slow_one = [math.log(slow_base(counts, w, vocabulary)) for _, w in pairs]
    slow_two = [math.log(slow_bigram(train.tolist(), v, w, vocabulary)) for v, w in pairs]
    for slow, fast in (
        (slow_one, unigram_perplexity(train, test, vocabulary)),
        (slow_two, bigram_perplexity(train, test, vocabulary)),
    ):
        assert fast == pytest.approx(math.exp(-sum(slow) / len(slow)), rel=1e-12)


def test_what_can_be_learnt_is_learnt() -> None:
    cycle = np.tile(np.arange(10, dtype=np.int32), 200)
    assert bigram_perplexity(cycle, cycle, 10) == pytest.approx(1, abs=0.02)
    assert unigram_perplexity(cycle, cycle, 10) == pytest.approx(10, abs=0.01)


def test_large_vocabularies_do_not_overflow() -> None:
    train = np.array([260_000, 267_000, 260_000, 267_000, 5], np.int32)
    model = bigram_model(train, 267_735)
    assert model.keys.max() == 267_000 * 267_735 + 260_000
    assert bigram_perplexity(train, train, 267_735) > 1
