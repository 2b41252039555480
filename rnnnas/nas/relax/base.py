"""What a relaxation is: how alphas become a mixture of operations, computed once a forward pass.

Legend: E edges, O operations. A relaxation leaks into neither networks, optimiser nor loop: a
network sees a `Mixture`, and never asks which method made it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas.space import CellSpace

Spaces = Mapping[str, CellSpace]
Alphas = Mapping[str, Tensor]
Step = Literal["alphas", "weights"]

INITIAL_SCALE = 1e-3  # DARTS: alphas start at 1e-3 * N(0, 1), so that no operation is ahead


class Mixture(NamedTuple):
    """What the edges of a cell do.

    weights: (E, O), the weight of each operation on each edge.
    paths: the (edge, operation) pairs that are computed, in rising order, or None for all. A
    network skips the others whatever their weight, products and all; no gradient reaches them.
    """

    weights: Tensor
    paths: tuple[tuple[int, int], ...] | None = None


Mixtures = dict[str, Mixture]
LossGradients = Callable[[Mixtures], tuple[Tensor, dict[str, Tensor]]]


class Relaxation(ABC):
    """A method of turning alphas into mixtures: a frozen dataclass whose fields are its settings.

    It has no state of its own; what it draws comes from the generator that is handed in, and
    schedules depend on `progress`, the share of the search that is done, in [0, 1], alone. Three
    methods say what it is; the others have a default that does nothing.
    """

    # What the alphas are trained on: another text than the weights ("valid", bi-level), or the
    # very window that the weight step takes ("train", single level).
    level: ClassVar[Literal["valid", "train"]] = "valid"

    def init(self, spaces: Spaces, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh parameters, by name, on the generator's device; leaves that require gradients.

        Those named as a cell are its alphas, (E, O).
        """
        return {
            name: fresh(len(space.edges), len(space.ops), generator=generator)
            for name, space in spaces.items()
        }

    @abstractmethod
    def mix(
        self,
        alphas: Alphas,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        step: Step = "weights",
    ) -> Mixtures:
        """The mixture of every cell, differentiable in `alphas`; may sample.

        Args:
            step: which parameters the mixture is to move; some methods sample differently.
        """

    @abstractmethod
    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        """Scores (E, O) to derive each cell by; deterministic."""

    def penalty(self, alphas: Alphas, spaces: Spaces, progress: float) -> Tensor | None:
        """What is added to the alphas' objective, a scalar in nats, or None for nothing."""
        return None

    def perturb(
        self,
        mixtures: Mixtures,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        gradients: LossGradients,
    ) -> Mixtures:
        """The mixtures that a weight step trains under, given those of `mix`.

        Args:
            gradients: the training loss, a scalar, and its gradient (E, O) in each mixture's
                weights; one forward and backward pass a call.
        """
        return mixtures

    def adjust(  # noqa: B027  # the default changes nothing
        self, alphas: Alphas, before: Alphas, mixtures: Mixtures, spaces: Spaces
    ) -> None:
        """Change the alphas in place after their optimiser's step, under `no_grad`.

        Args:
            before: the alphas before that step. mixtures: what the step was taken under.
        """


class Fixed(Relaxation):
    """A mixture is the scores themselves: nothing is drawn, or varies with progress."""

    def mix(
        self,
        alphas: Alphas,
        spaces: Spaces,
        progress: float,
        generator: torch.Generator,
        step: Step = "weights",
    ) -> Mixtures:
        return {name: Mixture(weights) for name, weights in self.scores(alphas, spaces).items()}


class Softmax(Fixed):
    """Softmax over the allowed operations of each edge (DARTS: Liu et al. 2019, equation 2)."""

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        return {name: allowed_softmax(alphas[name], space) for name, space in spaces.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tempered(Relaxation):
    """What samples at a temperature that falls over the search.

    tau_start: the temperature at the start of the search; -; above 0; each method has its paper's
    tau_end: the temperature at the end of the search; -; above 0; each method has its paper's
    """

    tau_start: float
    tau_end: float

    def __post_init__(self) -> None:
        check_positive(tau_start=self.tau_start, tau_end=self.tau_end)


def fresh(*shape: int, generator: torch.Generator) -> Tensor:
    """Initial alphas: 1e-3 · N(0, 1), a leaf that requires gradients."""
    noise = torch.randn(*shape, generator=generator, device=generator.device)
    return (INITIAL_SCALE * noise).requires_grad_()


def linear(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1."""
    return start + (end - start) * progress


def check_positive(**settings: float) -> None:
    """Refuse settings of a relaxation that must be positive.

    Raises:
        UsageError: for the first that is not, by its name on the command line.
    """
    for name, value in settings.items():
        if not value > 0:
            raise UsageError(f"relax.{name} = {value} must be positive")


def allowed_mask(space: CellSpace, device: torch.device) -> Tensor:
    """Which operations each edge may use, (E, O) bool."""
    return torch.tensor(space.allowed, device=device)


def allowed_softmax(alphas: Tensor, space: CellSpace) -> Tensor:
    """Softmax over each row's allowed operations; exactly zero elsewhere. (E, O)."""
    if all(all(row) for row in space.allowed):
        return alphas.softmax(-1)
    allowed = allowed_mask(space, alphas.device)
    # A row without any allowed operation would be 0/0: it keeps zeros.
    masked = alphas.masked_fill(~allowed, -torch.inf)
    masked = masked.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return masked.softmax(-1) * allowed
