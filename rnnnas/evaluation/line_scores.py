"""How likely a model finds each line of a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rnnnas.evaluation.language_model import LanguageModel
from rnnnas.types import HiddenState

_CHUNK = 512  # steps whose log-probabilities are computed at a time: their V scores fill memory
_LARGEST = 700.0  # nats a token whose exponential is still a float


@dataclass(frozen=True, slots=True, kw_only=True)
class LineScore:
    """A line, scored.

    line: its number, from 1 on; None for all lines together. log_prob: of its tokens and of the
    end of the line, in nats. tokens: how many these are. unknown: how many of them stand for words
    that the vocabulary lacks. text: the line, None for all together.
    """

    line: int | None
    log_prob: float
    tokens: int
    unknown: int
    text: str | None

    @property
    def perplexity(self) -> float:
        """exp of minus the mean log-probability of a token."""
        mean = -self.log_prob / max(self.tokens, 1)
        return math.exp(mean) if mean < _LARGEST else math.inf

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = asdict(self)
        return {**plain, "perplexity": self.perplexity}


@torch.no_grad()
def line_scores(
    model: LanguageModel, lines: Iterable[str], *, restart: bool = False
) -> Iterator[LineScore]:
    """The score of each line of a text, given the lines before it.

    The first token follows an end of line, as in training. The sum over all lines is that of
    `model.log_probs` of the whole text.

    Args:
        restart: read each line as if it were the first: its score then depends on itself alone.
    """
    state: HiddenState = None
    for number, text in enumerate(lines, 1):
        if restart:
            state = None
        encoded = model.vocab.encode([text])
        ids = torch.from_numpy(encoded.tokens.astype("int64")).to(model.device)
        before = torch.cat([ids.new_tensor([model.vocab.eos]), ids[:-1]])
        log_prob = 0.0
        for at in range(0, len(ids), _CHUNK):
            logits, state = model(before[at : at + _CHUNK], state)
            rows = logits.double().log_softmax(-1)
            log_prob += float(rows.gather(-1, ids[at : at + _CHUNK, None]).sum())
        yield LineScore(
            line=number, log_prob=log_prob, tokens=len(ids), unknown=encoded.unknown, text=text
        )


def total(scores: Iterable[LineScore]) -> LineScore:
    """All lines together."""
    known = list(scores)
    return LineScore(
        line=None,
        log_prob=sum(one.log_prob for one in known),
        tokens=sum(one.tokens for one in known),
        unknown=sum(one.unknown for one in known),
        text=None,
    )
