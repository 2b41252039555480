"""The kernels for devices, run by Triton's interpreter where there is no card."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_kernels_derived import case, one_op
from torch import Tensor

from rnnnas.distributed import ALONE
from rnnnas.lm import loss
from rnnnas.lm.cell import unroll as reference
from rnnnas.lm.fast import derived, derived_cuda, mixture, mixture_cuda, triton_support
from rnnnas.lm.fast.buffers import Workspace
from rnnnas.lm.fast.triton_support import padded, table, usable, wide
from rnnnas.lm.search_cell import unroll_reference
from rnnnas.nas.space import CellSpace, recurrent_space

pytest.importorskip("triton", reason="needs Triton: pip install -e '.[gpu-tests]'")
CARD = torch.cuda.is_available()
# Of float64 the interpreter takes products as they are; a card's kernels know float32 only.
DEVICE = torch.device("cuda" if CARD else "cpu")
TYPE = torch.float32 if CARD else torch.float64
CLOSE = {"rtol": 1e-3, "atol": 1e-5} if CARD else {"rtol": 1e-9, "atol": 1e-9}
# numpy, which the interpreter computes by, warns of what becomes infinite or no number.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Sizes of a few units then end within a tile, or need several."""
    # Whatever is asked for here is asked for by a test that wants the kernels.
    for module in (derived, mixture, loss):
        monkeypatch.setattr(module.triton_support, "usable", lambda *tensors: True)
    if request.node.get_closest_marker("gpu"):  # as they are shipped
        yield
        return
    flat = {"ROWS": 16, "UNITS": 16}
    product = {**flat, "DEEP": 16}
    monkeypatch.setattr(triton_support, "TILE", 16)
    monkeypatch.setattr(derived_cuda, "TILE", 16)
    monkeypatch.setattr(mixture_cuda, "STRIP", {"UNITS": 8})
    monkeypatch.setattr(mixture_cuda, "BLOCK", {"ROWS": 4, "UNITS": 16})
    for module in (derived_cuda, mixture_cuda):
        monkeypatch.setattr(module, "FLAT", {"ROWS": 4, "UNITS": 16})
        for name in ("PRODUCT", "BACK", "WHOLE", "WHOLE_BACK"):
            monkeypatch.setattr(module, name, product)
    yield


