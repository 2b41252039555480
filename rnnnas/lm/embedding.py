"""The embedding of words, whose gradient holds the rows that were looked up and no others.

Legend: M words looked up, U of them different, V vocabulary, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def embedded(words: Tensor, matrix: Tensor) -> Tensor:
    """The rows of `matrix` (V, D) that `words` (...) number, (..., D); can be differentiated once.

    The gradient is a sparse tensor of U rows. Where it is added to a dense one, as that of a tied
    decoder, the sum is dense, and has the bits of a sum of two dense ones: a row's own sum is
    formed first, in the order of the words. A dense gradient would be cleared and added up over
    all V rows, which takes longer than all that is done with M.
    """
    rows: Tensor = _Embedded.apply(words, matrix)  # type: ignore[no-untyped-call]
    return rows


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, words: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(words)
        ctx.size = matrix.shape
        return F.embedding(words, matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (words,) = ctx.saved_tensors
        found, place = torch.unique(words, return_inverse=True)  # (U,) rising, (...)
        rows = torch.ops.aten.embedding_dense_backward(gradient, place, len(found), -1, False)
        sparse = torch.sparse_coo_tensor(
            found.unsqueeze(0), rows, ctx.size, is_coalesced=True, check_invariants=False
        )
        return None, sparse
