"""The mixed cell on paths, on a part of the units, and with rounded products."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from plain_torch import without_kernels
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rnnnas.config.presets import resolve
from rnnnas.errors import UsageError
from rnnnas.lm import search_cell
from rnnnas.lm.fast import cpu_library, mixture_cpu, mixture_whole
from rnnnas.lm.fast import mixture as fused_mixed
from rnnnas.lm.fast.matmul import project
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.genotype import RECURRENT
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.types import Batch

DOUBLE = torch.float64
FORMS = (search_cell.unroll_reference, search_cell.unroll, fused_mixed.unroll)
Paths = tuple[tuple[int, int], ...]


def draw_paths(space: CellSpace, rng: random.Random) -> Paths:
    """One or a few paths a node, or a random share of all; `none` among them."""
    found: set[tuple[int, int]] = set()
    for node in range(space.nodes):
        every = [(e, o) for e in space.rows(node) for o in range(len(space.ops))]
        number = rng.choice([1, 1, 2, 3, rng.randint(1, len(every))])
        found |= set(rng.sample(every, min(number, len(every))))
    return tuple(sorted(found))


def case(seed: int, partial: int = 1, nodes: int = 0) -> tuple[list[Tensor], Any, Any, Any]:
    rng = random.Random(seed)
    nodes = nodes or rng.randint(1, 6)
    units, width = rng.randint(1, 4), rng.randint(1, 5)
    steps, streams, hidden = rng.randint(1, 4), rng.randint(2, 5), units * partial
    draws = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=DOUBLE, generator=draws)

    space = recurrent_space(nodes)
    tensors = [
        rand(steps, streams, width), rand(streams, hidden), rand(width + hidden, 2 * hidden),
        rand(nodes, units, 2 * units), rand(len(space.edges), 5).softmax(-1),
    ]  # fmt: skip
    mask_x = rand(streams, width).abs() if rng.random() < 0.5 else None
    mask_h = rand(streams, hidden).abs() if rng.random() < 0.5 else None
    return tensors, space, mask_x, mask_h


def run(form: Any, made: Any, **options: Any) -> list[Tensor]:
    """Outputs, and the gradients of inputs, h, first, nodes and weights."""
    tensors, space, mask_x, mask_h = made
    inputs, h, first, nodes, weights = leaves = [t.clone().requires_grad_() for t in tensors]
    out = form(inputs, h, first, nodes, space, weights, mask_x, mask_h, **options)
    draws = torch.Generator().manual_seed(0)
    gradient = torch.randn(out.shape, dtype=DOUBLE, generator=draws).to(out.dtype)
    return [out, *torch.autograd.grad((out * gradient).sum(), leaves)]


def only(weights: Tensor, paths: Paths) -> Tensor:
    kept = torch.zeros_like(weights)
    for edge, op in paths:
        kept[edge, op] = weights[edge, op]
    return kept


SCALAR = {
    "tanh": torch.tanh, "relu": lambda z: z.clamp(min=0), "identity": lambda z: z,
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
}  # fmt: skip


def by_definition(made: Any, paths: Paths | None) -> Tensor:
    """The outputs unit by unit, from the definition alone."""
    (inputs, h, first, nodes, weights), space, mask_x, mask_h = made
    units, hidden = nodes.shape[1], h.shape[1]
    outputs = []
    for x in inputs:
        inner = torch.cat([x if mask_x is None else x * mask_x,
                           h if mask_h is None else h * mask_h], 1) @ first  # fmt: skip
        states = [h + inner[:, :hidden].sigmoid() * (inner[:, hidden:].tanh() - h)]
        states[0] = torch.nn.functional.batch_norm(states[0], None, None, training=True)
        for node in range(space.nodes):
            total = torch.zeros_like(h)
            for edge in space.rows(node):
                s = states[space.edges[edge][0]]
                taken = (s if mask_h is None else s * mask_h)[:, :units]
                for o, op in enumerate(space.ops):
                    if op == "none" or (paths is not None and (edge, o) not in paths):
                        continue
                    for unit in range(hidden):
                        value = s[:, unit]
                        if unit < units:
                            gate = 1 / (1 + (-taken @ nodes[node][:, unit]).exp())
                            new = SCALAR[op](taken @ nodes[node][:, units + unit])
                            value = value + gate * (new - value)
                        total[:, unit] = total[:, unit] + weights[edge, o] * value
            normal = torch.nn.functional.batch_norm(total, None, None, training=True)
            shift = units if units < hidden else 0
            states.append(normal[:, [(unit - shift) % hidden for unit in range(hidden)]])
        h = sum(states[1:]) / space.nodes
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("partial", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_reference_by_definition(seed: int, partial: int) -> None:
    made = case(seed, partial)
    for paths in (None, draw_paths(made[1], random.Random(seed))):
        (inputs, h, first, nodes, weights), space, mask_x, mask_h = made
        got = search_cell.unroll_reference(
            inputs, h, first, nodes, space, weights, mask_x, mask_h, paths=paths
        )
        torch.testing.assert_close(got, by_definition(made, paths), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("partial", [1, 2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_forms_agree_on_paths_and_on_a_part_of_the_units(seed: int, partial: int) -> None:
    made = case(seed + 100, partial)
    paths = draw_paths(made[1], random.Random(seed)) if seed % 4 else None
    expected = run(FORMS[0], made, paths=paths)
    for form in FORMS[1:]:
        for got, wanted in zip(run(form, made, paths=paths), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_paths_equal_weights_of_zero_elsewhere(seed: int) -> None:
    """Values and gradients of the whole computation; weights that are skipped get exactly 0."""
    tensors, *rest = case(seed + 200)
    paths = draw_paths(rest[0], random.Random(seed))
    kept = only(tensors[4], paths)
    for form in FORMS:
        *whole, whole_weights = run(form, ([*tensors[:4], kept], *rest))
        *got, weights = run(form, (tensors, *rest), paths=paths)
        for one, other in zip(got, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(weights, only(whole_weights, paths), rtol=1e-8, atol=1e-9)
        skipped = weights[only(torch.ones_like(weights), paths) == 0]
        assert bool((skipped == 0).all())


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_blocks_of_any_size_agree(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(301, 2, nodes=6)
    expected = run(search_cell.unroll_reference, made)
    monkeypatch.setattr(fused_mixed, "BLOCK", block)
    for got, wanted in zip(run(fused_mixed.unroll, made), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


def test_operations_in_another_order() -> None:
    """`values` of the backward pass has its rows by operation: the identity may stand anywhere."""
    tensors, _, mask_x, mask_h = case(302, nodes=3)
    space = CellSpace(inputs=1, nodes=3, ops=("identity", "none", "tanh", "relu"), keep=1)
    tensors[4] = tensors[4][:, :4]
    made = tensors, space, mask_x, mask_h
    expected = run(search_cell.unroll_reference, made)
    for got, wanted in zip(run(fused_mixed.unroll, made), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


def test_paths_without_gradients() -> None:
    (inputs, h, first, nodes, weights), space, mask_x, mask_h = case(203)
    paths = draw_paths(space, random.Random(1))
    with torch.no_grad():
        outs = [
            form(inputs, h, first, nodes, space, weights, mask_x, mask_h, paths=paths)
            for form in FORMS
        ]
    for got in outs[1:]:
        torch.testing.assert_close(got, outs[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_nodes_without_a_path_are_refused_and_none_alone_is_a_zero_state(form: Any) -> None:
    made = case(204, nodes=2)
    with pytest.raises(UsageError, match="node 2 has no path"):
        run(form, made, paths=((0, 1),))
    with pytest.raises(UsageError, match=r"path \(3, 1\)"):
        run(form, made, paths=((0, 1), (1, 1), (3, 1)))
    (inputs, h, first, nodes, weights), space, *masks = made
    zeros = form(inputs, h, first, nodes, space, weights, *masks, paths=((0, 0), (1, 0)))
    assert bool((zeros == 0).all())
    # `none` beside a path adds nothing.
    plain, beside = ((0, 1), (2, 3)), ((0, 1), (1, 0), (2, 0), (2, 3))
    one, other = run(form, made, paths=plain), run(form, made, paths=beside)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def flops(form: Any, made: Any, paths: Paths | None) -> int:
    with FlopCounterMode(display=False) as counter:
        run(form, made, paths=paths)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("form", FORMS)
def test_the_number_of_products_falls_with_the_paths(
    form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 node products a step and direction for all paths, 8 for one a node, 15 for two."""
    # What one call of kernels multiplies is not counted.
    monkeypatch.setattr(mixture_whole, "suits", lambda *args, **low: False)
    made = case(7, nodes=8)
    (inputs, h, first, nodes, _), space, _, _ = made
    steps, streams, _ = inputs.shape
    hidden = h.shape[1]
    product = 2 * streams * hidden * 2 * hidden * steps * 3  # forward, to inputs, to weights
    rows = [space.rows(i) for i in range(8)]
    one = tuple((r[-1], 1 + i % 4) for i, r in enumerate(rows))
    two = tuple(sorted({(r[k], 1 + (i + k) % 4) for i, r in enumerate(rows) for k in (0, -1)}))
    counts = [flops(form, made, paths) for paths in (one, two, None)]
    # Without kernels the fast form adds the P s by a product too, of 2 B H a step and edge.
    plain = form is fused_mixed.unroll and not cpu_library.usable(h)
    own = 2 * streams * hidden * steps if plain else 0
    assert counts[1] - counts[0] == (15 - 8) * (product + own)  # node 1 has one predecessor
    assert counts[2] - counts[0] == (36 - 8) * (product + own)