def on(made: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(part.to(DEVICE) if isinstance(part, Tensor) else part for part in made)


def gradients(form: Any, made: tuple[Any, ...]) -> list[Tensor]:
    """The outputs and the gradients of all tensors, under a fixed gradient of the outputs."""
    return weighed([leaf.clone().requires_grad_() for leaf in made[:4]], form, made[4:], {})


def weighed(leaves: list[Tensor], form: Any, rest: Any, options: dict[str, Any]) -> list[Tensor]:
    out = form(*leaves[:4], *rest, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


SIZES = [
    {"steps": 2}, {"mask": False, "steps": 2},
    {"streams": 1, "hidden": 1, "nodes": 1, "steps": 1},
    {"streams": 18, "hidden": 17, "nodes": 4, "steps": 1},
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_a_derived_cell_equals_the_readable_one(size: dict[str, Any]) -> None:
    made = on(case(len(size), TYPE, **size))
    found, expected = gradients(derived.unroll, made), gradients(reference, made)
    assert len(found) == 5 and all(torch.isfinite(tensor).all() for tensor in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("op", ["tanh", "relu", "sigmoid", "identity"])
def test_every_operation(op: str) -> None:
    made = list(on(case(3, TYPE, nodes=6, steps=1)))
    made[4] = one_op(op)
    for one, other in zip(
        gradients(derived.unroll, tuple(made)), gradients(reference, tuple(made)), strict=True
    ):
        torch.testing.assert_close(one, other, **CLOSE)


def test_without_gradients_a_derived_cell_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived_cuda, "WORKSPACE", workspace := Workspace())
    made = on(case(1, TYPE, steps=3, nodes=2))
    with torch.no_grad():
        torch.testing.assert_close(derived.unroll(*made), reference(*made), **CLOSE)
    alone = workspace.held()
    assert alone > 0
    gradients(derived.unroll, made)
    assert workspace.held() > 1.5 * alone, "all steps are kept for the way back"


def test_a_derived_cell_goes_back_once() -> None:
    made = on(case(1, TYPE, steps=1, nodes=2))
    leaf = made[1].clone().requires_grad_()
    out = derived.unroll(made[0], leaf, *made[2:]).sum()
    torch.autograd.grad(out, leaf, retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(out, leaf)


def search(
    seed: int, *, streams: int = 5, hidden: int = 6, units: int = 6, steps: int = 2,
    nodes: int = 3, mask: bool = True, some: bool = False,
) -> tuple[list[Tensor], CellSpace, tuple[Any, Any], Any]:  # fmt: skip
    """inputs, h, first, nodes, mixture; the space; masks; paths, of `some` edges and operations."""
    draws, rng = torch.Generator().manual_seed(seed), random.Random(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64).to(DEVICE, TYPE)

    space = recurrent_space(nodes)
    count = (len(space.edges), len(space.ops))
    leaves = [
        rand(steps, streams, 4), rand(streams, hidden), rand(4 + hidden, 2 * hidden),
        rand(nodes, units, 2 * units), torch.softmax(rand(*count), -1),
    ]  # fmt: skip
    masks = (rand(streams, 4).abs(), rand(streams, hidden).abs()) if mask else (None, None)
    if not some:
        return leaves, space, masks, None
    paths = []
    for node in range(nodes):
        for edge in rng.sample([*space.rows(node)], rng.randint(1, node + 1)):
            paths += [(edge, op) for op in rng.sample(range(count[1]), rng.randint(1, 3))]
    return leaves, space, masks, paths


def searched(form: Any, made: tuple[Any, ...]) -> list[Tensor]:
    leaves, space, masks, paths = made
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    return weighed(leaves, form, (space, leaves[4], *masks), {"paths": paths})


SEARCHES = [
    {}, {"some": True, "nodes": 4}, {"units": 3, "some": True}, {"units": 2, "mask": False},
    {"streams": 18, "hidden": 34, "units": 17, "steps": 1, "nodes": 1},
]  # fmt: skip


@pytest.mark.parametrize("size", SEARCHES)
def test_a_mixture_equals_the_readable_one(
    size: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture, "_MixedUnroll", None)
    made = search(7, **size)
    found, expected = searched(mixture.unroll, made), searched(unroll_reference, made)
    assert len(found) == 6 and all(torch.isfinite(tensor).all() for tensor in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("units", [6, 3])
def test_a_node_that_computes_nothing_is_zero(units: int) -> None:
    leaves, space, masks, _ = search(3, nodes=2, units=units)
    none = space.ops.index("none")
    made = (leaves, space, masks, [(0, none), (1, 1), (2, 2)])
    for one, other in zip(
        searched(mixture.unroll, made), searched(unroll_reference, made), strict=True
    ):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_mixture_without_gradients_and_without_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_cuda, "WORKSPACE", workspace := Workspace())
    leaves, space, masks, _ = search(5, nodes=2)
    args = (*leaves[:4], space, leaves[4], *masks)
    with torch.no_grad():
        torch.testing.assert_close(mixture.unroll(*args), unroll_reference(*args), **CLOSE)
    assert workspace.held() > 0
    nodes = leaves[3].clone().requires_grad_()  # a weight step: the mixture is fixed
    out = [form(*leaves[:3], nodes, space, leaves[4], *masks).sum()
           for form in (mixture.unroll, unroll_reference)]  # fmt: skip
    one, other = (torch.autograd.grad(total, nodes)[0] for total in out)
    torch.testing.assert_close(one, other, **CLOSE)


def test_more_streams_than_a_strip_holds_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_cuda, "STREAMS", 4)
    monkeypatch.setattr(mixture, "DeviceMixed", None)
    leaves, space, masks, _ = search(2)
    args = (*leaves[:4], space, leaves[4], *masks)
    torch.testing.assert_close(mixture.unroll(*args), unroll_reference(*args), **CLOSE)


def test_statistics_of_several_processes_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(type(ALONE)):  # type: ignore[misc]  # that have the same streams
        size = 2

        def __init__(self) -> None:
            pass

        def mean(self, tensor: Tensor) -> Tensor:
            asked.append(tensor)
            return tensor

    asked: list[Tensor] = []
    monkeypatch.setattr(mixture, "DeviceMixed", None)
    leaves, space, masks, _ = search(2)
    args = (*leaves[:4], space, leaves[4], *masks)
    found = mixture.unroll(*args, ranks=Two())
    torch.testing.assert_close(found, unroll_reference(*args), **CLOSE)
    assert asked


@pytest.mark.parametrize("words", [5, 64, 131])
@pytest.mark.parametrize("wanted", [False, True])
def test_losses(words: int, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "WORDS", 64)
    draws = torch.Generator().manual_seed(words)
    logits = (4 * torch.randn(7, words, generator=draws, dtype=torch.float64)).to(DEVICE, TYPE)
    bias = torch.randn(words, generator=draws, dtype=torch.float64).to(DEVICE, TYPE)
    targets = torch.randint(words, (7,), generator=draws).to(DEVICE)
    whole = (logits + bias).requires_grad_()
    expected = F.cross_entropy(whole, targets, reduction="sum")
    place = logits.clone()
    nats = loss._on_device(place, bias, targets, 0.3, wanted)
    torch.testing.assert_close(nats.to(TYPE), expected.detach(), **CLOSE)
    (gradient,) = torch.autograd.grad(0.3 * expected, whole)
    torch.testing.assert_close(place, gradient if wanted else logits, **CLOSE)


def test_losses_of_what_is_no_number_or_no_word() -> None:
    logits = torch.zeros(4, 6, dtype=TYPE, device=DEVICE)
    logits[1, 2], logits[2, 0], logits[3, 1] = torch.nan, torch.inf, -torch.inf
    bias = torch.zeros(6, dtype=TYPE, device=DEVICE)
    for row, target, sound in ((0, 5, True), (0, 6, False), (0, -1, False), (1, 0, False),
                               (2, 1, False), (3, 0, True)):  # fmt: skip
        place = logits[row : row + 1].clone()
        nats = loss._on_device(place, bias, torch.tensor([target], device=DEVICE), 1.0, True)
        assert bool(torch.isfinite(nats)) is sound, (row, target)


def test_the_whole_loss_takes_them_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "DEVICE_CHUNK", 4)
    draws = torch.Generator().manual_seed(0)
    leaves = [torch.randn(*shape, generator=draws, dtype=torch.float64).to(DEVICE, TYPE)
              for shape in ((10, 5), (9, 5), (9,))]  # fmt: skip
    targets = torch.randint(9, (10,), generator=draws).to(DEVICE)
    found = []
    for form in (loss.cross_entropy, loss.cross_entropy_reference):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        value = form(*own, targets)
        found.append([value.detach(), *torch.autograd.grad(2 * value, own)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_padding() -> None:
    matrices = torch.arange(1.0, 37.0).view(2, 3, 6)
    whole = padded(matrices, torch.bfloat16)
    assert whole.shape == (2, 16, 2, 16) and whole.dtype == torch.bfloat16
    assert torch.equal(whole[:, :3, :, :3].reshape(2, 3, 6).float(), matrices)
    assert whole.float().sum() == matrices.sum(), "zeros about them"
    assert [wide(units) for units in (1, 16, 17)] == [16, 16, 32]


def test_tables_are_copied_once() -> None:
    assert table((1, 2), DEVICE) is table((1, 2), DEVICE)
    assert table((1, 2), DEVICE).dtype == torch.int32
    assert table((1.0, 2.0), DEVICE).dtype == torch.float32
    assert table(((0.5, 1.0), (2.0, 3.0)), DEVICE).tolist() == [[0.5, 1.0], [2.0, 3.0]]


def test_what_the_kernels_take() -> None:
    here = torch.zeros(2)
    assert usable(here) is False and usable(here, here.double()) is False, "tensors of a CPU"


class Counted(Workspace):
    """Knows which buffers are out."""

    def __init__(self) -> None:
        super().__init__()
        self.out: set[int] = set()
        self.most = 0

    def take(self, like: Tensor, *shape: int) -> Tensor:
        buffer = super().take(like, *shape)
        self.out.add(buffer.data_ptr())
        self.most = max(self.most, len(self.out))
        return buffer

    def give(self, *buffers: Tensor) -> None:
        for buffer in buffers:
            self.out.remove(buffer.data_ptr())
        super().give(*buffers)


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Counted()
    for module in (derived_cuda, mixture_cuda, loss):
        monkeypatch.setattr(module, "WORKSPACE", workspace)
    gradients(derived.unroll, on(case(1, TYPE, steps=1, nodes=2)))
    searched(mixture.unroll, search(1, steps=1, nodes=1))
    assert workspace.most > 5 and not workspace.out


def test_a_depth_that_does_not_divide_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    tile = {"ROWS": 16, "UNITS": 16, "DEEP": 32}
    for name in ("PRODUCT", "WHOLE"):
        monkeypatch.setattr(derived_cuda, name, tile)
    made = on(case(2, TYPE, hidden=33, steps=1, nodes=1))  # 48 with its zeros
    for one, other in zip(gradients(derived.unroll, made), gradients(reference, made), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert tile["DEEP"] == 32


class Apart(Workspace):
    """Buffers whose slots lie so far apart that the last begins beyond 2^31 elements."""

    def take(self, like: Tensor, *shape: int) -> Tensor:
        if len(shape) < 4 or shape[0] == 1:  # one slot, or none
            return like.new_empty(shape)
        strides = like.new_empty(shape[1:]).stride()
        # Pages that nothing is written to take no memory.
        return like.new_empty_strided(shape, (2**31 // (shape[0] - 1) + 1, *strides))

    def give(self, *buffers: Tensor) -> None:
        pass


@pytest.mark.skipif(CARD, reason="a card has no pages that take no memory")
def test_slots_beyond_what_an_int32_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (derived_cuda, mixture_cuda):
        monkeypatch.setattr(module, "WORKSPACE", Apart())
    made = on(case(3, torch.float32, steps=1, nodes=4))
    for one, other in zip(gradients(derived.unroll, made), gradients(reference, made), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    leaves, *rest = search(2, steps=1, nodes=3)
    made = ([leaf.float() for leaf in leaves], rest[0], tuple(m.float() for m in rest[1]), rest[2])
    for one, other in zip(
        searched(mixture.unroll, made), searched(unroll_reference, made), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Why there are none


def test_why_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    here, found = triton_support.reason.__wrapped__, [True]
    card = torch.device("cuda:0")
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: found[0] or None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    capability = (8, 6)

    def fails(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify")

    monkeypatch.setattr(triton_support, "_try_one", lambda device: None)
    assert here(card) == ""
    monkeypatch.setattr(triton_support, "_try_one", fails)
    assert here(card) == "Failed to find C compiler."
    capability = (7, 5)
    assert "8.0" in here(card)
    found[0] = False
    assert "not installed" in here(card)
    monkeypatch.setenv("RNNNAS_KERNELS", "off")
    assert here(card) == "RNNNAS_KERNELS says so"


def test_one_is_tried() -> None:
    triton_support._try_one(DEVICE)


# On a card, as they are shipped


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative one of all."""
    return max(
        float((one.double() - other).norm() / other.norm())
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not CARD, reason="needs a CUDA device")
@pytest.mark.parametrize("hidden", [300, 850])
@pytest.mark.parametrize(("low", "most"), [(False, 1e-5), (True, 5e-2)])
def test_shipped_tiles_of_a_derived_cell(hidden: int, low: bool, most: float) -> None:
    made = on(case(1, torch.float32, streams=33, hidden=hidden, steps=3, nodes=8))
    made = (*(0.1 * tensor for tensor in made[:3]), *made[3:])
    precise = tuple(p.double() if isinstance(p, Tensor) else p for p in made)
    expected = gradients(reference, precise)
    found = gradients(lambda *args: derived.unroll(*args, low=low), made)
    assert error(found, expected) < most


@pytest.mark.gpu
@pytest.mark.skipif(not CARD, reason="needs a CUDA device")
@pytest.mark.parametrize("units", [300, 150])
@pytest.mark.parametrize(("low", "most"), [(False, 1e-3), (True, 5e-2)])
def test_shipped_tiles_of_a_mixture(units: int, low: bool, most: float) -> None:
    leaves, space, masks, paths = search(
        1, streams=65, hidden=300, units=units, nodes=4, mask=False
    )
    leaves = [0.1 * leaf for leaf in leaves[:4]] + leaves[4:]
    double = ([leaf.double() for leaf in leaves], space, masks, paths)
    expected = searched(unroll_reference, double)
    found = searched(
        lambda *args, paths: mixture.unroll(*args, paths=paths, low=low),
        (leaves, space, masks, paths),
    )
    assert error(found, expected) < most
