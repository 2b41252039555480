"""The values that flow between data, networks and loops.

Legend: T steps, B streams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

# Recurrent state between windows, detached; None at the start of a text and for images.
HiddenState: TypeAlias = Tensor | tuple[Tensor, ...] | None

# Every random mask of one window, drawn before the forward pass, on the device; a network
# defines its own NamedTuple of them. None: no noise (evaluation).
Noise: TypeAlias = Any


class Batch(NamedTuple):
    """One window of text: inputs and targets (T, B) int64; targets lie one token ahead.

    For images: inputs (B, 3, h, w) float and targets (B,) int64.
    """

    inputs: Tensor
    targets: Tensor


class Loss(NamedTuple):
    """What a forward pass returns.

    value: mean nats per target, a scalar that gradients flow through.
    count: targets counted.
    hidden_state: the recurrent state after the window, detached.
    penalty: what training adds to `value` (activation regularisation), a scalar in nats;
        it is part of a weight step and of the architect's inner step, never of a report.
    correct: of images, (2,) int64: targets that scored best, and among the best five; else None.
    """

    value: Tensor
    count: int  # type: ignore[assignment]  # the field's name wins over tuple.count
    hidden_state: HiddenState
    penalty: Tensor
    correct: Tensor | None = None

    @property
    def objective(self) -> Tensor:
        """What a weight step minimises."""
        return self.value + self.penalty


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerStep:
    """One step of the weight optimiser, as the architect mirrors it.

    lr: step size; clip: largest norm of the whole gradient (0: no clipping);
    weight_decay and momentum as in `torch.optim.SGD`; `buffers` holds its momentum buffers
    by parameter name. published: None to look ahead by the step as it is; else the look-ahead
    follows the published DARTS code where that is not the gradient (docs/methods.md), and these
    parameters, the decoder's matrix that is tied to the embedding, stay where they are.
    """

    lr: float | Tensor
    clip: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.0
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    published: frozenset[str] | None = None
