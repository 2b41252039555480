"""`hmm`: text from a hidden Markov source whose best achievable perplexity is known exactly.

A state is topic x grammar position x agreement. A sentence draws its number (singular, plural) with
its first word and keeps it until the verb, over a modifier of any length; the topic stays for about
20 sentences and decides which nouns, verbs, adjectives and adverbs are frequent. Emissions follow
Zipf's law over the words of a class; each topic permutes the ranks. Sentences end with `<eos>`.
A bigram model sees neither the topic nor, across a modifier, the number: that is what there is to
gain by remembering.

The forward algorithm sums over all hidden paths and gives the probability of a text under its true
source. No model can do better in expectation, so a perplexity clearly below is a leak.

Legend: S hidden states, V vocabulary, n tokens.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnnas.data.text_files import Text, list_text
from rnnnas.data.vocab import EOS, Vocab

NAME = "hmm"
SEED = 20180624
LENGTHS = {"train": 400_000, "valid": 40_000, "test": 40_000}  # tokens, then to the sentence's end

TOPICS = 6
STAY = 0.95  # probability that the next sentence has the same topic
ZIPF = 1.1  # exponent: the word of rank r is drawn in proportion to 1 / r^ZIPF

# Word classes: how many words each has. Those in _NUMBERED have so many for either number.
CLASSES = {
    "det": 8,
    "adj": 300,
    "noun": 420,
    "prep": 15,
    "pro": 4,
    "verb": 250,
    "adv": 140,
    "obj": 150,
    "conj": 7,
}
_NUMBERED = ("det", "noun", "verb")
_TOPICAL = ("adj", "noun", "verb", "adv", "obj")

# Positions of a sentence: class emitted, and where to go next with which probability. `end` emits
# <eos>. Positions before the verb (m_: the modifier) carry the number of the subject.
GRAMMAR: dict[str, tuple[str, dict[str, float]]] = {
    "s_det": ("det", {"s_adj": 0.35, "s_noun": 0.65}),
    "s_adj": ("adj", {"s_adj": 0.2, "s_noun": 0.8}),
    "s_noun": ("noun", {"m_prep": 0.4, "m_pro": 0.15, "verb": 0.45}),
    "m_prep": ("prep", {"m_obj": 0.7, "m_adj": 0.3}),
    "m_adj": ("adj", {"m_obj": 1.0}),
    "m_obj": ("obj", {"m_prep": 0.3, "verb": 0.7}),
    "m_pro": ("pro", {"m_adv": 0.4, "m_adj2": 0.6}),
    "m_adv": ("adv", {"m_adj2": 1.0}),
    "m_adj2": ("adj", {"verb": 1.0}),
    "verb": ("verb", {"o_adj": 0.3, "o_obj": 0.4, "o_adv": 0.2, "end": 0.1}),
    "o_adj": ("adj", {"o_obj": 1.0}),
    "o_obj": ("obj", {"o_adv": 0.2, "conj": 0.15, "end": 0.65}),
    "o_adv": ("adv", {"conj": 0.1, "end": 0.9}),
    "conj": ("conj", {"s_det": 1.0}),
    "end": ("", {"s_det": 1.0}),
}
_FREE = ("o_adj", "o_obj", "o_adv", "conj", "end")  # positions after the verb: no number to keep
_NUMBERS = ("sg", "pl")

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Hmm:
    """start: (S,) probabilities of the first state; transition: (S, S), rows sum to one;
    emission: (S, V), rows sum to one; words: the V words, `<eos>` among them."""

    start: Floats
    transition: Floats
    emission: Floats
    words: tuple[str, ...]


def source(seed: int = SEED) -> Hmm:
    """The source of the corpus: 150 states, about 2,000 words."""
    rng = random.Random(seed)
    words = [EOS]
    emitted: dict[tuple[str, str, int], tuple[list[int], Floats]] = {}
    for kind, size in CLASSES.items():
        for number in _NUMBERS if kind in _NUMBERED else ("",):
            ids = list(range(len(words), len(words) + size))
            words += [f"{kind}{i}{number}" for i in range(size)]
            for topic in range(TOPICS):
                emitted[kind, number, topic] = (ids, _zipf(size))
    # One permutation of ranks a class and topic, the same for both numbers: a topic's frequent
    # nouns are frequent in singular and plural.
    for kind in _TOPICAL:
        for topic in range(TOPICS):
            order = sorted(range(CLASSES[kind]), key=lambda _: rng.random())
            for number in _NUMBERS if kind in _NUMBERED else ("",):
                ids, weights = emitted[kind, number, topic]
                emitted[kind, number, topic] = (ids, weights[order])

    states = [
        (topic, place, number)
        for topic in range(TOPICS)
        for place in GRAMMAR
        for number in (("",) if place in _FREE else _NUMBERS)
    ]
    index = {state: i for i, state in enumerate(states)}
    start = np.zeros(len(states))
    transition = np.zeros((len(states), len(states)))
    emission = np.zeros((len(states), len(words)))
    for (topic, place, number), i in index.items():
        kind, following = GRAMMAR[place]
        if kind:
            ids, weights = emitted[kind, number if kind in _NUMBERED else "", topic]
            emission[i, ids] = weights
        else:
            emission[i, 0] = 1.0
        if place == "s_det":
            start[i] = 1 / (TOPICS * len(_NUMBERS))
        for target, chance in following.items():
            for topic_after, moved in _topics_after(topic, place):
                for kept, share in _numbers_after(number, target):
                    transition[i, index[topic_after, target, kept]] += chance * moved * share
    return Hmm(start, transition, emission, tuple(words))


def _zipf(size: int) -> Floats:
    weights = np.arange(1, size + 1, dtype=np.float64) ** -ZIPF
    return np.asarray(weights / weights.sum())


def _topics_after(topic: int, place: str) -> list[tuple[int, float]]:
    if place != "end":
        return [(topic, 1.0)]
    other = (1 - STAY) / (TOPICS - 1)
    return [(t, STAY if t == topic else other) for t in range(TOPICS)]


def _numbers_after(number: str, target: str) -> list[tuple[str, float]]:
    if target in _FREE:
        return [("", 1.0)]
    if target == "s_det":
        return [(n, 1 / len(_NUMBERS)) for n in _NUMBERS]
    return [(number, 1.0)]


def sample(hmm: Hmm, length: int, seed: int) -> Ids:
    """(n,) int64 ids: the first `length` tokens and what completes the last sentence.

    Only `random.Random.random` is drawn from: Python keeps its sequence the same for ever.
    """
    rng = random.Random(seed)
    end = hmm.words.index(EOS)
    successors = [np.flatnonzero(row).tolist() for row in hmm.transition]
    bounds = [
        np.cumsum(row[kept]).tolist() for row, kept in zip(hmm.transition, successors, strict=True)
    ]
    cumulated = [row.tolist() for row in np.cumsum(hmm.emission, axis=1)]
    tokens: list[int] = []
    state = _pick(np.cumsum(hmm.start).tolist(), rng)
    while True:
        word = _pick(cumulated[state], rng)
        tokens.append(word)
        if len(tokens) >= length and word == end:
            return np.array(tokens, np.int64)
        state = successors[state][_pick(bounds[state], rng)]


def _pick(cumulated: list[float], rng: random.Random) -> int:
    # The sum may fall short of one by rounding; scaling by it makes every draw land inside, and
    # entries of probability zero (equal neighbours) are never picked.
    return bisect_right(cumulated, rng.random() * cumulated[-1])


def log_likelihoods(hmm: Hmm, tokens: Ids) -> Floats:
    """(n,) nats: the log probability of each token given all before it, by the forward algorithm.

    Rabiner (1989), section III.A with the scaling of V.A: the scale of a step is the probability of
    its token. A token that the source cannot emit there gives minus infinity, and so do all after.
    """
    columns = np.ascontiguousarray(hmm.emission.T)
    scales = np.zeros(len(tokens))
    belief = hmm.start
    for i, token in enumerate(tokens.tolist()):
        joint = belief * columns[token]
        scale = joint.sum()
        if scale <= 0.0:
            break
        scales[i] = scale
        belief = (joint / scale) @ hmm.transition
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(scales))


def perplexity(hmm: Hmm, tokens: Ids) -> float:
    """Of all tokens but the first, each given those before it: what a model's evaluation counts."""
    return math.exp(-float(log_likelihoods(hmm, tokens)[1:].mean()))


def hmm_corpus() -> tuple[dict[str, Text], Vocab, dict[str, Any]]:
    """The texts of the splits, their vocabulary, and what the description says of them."""
    hmm = source()
    vocab = Vocab(words=hmm.words)
    texts, best = {}, {}
    for number, (split, length) in enumerate(LENGTHS.items(), 1):
        tokens = sample(hmm, length, SEED + number)
        best[split] = perplexity(hmm, tokens)
        lines = vocab.decode(tokens.tolist()).removesuffix("\n").split("\n")
        texts[split] = list_text(f"{NAME} ({split})", lines)
    about = {
        "source": "generated by a hidden Markov source",
        "seed": SEED,
        "states": len(hmm.start),
        "best_perplexity": best,
    }
    return texts, vocab, about
