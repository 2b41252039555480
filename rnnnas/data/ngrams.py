"""Unigram and bigram perplexities: what a language model must beat.

Both predict every token of the test stream but its first, as a recurrent model does, and both give
every entry of the vocabulary a positive probability; the probabilities sum to one.
- Unigram: absolute discounting interpolated with the uniform distribution,
  p(w) = (max(c(w) - d, 0) + d n / V) / N, n the number of distinct words.
- Bigram: interpolated Kneser-Ney (Kneser and Ney, 1995; Chen and Goodman, 1999, equation 23 with
  one discount), p(w|v) = (max(c(vw) - d, 0) + d n(v) p_kn(w)) / c(v), n(v) the number of distinct
  successors of v and p_kn(w) the unigram formula over the counts of distinct predecessors.
- d = n1 / (n1 + 2 n2) from the counts of counts (Ney, Essen and Kneser, 1994).

Legend: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def _discount(counts: Ids) -> float:
    """d of Ney, Essen and Kneser; 0.5 where words seen once or twice do not both occur."""
    once, twice = int(np.count_nonzero(counts == 1)), int(np.count_nonzero(counts == 2))
    return once / (once + 2 * twice) if once and twice else 0.5


def _interpolated(counts: Ids) -> Floats:
    """(V,) probabilities out of (V,) counts, interpolated with the uniform distribution."""
    d = _discount(counts[counts > 0])
    distinct = np.count_nonzero(counts)
    return np.asarray(
        (np.maximum(counts - d, 0.0) + d * distinct / len(counts)) / counts.sum(), np.float64
    )


def unigram_probabilities(train: Ids, vocabulary: int) -> Floats:
    """(V,) probabilities of the words, from a training stream of at least one token."""
    return _interpolated(np.bincount(train, minlength=vocabulary))


@dataclass(frozen=True, slots=True)
class Bigram:
    """An interpolated Kneser-Ney model.

    keys: sorted `v V + w` of the pairs seen; counts: theirs. total, successors: (V,) for each v,
    c(v) and n(v). base: (V,) p_kn.
    """

    vocabulary: int
    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]
    successors: npt.NDArray[np.int64]
    base: Floats
    discount: float

    def probabilities(self, previous: Ids, words: Ids) -> Floats:
        """(n,) p(word | previous) for n pairs."""
        previous, words = previous.astype(np.int64), words.astype(np.int64)
        wanted = previous * self.vocabulary + words
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        count = np.where(self.keys[at] == wanted, self.counts[at], 0)
        total = self.total[previous]
        known = (
            np.maximum(count - self.discount, 0.0)
            + self.discount * self.successors[previous] * self.base[words]
        ) / np.maximum(total, 1)
        # After a word that never had a successor only the unigram is left.
        return np.where(total > 0, known, self.base[words])


def bigram_model(train: Ids, vocabulary: int) -> Bigram:
    """The model of a training stream of at least two tokens."""
    pairs = train[:-1].astype(np.int64)
    pairs *= vocabulary
    pairs += train[1:]
    keys, counts = np.unique(pairs, return_counts=True)
    first, second = np.divmod(keys, vocabulary)
    return Bigram(
        vocabulary=vocabulary,
        keys=keys,
        counts=counts,
        total=np.bincount(first, weights=counts, minlength=vocabulary).astype(np.int64),
        successors=np.bincount(first, minlength=vocabulary),
        base=_interpolated(np.bincount(second, minlength=vocabulary)),
        discount=_discount(counts),
    )


def unigram_perplexity(train: Ids, test: Ids, vocabulary: int) -> float:
    """Perplexity per token of `test` (at least two tokens) under the unigrams of `train`."""
    probabilities = unigram_probabilities(train, vocabulary)
    return float(np.exp(-np.log(probabilities[test[1:]]).mean()))


def bigram_perplexity(train: Ids, test: Ids, vocabulary: int) -> float:
    """Perplexity per token of `test` (at least two tokens) under the bigrams of `train`."""
    probabilities = bigram_model(train, vocabulary).probabilities(test[:-1], test[1:])
    return float(np.exp(-np.log(probabilities).mean()))
