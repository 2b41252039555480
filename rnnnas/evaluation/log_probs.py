"""What a model says of the words that came: its outputs and each target's log-probability.

Legend: T steps, B streams, M = T·B targets, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rnnnas.lm.loss import CHUNK
from rnnnas.lm.model import RecurrentLM
from rnnnas.lm.noise import SILENCE
from rnnnas.types import Batch, HiddenState


class Scores(NamedTuple):
    """One window, scored: outputs (T, B, H) of the cell, targets (T, B) int64 and log_probs
    (T, B), in nats, of the targets.
    """

    outputs: Tensor
    targets: Tensor
    log_probs: Tensor


def target_log_probs(net: RecurrentLM, outputs: Tensor, targets: Tensor) -> Tensor:
    """log p of each target, `CHUNK` rows at a time. outputs (M, H), targets (M,) → (M,)."""
    parts = []
    for start in range(0, len(targets), CHUNK):
        part = slice(start, start + CHUNK)
        logits = net.scores(outputs[part])  # (chunk, V)
        hit = logits.gather(1, targets[part].unsqueeze(1)).squeeze(1)
        parts.append(hit - logits.logsumexp(-1))
    return torch.cat(parts)


@torch.no_grad()
def score(net: RecurrentLM, batch: Batch, hidden_state: HiddenState) -> tuple[Scores, HiddenState]:
    """A window under the model as it is, without noise, and the next hidden state."""
    raw, after = net.outputs(batch.inputs, hidden_state, {}, SILENCE)
    log_probs = target_log_probs(net, raw.flatten(0, 1), batch.targets.flatten())
    return Scores(raw, batch.targets, log_probs.view_as(batch.targets)), after