def test_an_operation_in_no_path_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(8, nodes=4)
    paths = tuple((e, 3) for e in range(10))
    seen: set[str] = set()
    real = mixture_cpu._activate

    def watched(op: str, *rest: Tensor) -> Tensor:
        seen.add(op)
        return real(op, *rest)

    monkeypatch.setattr(mixture_cpu, "_activate", watched)
    without_kernels(monkeypatch)
    run(fused_mixed.unroll, made, paths=paths)
    assert seen == {"sigmoid", "tanh"}  # tanh is the first state's


# Rounded products


def relative(got: Tensor, wanted: Tensor) -> float:
    return float(((got - wanted).norm() / wanted.norm()).detach())


@pytest.mark.parametrize("partial", [1, 2])
def test_rounded_products_stay_close(partial: int) -> None:
    """bfloat16 keeps 8 bits: an error of a percent or so; a wrong transpose would be of order 1."""
    draws = torch.Generator().manual_seed(3)
    units, hidden, streams, width, steps = 24 // partial, 24, 16, 12, 3

    def rand(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=draws)

    space = recurrent_space(5)
    tensors = [
        rand(steps, streams, width), rand(streams, hidden),
        rand(width + hidden, 2 * hidden, scale=0.2), rand(5, units, 2 * units, scale=0.2),
        rand(15, 5).softmax(-1),
    ]  # fmt: skip
    made = tensors, space, rand(streams, width).abs(), rand(streams, hidden).abs()
    for paths in (None, draw_paths(space, random.Random(2))):
        exact = run(fused_mixed.unroll, made, paths=paths)
        rounded = run(fused_mixed.unroll, made, paths=paths, low=True)
        for got, wanted in zip(rounded, exact, strict=True):
            assert got.dtype == torch.float32
            assert 1e-5 < relative(got, wanted) < 0.04


