"""The hidden Markov source: an exact bound, repeatable text, and something worth remembering."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rnnnas.data.ngrams import bigram_perplexity, unigram_perplexity
from rnnnas.data.synthetic import (
    GRAMMAR,
    SEED,
    Hmm,
    log_likelihoods,
    perplexity,
    sample,
    source,
)
from rnnnas.data.vocab import EOS


def tiny(states: int, words: int, seed: int) -> Hmm:
    rng = np.random.default_rng(seed)

    def rows(*shape: int) -> np.ndarray:
        drawn = rng.random(shape) + 0.01
        return drawn / drawn.sum(-1, keepdims=True)

    names = (EOS, *(f"w{i}" for i in range(words - 1)))
    return Hmm(rows(states), rows(states, states), rows(states, words), names)


def brute_force(hmm: Hmm, tokens: list[int]) -> float:
    """The probability of the tokens: the sum over every path of hidden states."""
    total = 0.0
    for path in itertools.product(range(len(hmm.start)), repeat=len(tokens)):
        chance = hmm.start[path[0]]
        for before, after in itertools.pairwise(path):
            chance *= hmm.transition[before, after]
        for state, token in zip(path, tokens, strict=True):
            chance *= hmm.emission[state, token]
        total += chance
    return total


def test_forward_equals_the_sum_over_all_paths() -> None:
    checked = 0
    for seed, (states, words, length) in enumerate([(1, 3, 4), (2, 2, 8), (3, 4, 6), (4, 3, 5)]):
        hmm = tiny(states, words, seed)
        for start in range(words):
            tokens = [(start + 3 * i * i) % words for i in range(length)]
            found = log_likelihoods(hmm, np.array(tokens))
            for n in range(1, length + 1):
                assert found[:n].sum() == pytest.approx(
                    math.log(brute_force(hmm, tokens[:n])), abs=1e-12
                )
                checked += 1
            exact = math.log(brute_force(hmm, tokens)) - math.log(brute_force(hmm, tokens[:1]))
            assert perplexity(hmm, np.array(tokens)) == pytest.approx(
                math.exp(-exact / (length - 1)), rel=1e-12
            )
    print(f"{checked} sums over paths equal the forward algorithm")


def test_conditional_probabilities_sum_to_one() -> None:
    hmm = source()
    prefix = sample(hmm, 40, 7)
    total = sum(
        math.exp(log_likelihoods(hmm, np.append(prefix, word))[-1])
        for word in range(len(hmm.words))
        if hmm.emission[:, word].any()
    )
    assert total == pytest.approx(1, abs=1e-10)


def test_impossible_text_has_no_probability() -> None:
    hmm = source()
    end = hmm.words.index(EOS)
    assert np.isneginf(log_likelihoods(hmm, np.array([end, end]))).all()


def test_the_source_is_a_proper_and_closed_one() -> None:
    hmm = source()
    states, words = hmm.emission.shape
    assert states <= 300 and 1800 <= words <= 2200 and len(set(hmm.words)) == words
    for table in (hmm.start, hmm.transition, hmm.emission):
        np.testing.assert_allclose(table.sum(-1), 1, atol=1e-12)
    reached = hmm.start > 0
    for _ in range(states):
        reached = reached | (reached.astype(float) @ hmm.transition > 0)
    assert reached.all()
    assert (hmm.emission.sum(0) > 0).all()
    assert {target for _, after in GRAMMAR.values() for target in after} == set(GRAMMAR)


def test_sampling_is_repeatable_and_follows_the_source() -> None:
    hmm = source()
    tokens = sample(hmm, 60_000, SEED)
    assert tokens[-1] == hmm.words.index(EOS) and len(tokens) >= 60_000
    np.testing.assert_array_equal(tokens[:5000], sample(hmm, 5000, SEED)[:5000])
    assert (sample(hmm, 5000, SEED + 1)[:5000] != tokens[:5000]).any()
    # The long-run share of words equals the stationary distribution of the chain.
    share = hmm.start
    for _ in range(2000):
        share = 0.5 * share + 0.5 * (share @ hmm.transition)
    expected = share @ hmm.emission
    found = np.bincount(tokens, minlength=len(expected)) / len(tokens)
    assert np.abs(found - expected).sum() < 0.15
    assert abs(found[0] - expected[0]) < 0.003


def test_agreement_and_topics_are_kept_over_a_distance() -> None:
    hmm = source()
    tokens = sample(hmm, 20_000, 3)
    sentences = " ".join(hmm.words[i] for i in tokens).split(EOS)
    apart = 0
    for sentence in sentences:
        for clause in sentence.split(" conj"):
            numbers = [w[-2:] for w in clause.split() if w.endswith(("sg", "pl"))]
            assert len(set(numbers)) <= 1, clause
            apart += "prep" in clause or "pro" in clause
    assert apart > 300
    print(f"number agrees in {len(sentences)} sentences, across a modifier in {apart}")


def test_memory_pays() -> None:
    """The bound lies below a bigram model, and a bigram below a unigram model, by far."""
    hmm = source()
    train, test = sample(hmm, 100_000, 1), sample(hmm, 8_000, 2)
    words = len(hmm.words)
    best = perplexity(hmm, test)
    two = bigram_perplexity(train, test, words)
    assert best < 0.5 * two < 0.3 * unigram_perplexity(train, test, words)
