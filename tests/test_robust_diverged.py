"""Nothing is recommended or reported of what diverged."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rnnnas.errors import CheckpointError, DivergedError
from rnnnas.evaluation import run as evaluation
from rnnnas.searching import run as searching


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_search_whose_figure_is_no_number_ends_with_exit_code_6(value: float) -> None:
    with pytest.raises(DivergedError, match="every candidate diverged") as caught:
        searching.check_finite({"valid_perplexity": value}, 3)
    assert caught.value.exit_code == 6
    searching.check_finite({"valid_perplexity": 12.0}, 3)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_weights_that_are_not_finite_are_not_evaluated(value: float) -> None:
    net = nn.Linear(3, 2)
    evaluation.check_finite(net)
    with torch.no_grad():
        net.weight[1, 2] = value
    with pytest.raises(CheckpointError, match=r"not finite \(weight\)"):
        evaluation.check_finite(net)