def test_project_rounded_and_exact() -> None:
    draws = torch.Generator().manual_seed(0)
    inputs, matrix = torch.randn(4, 5, 6, generator=draws), torch.randn(6, 7, generator=draws)
    gradient = torch.randn(4, 5, 7, generator=draws)
    expected = torch.einsum("tbd,dw->tbw", inputs, matrix)
    of_inputs = torch.einsum("tbw,dw->tbd", gradient, matrix)
    of_matrix = torch.einsum("tbd,tbw->dw", inputs, gradient)
    for low, least, most in ((False, 0.0, 1e-6), (True, 1e-5, 0.02)):
        x, w = inputs.clone().requires_grad_(), matrix.clone().requires_grad_()
        out = project(x, w, low)
        grads = torch.autograd.grad((out * gradient).sum(), (x, w))
        for got, wanted in zip((out, *grads), (expected, of_inputs, of_matrix), strict=True):
            assert got.dtype == torch.float32 and got.shape == wanted.shape
            assert least <= relative(got, wanted) < most


# In the network


def network(**settings: Any) -> tuple[RecurrentLM, Batch, dict[str, Mixture], torch.Generator]:
    draws = torch.Generator().manual_seed(0)
    net = RecurrentLM(
        ModelConfig(hidden=12, nodes=3, **settings), 50, recurrent_space(3),
        noise=NoiseConfig(dropouth=0.2), penalty=PenaltyConfig(), generator=draws,
    )  # fmt: skip
    words = torch.randint(50, (6, 8), generator=draws)
    weights = torch.randn(6, 5, generator=draws).softmax(-1)
    return net, Batch(words[:-1], words[1:]), {RECURRENT: Mixture(weights)}, draws


