"""DenseNAS' draws of operations and routes, and what its alphas' step leaves as it was."""

from __future__ import annotations

import pytest
import torch

from rnnnas.errors import UsageError
from rnnnas.nas.relax.densenas import DenseNas
from rnnnas.nas.space import RowSpace, row_space

DOUBLE = torch.float64
ALLOWED = (
    (True, True, True, True),
    (True, False, True, True),
    (False, True, False, False),
    (True, True, False, False),
)
NAMES = ("0 > 1", "0 > 2", "layer 1 > 2", "1 > 2")
SPACES = {
    "layers": row_space(NAMES, ("a", "b", "c", "d"), ALLOWED),
    "routes": row_space(("from 0", "from 1"), ("+1", "+2"), ((True, True), (True, False)),
                        drawn=False),
}  # fmt: skip


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alphas(seed: int = 1) -> dict[str, torch.Tensor]:
    draws = seeded(seed)
    return {
        name: torch.randn(s.nodes, len(s.ops), dtype=DOUBLE, generator=draws).requires_grad_()
        for name, s in SPACES.items()
    }


def test_fresh_alphas_draw_uniformly_and_leave_routes_whole() -> None:
    relaxation, counts = DenseNas(), torch.zeros(4, 4)
    fresh = relaxation.init(SPACES, seeded(0))
    for seed in range(900):
        mixtures = relaxation.mix(fresh, SPACES, 0.0, seeded(seed))
        weights, paths = mixtures["layers"]
        assert paths == tuple((e, o) for e, o in weights.nonzero().tolist())
        assert bool((weights.sum(-1) == 1).all()) and bool(((weights == 0) | (weights == 1)).all())
        counts += weights.detach()
    allowed = torch.tensor(ALLOWED)
    expected = 900 * allowed / allowed.sum(-1, keepdim=True)
    torch.testing.assert_close(counts, expected, rtol=0, atol=60.0)  # four standard deviations
    weights, paths = mixtures["routes"]
    assert paths is None
    torch.testing.assert_close(weights.detach(), torch.tensor([[0.5, 0.5], [1.0, 0.0]]), atol=1e-3, rtol=0)  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("seed", range(4))
def test_the_alphas_see_a_softmax_over_two(seed: int) -> None:
    relaxation, given = DenseNas(), alphas()
    mixtures = relaxation.mix(given, SPACES, 0.5, seeded(seed), "alphas")
    weights, paths = mixtures["layers"]
    assert paths is not None
    for row in range(4):
        pair = [o for e, o in paths if e == row]
        assert len(pair) == min(2, sum(ALLOWED[row]))
        shares = given["layers"][row, pair].exp()
        torch.testing.assert_close(weights[row, pair], shares / shares.sum())
        others = [o for o in range(4) if o not in pair]
        assert bool((weights[row, others] == 0).all())
    # The gradient is that of the softmax: s_i (δ_ij - s_j) over the pair, 0 elsewhere.
    row, pair = 0, [o for e, o in paths if e == 0]
    (grad,) = torch.autograd.grad(weights[0, pair[0]], given["layers"])
    s = weights[0, pair].detach()
    wanted = torch.zeros(4, 4, dtype=DOUBLE)
    wanted[0, pair] = torch.stack([s[0] * (1 - s[0]), -s[0] * s[1]])
    torch.testing.assert_close(grad, wanted)
    torch.testing.assert_close(
        mixtures["routes"].weights[0], given["routes"][0].exp() / given["routes"][0].exp().sum()
    )
    assert mixtures["routes"].weights[1].tolist() == [1.0, 0.0]


def test_pairs_are_drawn_by_the_probabilities() -> None:
    """The first and second draw without replacement: p_i + Σ_j≠i p_j p_i / (1 - p_j)."""
    relaxation, given, seen = DenseNas(), alphas(2), torch.zeros(4, dtype=DOUBLE)
    rounds = 2000
    for seed in range(rounds):
        paths = relaxation.mix(given, SPACES, 0.5, seeded(seed), "alphas")["layers"].paths
        assert paths is not None
        seen[[o for e, o in paths if e == 0]] += 1
    p = given["layers"][0].detach().softmax(-1).tolist()
    wanted = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    torch.testing.assert_close(
        seen / rounds, torch.tensor(wanted, dtype=DOUBLE), atol=0.045, rtol=0
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_step_leaves_the_sum_of_the_pair_and_all_others(seed: int) -> None:
    relaxation, given = DenseNas(), alphas()
    mixtures = relaxation.mix(given, SPACES, 0.5, seeded(seed), "alphas")
    before = {name: a.detach().clone() for name, a in given.items()}
    paths = mixtures["layers"].paths
    assert paths is not None
    with torch.no_grad():
        # As Adam with momentum and weight decay would: everything moves.
        for alpha in given.values():
            alpha += 0.3 * torch.randn(alpha.shape, dtype=DOUBLE, generator=seeded(9 + seed))
        stepped = {name: a.clone() for name, a in given.items()}
        relaxation.adjust(given, before, mixtures, SPACES)
    after, old, new = given["layers"].detach(), before["layers"], stepped["layers"]
    for row in range(4):
        pair = [o for e, o in paths if e == row]
        rest = [o for o in range(4) if o not in pair and ALLOWED[row][o]]
        torch.testing.assert_close(after[row, pair].exp().sum(), old[row, pair].exp().sum())
        assert torch.equal(after[row, rest], old[row, rest])
        if len(pair) == 2:  # what the step did to one against the other stays done
            difference = new[row, pair[0]] - new[row, pair[1]]
            torch.testing.assert_close(after[row, pair[0]] - after[row, pair[1]], difference)
            assert not torch.equal(after[row, pair], old[row, pair])
    p = [torch.where(torch.tensor(ALLOWED), a, -torch.inf).softmax(-1) for a in (old, after)]
    for row in range(4):
        rest = [o for o in range(4) if (row, o) not in paths]
        torch.testing.assert_close(p[1][row, rest], p[0][row, rest])
    assert torch.equal(given["routes"], stepped["routes"])  # routes are moved by their optimiser


def test_rows_are_no_cells() -> None:
    space = SPACES["layers"]
    assert space.count() == 4 * 3 * 1 * 2 and space.labels == NAMES
    assert [list(space.rows(node)) for node in range(4)] == [[0], [1], [2], [3]]
    for refuse in (lambda: space.discretise([[0.0] * 4] * 4), lambda: space.sample(None)):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="make no cell"):
            refuse()
    left = space.prune([[True, False, True, True]] * 2 + [[False, True, False, False]] * 2)
    assert isinstance(left, RowSpace) and left.allowed[0] == (True, False, True, True)
    with pytest.raises(UsageError, match="nothing is left to choose at layer 1 > 2"):
        space.prune([[True, False, True, True]] * 4)
