"""Image cells: mixtures, partial channels, skipped paths, drop-path, by sums written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnnas.cnn.cell import DerivedCell, MixedCell, shuffle
from rnnnas.cnn.noise import CnnNoise, draw
from rnnnas.cnn.space import OPERATIONS, image_spaces
from rnnnas.cnn.zoo import ZOO
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import CellGene, Gene
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import CellSpace

DOUBLE = torch.float64
C, B = 8, 3
SPACE = image_spaces(3)["normal"]
SKIP = OPERATIONS.index("skip_connect")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(seed: int = 0, h: int = 6, w: int = 5) -> tuple[Tensor, Tensor]:
    draws = seeded(seed)
    return (
        torch.randn(B, 7, h, w, dtype=DOUBLE, generator=draws),
        torch.randn(B, 9, h, w, dtype=DOUBLE, generator=draws),
    )


def mixed(reduce: bool = False, partial: int = 1, space: CellSpace = SPACE) -> MixedCell:
    return MixedCell(
        space, (7, 9), C, seeded(1), reduce=reduce, halve=False, partial=partial
    ).double()


def weights(seed: int = 0, space: CellSpace = SPACE) -> Tensor:
    """Rows that do not sum to one, as those of an edge softmax do not."""
    return torch.rand(len(space.edges), len(space.ops), dtype=DOUBLE, generator=seeded(seed))


def expected(cell: MixedCell, p: Tensor, paths: Any = None, masks: Any = None) -> Tensor:
    """Σ_e Σ_o P[e, o] o(state), channel by channel where only some are mixed."""
    older, last = inputs()
    states = cell.entries(older, last, True)
    k, edge = cell.partial, 0
    for node in range(cell.space.nodes):
        total = 0
        for source in range(2 + node):
            stride = 2 if cell.reduce and source < 2 else 1
            x = states[source]
            part, rest = x[:, : C // k], x[:, C // k :]
            listed = [o for e, o in paths if e == edge] if paths is not None else range(8)
            size = [-(-n // stride) for n in x.shape[2:]]
            sum_ = torch.zeros(B, C // k, *size, dtype=DOUBLE)
            for o in listed:
                if o:
                    out = cell.edges[edge][OPERATIONS[o]](part, True)
                    if masks is not None and edge in masks and o == SKIP:
                        out = out * masks[edge]
                    sum_ = sum_ + p[edge, o] * out
            if k > 1:
                if stride == 2:
                    rest = F.pad(rest, (0, rest.shape[3] % 2, 0, rest.shape[2] % 2), value=-1e9)
                    pairs = rest.reshape(*rest.shape[:2], size[0], 2, size[1], 2)
                    rest = pairs.amax((3, 5))
                whole = torch.cat([sum_, sum(p[edge, o] for o in listed) * rest], 1)
                sum_ = torch.empty_like(whole)
                for group in range(k):
                    for channel in range(C // k):
                        sum_[:, channel * k + group] = whole[:, group * (C // k) + channel]
            total = total + sum_
            edge += 1
        states.append(total)
    return torch.cat(states[2:], 1)


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("partial", [1, 2, 4])
def test_a_mixed_cell_is_the_sum_over_edges_and_operations(reduce: bool, partial: int) -> None:
    cell, p = mixed(reduce, partial), weights()
    out = cell(*inputs(), Mixture(p), None, 1.0, True)
    assert out.shape == (B, 3 * C, *((3, 3) if reduce else (6, 5)))
    torch.testing.assert_close(out, expected(cell, p), rtol=1e-10, atol=1e-10)


def test_shuffle_brings_every_group_next_to_every_other() -> None:
    x = torch.arange(12.0).view(1, 12, 1, 1)
    assert shuffle(x, 4).flatten().tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("partial", [1, 4])
def test_paths_that_are_left_out_are_not_computed(reduce: bool, partial: int) -> None:
    """Not even called; and what is computed is the sum over the paths."""
    cell, p = mixed(reduce, partial), weights().requires_grad_()
    paths = ((0, 4), (1, 0), (2, 3), (2, 5), (4, 1), (5, 7), (8, 3))
    called: list[tuple[int, str]] = []
    for edge, ops in enumerate(cell.edges):
        for op, module in ops.items():
            module.register_forward_hook(lambda *_, key=(edge, op): called.append(key))
    out = cell(*inputs(), Mixture(p, paths), None, 1.0, True)
    assert sorted(called) == sorted((e, OPERATIONS[o]) for e, o in paths if o)
    torch.testing.assert_close(out, expected(cell, p, paths), rtol=1e-10, atol=1e-10)
    (grad,) = torch.autograd.grad(out.square().sum(), p)
    touched = {(e, o) for e, o in paths if o or partial > 1}
    assert {tuple(at) for at in grad.nonzero().tolist()} == touched


@pytest.mark.parametrize("reduce", [False, True])
def test_a_node_that_no_path_leads_into_is_zero(reduce: bool) -> None:
    cell = mixed(reduce)
    out = cell(*inputs(), Mixture(weights(), ((0, 0), (4, 3))), None, 1.0, True)
    first, second, third = out.split(C, 1)
    assert not first.any() and not third.any() and not second.any()  # 4 takes node 0: zeros
    out = cell(*inputs(), Mixture(weights(), ((1, 3),)), None, 1.0, True)
    assert out[:, :C].any() and not out[:, C:].any()


def test_a_pruned_space_has_no_weights_for_what_it_forbids() -> None:
    allowed = [[o != 4 and not (e == 2 and o != 3) for o in range(8)] for e in range(9)]
    space = SPACE.prune(allowed)
    cell = mixed(space=space)
    assert list(cell.edges[2]) == ["skip_connect"] and "sep_conv_3x3" not in cell.edges[0]
    p = weights() * torch.tensor(allowed)
    out = cell(*inputs(), Mixture(p), None, 1.0, True)
    paths = [(e, o) for e in range(9) for o in range(8) if allowed[e][o]]
    torch.testing.assert_close(out, expected(cell, p, paths), rtol=1e-10, atol=1e-10)
    with pytest.raises(UsageError, match="sep_conv_3x3"):
        cell(*inputs(), Mixture(p, ((0, 4),)), None, 1.0, True)


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("partial", [1, 2])
def test_dropout_of_identities_follows_its_masks(reduce: bool, partial: int) -> None:
    cell, p = mixed(reduce, partial), weights()
    edges = [e for e, (source, _) in enumerate(SPACE.edges) if not reduce or source >= 2]
    assert list(cell.identities) == edges
    shape = (len(edges), B, C // partial, *((3, 3) if reduce else (6, 5)))
    noise = draw(
        drop_path=0.0, paths=(1, 1, B), skip_dropout=0.25, skips=[shape], dtype=DOUBLE,
        generator=seeded(2),
    )  # fmt: skip
    assert noise.paths is None and noise.skips is not None and noise.skips[0].shape == shape
    assert 0.6 < float(noise.skips[0].double().mean()) < 0.9
    out = cell(*inputs(), Mixture(p), noise.skips[0], noise.kept, True)
    masks = {e: noise.skips[0][i].double() / 0.75 for i, e in enumerate(edges)}
    torch.testing.assert_close(out, expected(cell, p, masks=masks), rtol=1e-10, atol=1e-10)


def derived(gene: CellGene, reduce: bool) -> DerivedCell:
    return DerivedCell(gene, (7, 9), C, seeded(1), reduce=reduce, halve=False).double()


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("name", list(ZOO))
def test_drop_path_spares_identities_alone(name: str, reduce: bool) -> None:
    gene = ZOO[name].genotype.cells["reduce" if reduce else "normal"]
    cell = derived(gene, reduce)
    edges = [edge for node in gene.nodes for edge in node]
    noise = draw(
        drop_path=0.4, paths=(2, len(edges), B), skip_dropout=0.0, skips=[], dtype=DOUBLE,
        generator=seeded(5),
    )  # fmt: skip
    assert noise.paths is not None and noise.skips is None
    masks = noise.paths[1]
    assert masks.shape == (len(edges), B, 1, 1, 1)
    assert sorted(set(masks.flatten().tolist())) == pytest.approx([0.0, 1 / 0.6])
    states = cell.entries(*inputs(), True)
    number = 0
    for node in gene.nodes:
        total = torch.zeros(())
        for op, source in node:
            out = cell.edges[number](states[source], True)
            if not (op == "skip_connect" and (source >= 2 or not reduce)):
                out = torch.stack([out[i] * masks[number, i, 0, 0, 0] for i in range(B)])
            total = total + out
            number += 1
        states.append(total)
    whole = torch.cat([states[s] for s in gene.concat], 1)
    out = cell(*inputs(), masks, True)
    assert out.shape == (B, len(gene.concat) * C, *((3, 3) if reduce else (6, 5)))
    torch.testing.assert_close(out, whole, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(out, cell(*inputs(), None, True))


def test_a_node_may_have_more_than_two_edges() -> None:
    node = (Gene("skip_connect", 0), Gene("skip_connect", 1), Gene("skip_connect", 1))
    cell = derived(CellGene(nodes=(node,), concat=(2,)), False)
    a, b = cell.entries(*inputs(), True)
    torch.testing.assert_close(cell(*inputs(), None, True), a + 2 * b)


def test_masks_are_drawn_in_a_fixed_order_and_scale_to_a_mean_of_one() -> None:
    def one(drop_path: float, skip: float) -> CnnNoise:
        return draw(
            drop_path=drop_path, paths=(4, 8, 500), skip_dropout=skip, skips=[(2, 3, 4, 5, 6)] * 4,
            dtype=torch.float32, generator=seeded(9),
        )  # fmt: skip

    assert one(0.0, 0.0) == CnnNoise()
    a, b = one(0.2, 0.1), one(0.2, 0.1)
    assert a.paths is not None and b.paths is not None and a.skips and b.skips
    assert torch.equal(a.paths, b.paths) and torch.equal(a.skips[3], b.skips[3])
    assert float(a.paths.mean()) == pytest.approx(1.0, abs=0.02)
    assert a.skips[0].dtype == torch.bool and a.kept == pytest.approx(0.9)
