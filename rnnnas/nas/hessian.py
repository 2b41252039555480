"""How sharply the validation loss bends in the alphas: the dominant eigenvalue of its Hessian.

Zela et al., "Understanding and Robustifying Differentiable Architecture Search" (ICLR 2020),
section 3: where it grows, the cell that is derived loses more and more of what the network had.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from rnnnas.nas.architect import Searchable
from rnnnas.nas.relax.base import Alphas, Mixture, Relaxation
from rnnnas.types import Batch, Noise

TOLERANCE = 1e-4  # of the residual, against the eigenvalue; its error is of the square's order


def alpha_eigenvalue(
    net: Searchable, relaxation: Relaxation, alphas: Alphas, batch: Batch, noise: Noise
) -> float:
    """The largest eigenvalue of the Hessian of the loss of `batch` in all of a method's alphas.

    The loss is taken under the mixtures of `scores` (for a method that samples, the softmax of its
    alphas), from a zero state.

    Args:
        net: one that can be differentiated twice. noise: the masks that are kept from report to
            report, so that two reports differ by weights and alphas alone.
    """
    assert isinstance(net, torch.nn.Module)
    # Weights without gradients: the graph is then that of the alphas alone.
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(moved: Alphas) -> Tensor:
        tables = relaxation.scores(moved, net.space)
        mixtures = {name: Mixture(table) for name, table in tables.items()}
        value: Tensor = functional_call(net, weights, (batch, None, mixtures, noise)).value
        return value

    return largest_eigenvalue(loss, alphas)


def largest_eigenvalue(loss: Callable[[Alphas], Tensor], alphas: Alphas) -> float:
    """The largest eigenvalue of the Hessian of `loss`, a scalar, at `alphas`.

    Lanczos' method, every vector made orthogonal to all before it: each costs one product of the
    exact Hessian with a vector, by a backward pass through the gradient. It ends where the
    residual is small, at the latest with as many vectors as there are alphas. The first vector is
    always the same, so that a search repeats its number.
    """
    leaves = {name: alpha.detach().requires_grad_() for name, alpha in alphas.items()}
    points = list(leaves.values())
    with torch.enable_grad():
        gradients = torch.autograd.grad(
            loss(leaves), points, create_graph=True, allow_unused=True, materialize_grads=True
        )
        gradient = torch.cat([s.reshape(-1) for s in gradients])
    if not gradient.requires_grad:  # a loss that is linear in the alphas, or knows none of them
        return 0.0

    def bent(vector: Tensor) -> Tensor:
        """The Hessian times `vector`, (n,) float64 on the CPU, as are all vectors below."""
        along = torch.autograd.grad(
            gradient, points, vector.to(gradient), retain_graph=True, materialize_grads=True
        )
        return torch.cat([a.reshape(-1) for a in along]).double().cpu()

    size = len(gradient)
    vector = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = (vector / vector.norm())[None]  # (k, n)
    along: list[float] = []  # the tridiagonal matrix of the Hessian in the basis: its diagonal
    beside: list[float] = []  # and what lies beside it
    while True:
        image = bent(basis[-1])
        along.append(float(image @ basis[-1]))
        for _ in range(2):  # once leaves rounding errors of the size of what is taken away
            image = image - basis.T @ (basis @ image)
        length = float(image.norm())
        band = torch.diag(torch.tensor(along, dtype=torch.float64))
        for i, value in enumerate(beside):
            band[i, i + 1] = band[i + 1, i] = value
        if not bool(torch.isfinite(band).all()):
            return float("nan")
        values, vectors = torch.linalg.eigh(band)
        largest, scale = float(values[-1]), float(values.abs().max())
        residual = length * abs(float(vectors[-1, -1]))
        if len(along) == size or residual <= TOLERANCE * max(abs(largest), 1e-2 * scale):
            return largest
        beside.append(length)
        basis = torch.cat([basis, image[None] / length])