def test_the_networks_cell_rounds_in_training_only_and_never_in_its_float32_twin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the finite difference sees (`in_float32`) rounds nothing, nor does evaluation."""
    net, batch, mixtures, draws = network(precision="bfloat16")
    noise = net.noise(batch, draws)
    seen: list[bool] = []
    real = fused_mixed.unroll

    def watched(*args: Any, **options: Any) -> Tensor:
        seen.append(options["low"])
        return real(*args, **options)

    monkeypatch.setattr(fused_mixed, "unroll", watched)
    values = [
        float(n(batch, None, mixtures, masks).value.detach())
        for n, masks in ((net, noise), (net.in_float32(), noise), (net, None))
    ]
    assert seen == [True, False, False]
    assert values[0] == pytest.approx(values[1], rel=1e-2)
    net.double()
    net(batch, None, {RECURRENT: Mixture(mixtures[RECURRENT].weights.double())}, None)
    assert seen[-1] is False


@pytest.mark.parametrize("partial", [1, 3])
def test_networks_of_every_path_agree_on_paths(partial: int) -> None:
    results = []
    for path in ("reference", "eager", "fast"):
        net, batch, mixtures, _ = network(path=path, partial=partial, precision="float32")
        assert net.nodes.shape == (3, 12 // partial, 24 // partial)
        weights = mixtures[RECURRENT].weights.requires_grad_()
        mixture = Mixture(weights, ((0, 1), (1, 4), (2, 2), (5, 3)))
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(10)
        loss = net(batch, None, {RECURRENT: mixture}, None).value
        grads = torch.autograd.grad(loss, [weights, *net.parameters()])
        results.append([loss, *grads])
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_partial_is_checked() -> None:
    with pytest.raises(UsageError, match=r"model\.partial = 5"):
        ModelConfig(hidden=12, partial=5)
    with pytest.raises(UsageError, match=r"model\.partial = 0"):
        ModelConfig(hidden=12, partial=0)
    flags = {"corpus": "ptb", "genotype": "DARTS_V2"}
    with pytest.raises(UsageError, match=r"model\.partial = 2 is for searches"):
        resolve("train", preset="quick", file=None, settings=["model.partial=2"], flags=flags)
    made = resolve(
        "search", preset="quick", file=None, settings=["model.partial=2"], flags={"corpus": "ptb"}
    )
    assert made.model.partial == 2
