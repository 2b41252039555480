"""What a language model's perplexity is held against: n-gram models of the same tokens, and bytes.

Legend: B streams, L tokens a stream, n tokens of a split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnnas.data.ngrams import bigram_model, unigram_probabilities
from rnnnas.data.text_corpus import Corpus
from rnnnas.data.vocab import Vocab


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardsticks:
    """Perplexities a token of a split under the unigrams and bigrams of the training text; see
    `ngrams`.
    """

    unigram: float
    bigram: float

    def to_plain(self) -> dict[str, float]:
        """The keys of a result."""
        return {"unigram_perplexity": self.unigram, "bigram_perplexity": self.bigram}


_known: dict[tuple[str, str, int], Yardsticks] = {}


def yardsticks(corpus: Corpus, split: str, streams: int = 1) -> Yardsticks:
    """The n-gram perplexities of a split, over the very tokens that a model is asked for.

    Args:
        streams: B of the model's evaluation: the first token of each stream, and the tokens that
            fill no row, are not predicted.
    """
    key = corpus.sha256, split, streams
    if key not in _known:
        train, size = np.asarray(corpus.splits["train"]), corpus.vocab.size
        tokens = np.asarray(corpus.splits[split])
        length = len(tokens) // streams
        rows = tokens[: length * streams].reshape(streams, length)
        previous, targets = rows[:, :-1].reshape(-1), rows[:, 1:].reshape(-1)
        single = unigram_probabilities(train, size)[targets]
        pairs = bigram_model(train, size).probabilities(previous, targets)
        _known[key] = Yardsticks(unigram=_perplexity(single), bigram=_perplexity(pairs))
    return _known[key]


def _perplexity(probabilities: npt.NDArray[np.float64]) -> float:
    return float(np.exp(-np.log(probabilities).mean()))


def unknown_share(tokens: npt.NDArray[np.integer[Any]], vocab: Vocab) -> float:
    """The share of tokens that are `<unk>`, whether the vocabulary lacks a word or the text itself
    says so.
    """
    return 0.0 if vocab.unk is None else float(np.count_nonzero(tokens == vocab.unk) / len(tokens))


def text_bytes(corpus: Corpus, split: str) -> int:
    """Bytes of a split's text in UTF-8, line ends included.

    A corpus that does not record them is decoded: words are then one space apart, and what was
    read as `<unk>` counts as those five characters.
    """
    recorded = corpus.description["splits"][split].get("bytes")
    if isinstance(recorded, int):
        return recorded
    vocab, tokens = corpus.vocab, np.asarray(corpus.splits[split])
    if vocab.kind != "words":
        return len(vocab.decode(tokens.tolist()).encode("utf-8"))
    sizes = np.array([len(word.encode("utf-8")) + 1 for word in vocab.words])
    # One separator a word: the spaces of a line and its end. A blank line has an end alone.
    ends = tokens == vocab.eos
    blank = int(np.count_nonzero(ends & np.concatenate(([True], ends[:-1]))))
    return int(sizes[tokens[~ends]].sum()) + blank


def bits_per_byte(nats: float, tokens: int, size: int) -> float:
    """Bits a byte of a text of `tokens` tokens and `size` bytes, at `nats` a token."""
    return nats * tokens / (math.log(2) * max(size, 1))


def compared(
    perplexity: float, given: Yardsticks, *, whose: str, remedy: str, found: bool = False
) -> list[str]:
    """Lines that hold a perplexity against the n-grams' of the same tokens.

    Args:
        whose: perplexity, for the warning where it loses. remedy: what to do about it then.
        found: whether a search ended with it, whose short trainings tell cells apart long before
            they reach a bigram model (benchmarks/halving.md); it loses to a unigram model only.
    """
    share = abs(1 - perplexity / given.bigram)
    side = "below" if perplexity <= given.bigram else "above"
    lines = [
        f"of the same text: bigram {given.bigram:.2f} ({100 * share:.0f} % {side} it), "
        f"unigram {given.unigram:.2f}"
    ]
    # A perplexity that is not a number loses, too.
    limits = [("unigram", given.unigram), ("bigram", given.bigram)]
    for name, value in limits[:1] if found else limits:
        if not perplexity < value:
            lines.append(f"WARNING: {whose} is worse than a {name} model's {value:.2f}: {remedy}")
            break
    return lines
