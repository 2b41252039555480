"""Corpora of the format before, whose descriptions have no digest: what they say, derived anew."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnnas.data import synthetic
from rnnnas.data.benchmarks import CANONICAL, words_digest
from rnnnas.data.text_files import list_text
from rnnnas.data.text_sources import SPLITS
from rnnnas.data.vocab import Vocab

UNSEALED = (
    "prepared by an earlier version, which kept no digest of its notes and counts of unknown words"
)

# Content hashes of prepared corpora whose properties are known: to derive them takes seconds.
_CANONICAL = frozenset(
    {
        "4a9957960eeca6d23d81e8316217f3110a01dcf06539b5087bdafe6b7baf91d7",  # ptb
        "e6cc134335ab6735fcd2ba199cc56c5e8c5529d9b735c331b7e1e087e0662faf",  # wikitext-2
    }
)
_HMM = "5722133327534b7c7a890ca22bf881544146258e2f18c3d9fec6fa86793ae909"
_HMM_BEST = {
    "train": 41.679447517634216,
    "valid": 41.5059871106208,
    "test": 41.66741680707159,
}


def contradiction(
    name: str, description: Mapping[str, Any], vocab: Vocab, splits: Mapping[str, Any]
) -> str | None:
    """What a description of the format before says wrongly of its tokens, or None.

    Derived anew: lines, words, whether the text is a canonical one, the perplexity of the true
    source. Counts of unknown words cannot be, but are at most the `<unk>` that there are.
    """
    for split in SPLITS:
        part, tokens = description["splits"][split], splits[split]
        lines = int(np.count_nonzero(tokens == vocab.eos))
        words = len(tokens)
        if vocab.kind == "sentencepiece":
            words = len(vocab.decode(tokens).split()) + lines
        unknown = 0 if vocab.unk is None else int(np.count_nonzero(tokens == vocab.unk))
        for key, derived in (("lines", lines), ("words", words)):
            if part[key] != derived:
                return f"{split} has {derived:,} {key}, not {part[key]:,}"
        if not 0 <= part["unknown"] <= unknown:
            return f"{split} has at most {unknown:,} unknown words, not {part['unknown']:,}"
    known = description["sha256"] in _CANONICAL
    if description.get("canonical") and not known and not _canonical(vocab, splits):
        return "it is none of the canonical texts"
    best = description.get("best_perplexity")
    if best is None:
        return None
    if name != synthetic.NAME:
        return "a perplexity of the true source, which is not known"
    source = synthetic.source()
    for split in SPLITS:
        exact = _HMM_BEST[split]
        if description["sha256"] != _HMM:
            exact = synthetic.perplexity(source, splits[split])
        if not math.isclose(exact, best[split], rel_tol=1e-9):
            return f"the perplexity of the true source on {split} is {exact:.6f}"
    return None


def _canonical(vocab: Vocab, splits: Mapping[str, Any]) -> bool:
    """Whether the words are those of a benchmark, as far as the vocabulary kept them."""
    texts = {}
    for split in SPLITS:
        lines = vocab.decode(splits[split]).split("\n")[:-1]
        texts[split] = words_digest(list_text(split, lines))
    return any(all(texts[s] == known[s].words for s in SPLITS) for known in CANONICAL.values())
