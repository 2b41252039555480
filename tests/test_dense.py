"""Dense blocks: the space, the network against a plain loop, deriving, genotypes, drawings."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_chain import chains
from torch import Tensor

from rnnnas.cnn.dense.genotype import Part, genotype_of_parts, is_dense, mbconv_sizes, parts_of
from rnnnas.cnn.dense.network import DenseNet, derived_network
from rnnnas.cnn.dense.space import LAYERS, ROUTES, DenseConfig, Layout
from rnnnas.cnn.model import CnnConfig, ConvNet
from rnnnas.cnn.noise import SILENCE
from rnnnas.cnn.space import check_genotype
from rnnnas.cnn.zoo import ZOO
from rnnnas.draw import images as raster
from rnnnas.draw import text_svg_dot
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.methods import METHODS
from rnnnas.nas.relax.base import Mixture
from rnnnas.types import Batch

DOUBLE = torch.float64
SMALL = DenseConfig(
    stem=3, widths=(3, 4, 4, 5), scales=(1, 2, 2, 4), layers=1, reach=3, kernels=(3, 5),
    expansions=(1, 2), end=6,
)  # fmt: skip
LAYOUT = Layout(SMALL)
FOUND = genotype_of_parts(
    [
        Part("stem", 0, 3, 1, ("conv_3x3",)),
        Part("block", 2, 4, 2, ("mbconv_5x5_e2", "mbconv_3x3_e1")),
        Part("block", 10, 5, 2, ("mbconv_3x3_e2",)),
        Part("end", 0, 6, 1, ("conv_1x1",)),
    ]
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net_of(blocks: Any = LAYOUT, **settings: Any) -> DenseNet:
    return DenseNet(CnnConfig(**settings), blocks, 5, generator=seeded(0)).double()


def batch(size: int = 9) -> Batch:
    draws = seeded(3)
    images = torch.randn(4, 3, size, size, dtype=DOUBLE, generator=draws)
    return Batch(images, torch.randint(5, (4,), generator=draws))


def softmaxes(seed: int = 1) -> dict[str, Mixture]:
    draws = seeded(seed)
    mixtures = {}
    for name, space in LAYOUT.spaces().items():
        logits = torch.randn(space.nodes, len(space.ops), dtype=DOUBLE, generator=draws)
        logits = logits.masked_fill(~torch.tensor(space.allowed), -torch.inf)
        mixtures[name] = Mixture(logits.softmax(-1).requires_grad_())
    return mixtures


def test_the_layers_and_routes_of_the_space() -> None:
    heads = {(x.source, x.block): (x.inputs, x.outputs, x.stride, x.scale)
             for x in LAYOUT.layers if x.head}  # fmt: skip
    # From the stem, 0, at most one halving: not to block 4.
    assert heads == {
        (0, 1): (3, 3, 1, 1), (0, 2): (3, 4, 2, 1), (0, 3): (3, 4, 2, 1), (1, 2): (3, 4, 2, 1),
        (1, 3): (3, 4, 2, 1), (2, 3): (4, 4, 1, 2), (2, 4): (4, 5, 2, 2), (3, 4): (4, 5, 2, 2),
    }  # fmt: skip
    assert sum(not x.head for x in LAYOUT.layers) == 4 and len(LAYOUT.layers) == 12
    spaces = LAYOUT.spaces()
    assert spaces[LAYERS].ops == (
        "mbconv_3x3_e1", "mbconv_3x3_e2", "mbconv_5x5_e1", "mbconv_5x5_e2", "skip_connect",
    )  # fmt: skip
    assert [row[4] for row in spaces[LAYERS].allowed] == [not x.head for x in LAYOUT.layers]
    assert spaces[ROUTES].allowed == (
        (True, True, True), (True, True, False), (True, True, False), (True, False, False),
    )  # fmt: skip
    assert spaces[LAYERS].drawn and not spaces[ROUTES].drawn
    near = Layout(DenseConfig(widths=(8, 8, 8), scales=(1, 1, 1), reach=1))
    assert [(x.source, x.block) for x in near.layers if x.head] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (16, 8), "scales": (1, 1)}, "must not fall"),
        ({"widths": (8, 16), "scales": (1,)}, "must have 2 values"),
        ({"widths": (8, 16), "scales": (1, 4)}, "twice the one before"),
        ({"widths": (8, 16), "scales": (4, 4)}, "twice the one before"),
        ({"widths": (), "scales": ()}, "dense.widths"),
        ({"kernels": (4,)}, "must be odd"),
        ({"kernels": (3, 3)}, "each once"),
        ({"expansions": (0,)}, "dense.expansions"),
        ({"reach": 0}, "dense.reach = 0"),
        ({"layers": -1}, "dense.layers"),
    ],
)
def test_sizes_that_make_no_space_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DenseConfig(**settings)


# The network, from its definition


def normal(x: Tensor) -> Tensor:
    """Every channel to mean 0 and variance 1 over the batch."""
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / ((x - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def scaled(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    out = normal(x)
    if f"{name}.weight" in weights:
        out = (
            out * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]
        )
    return out


def clipped(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


def inverted(x: Tensor, weights: Mapping[str, Tensor], at: str, op: str, stride: int) -> Tensor:
    kernel = int(op.split("_")[1][0])
    out = torch.einsum("bchw,dc->bdhw", x, weights[f"{at}.widen.weight"][:, :, 0, 0])
    out = clipped(scaled(out, weights, f"{at}.first"))
    padded = F.pad(out, [kernel // 2] * 4)
    h, w = (math.ceil(n / stride) for n in x.shape[2:])
    filters = weights[f"{at}.depthwise.weight"][:, 0]
    total = torch.zeros(*out.shape[:2], h, w, dtype=DOUBLE)
    for u, v in itertools.product(range(kernel), repeat=2):
        seen = padded[:, :, u:, v:][:, :, ::stride, ::stride][:, :, :h, :w]
        total = total + filters[:, u, v, None, None] * seen
    out = clipped(scaled(total, weights, f"{at}.second"))
    out = torch.einsum("bchw,dc->bdhw", out, weights[f"{at}.narrow.weight"][:, :, 0, 0])
    out = scaled(out, weights, f"{at}.third")
    return out + x if out.shape == x.shape and stride == 1 else out


def finished(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    out = torch.einsum("bchw,dc->bdhw", x, weights["end.conv.weight"][:, :, 0, 0])
    out = clipped(scaled(out, weights, "end.norm")).mean((2, 3))
    return out @ weights["classifier.weight"].T + weights["classifier.bias"]


def begun(images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return clipped(
        scaled(F.conv2d(images, weights["stem.conv.weight"], padding=1), weights, "stem.norm")
    )


def plainly(net: DenseNet, images: Tensor, mixtures: Mapping[str, Mixture]) -> Tensor:
    """Scores under mixtures, by plain sums: every operation of every layer."""
    weights = dict(net.named_parameters())
    layers, routes = mixtures[LAYERS].weights, mixtures[ROUTES].weights

    def mixed(row: int, x: Tensor) -> Tensor:
        total: Any = 0
        for o, op in enumerate(LAYOUT.ops):
            if op != "skip_connect":
                stride = LAYOUT.layers[row].stride
                total = total + layers[row, o] * inverted(
                    x, weights, f"layers.{row}.{op}", op, stride
                )
            elif not LAYOUT.layers[row].head:
                total = total + layers[row, o] * x
        return total

    outs = {0: begun(images, weights)}
    for j in (1, 2, 3, 4):
        x: Any = 0
        for row, layer in enumerate(LAYOUT.layers):
            if layer.block == j and layer.head:
                x = x + routes[layer.source, j - layer.source - 1] * mixed(row, outs[layer.source])
        for row, layer in enumerate(LAYOUT.layers):
            if layer.block == j and not layer.head:
                x = mixed(row, x)
        outs[j] = x
    return finished(outs[4], weights)


@pytest.mark.parametrize("path", ["fast", "reference"])
def test_the_network_is_its_definition(path: str) -> None:
    """Scores, loss, and the gradient in every weight and mixture, of an odd image size."""
    net, mixtures, given = net_of(path=path), softmaxes(), batch()
    loss = net(given, None, mixtures, SILENCE)
    leaves = [*net.parameters(), *(m.weights for m in mixtures.values())]
    grads = torch.autograd.grad(loss.objective, leaves)
    scores = plainly(net, given.inputs, mixtures)
    log_p = scores - scores.logsumexp(1, keepdim=True)
    value = -log_p[torch.arange(4), given.targets].mean()
    wanted = torch.autograd.grad(value, leaves)
    torch.testing.assert_close(net.logits(given.inputs, mixtures), scores)
    torch.testing.assert_close(loss.value, value)
    for name, grad, other in zip(
        [n for n, _ in net.named_parameters()], grads, wanted, strict=False
    ):
        torch.testing.assert_close(grad, other, rtol=1e-6, atol=1e-9, msg=name)
    torch.testing.assert_close(grads[-2:], wanted[-2:], rtol=1e-6, atol=1e-9)
    assert loss.count == 4 and loss.penalty == 0 and net.noise(given, seeded(1)) == SILENCE


def test_paths_are_computed_and_nothing_else() -> None:
    """Under a draw: as under the same weights with everything computed; other weights unmoved."""
    net, given = net_of(), batch()
    relaxation, spaces = METHODS["densenas"].relaxation(), LAYOUT.spaces()
    alphas = {
        n: a.double().detach().requires_grad_()
        for n, a in relaxation.init(spaces, seeded(1)).items()
    }
    for step in ("weights", "alphas"):
        drawn = relaxation.mix(alphas, spaces, 0.0, seeded(2), step)
        loss = net(given, None, drawn, SILENCE)
        torch.testing.assert_close(
            net.logits(given.inputs, drawn), plainly(net, given.inputs, drawn)
        )
        for p in net.parameters():
            p.grad = None
        loss.objective.backward()
        moved = {n.split(".")[1:3] and tuple(n.split(".")[1:3]) for n, p in net.named_parameters()
                 if n.startswith("layers.") and p.grad is not None}  # fmt: skip
        assert moved == {
            (str(e), LAYOUT.ops[o])
            for e, o in drawn[LAYERS].paths
            if LAYOUT.ops[o] != "skip_connect"
        }


@pytest.mark.parametrize("method", ["darts-1st", "gdas", "proxyless", "fair-darts", "pc-darts"])
def test_other_methods_serve_too(method: str) -> None:
    """One route a block is drawn by some: what it does not reach is left out."""
    net, spaces = net_of(), LAYOUT.spaces()
    relaxation = METHODS[method].relaxation()
    alphas = {
        n: a.double().detach().requires_grad_()
        for n, a in relaxation.init(spaces, seeded(1)).items()
    }
    for seed in range(4):
        drawn = relaxation.mix(alphas, spaces, 0.9, seeded(seed), "alphas")
        wanted = plainly(net, batch().inputs, drawn)
        torch.testing.assert_close(net.logits(batch().inputs, drawn), wanted, rtol=1e-6, atol=1e-8)
    scores = relaxation.scores(alphas, spaces)
    assert is_dense(LAYOUT.derive({n: s.tolist() for n, s in scores.items()}).cells)


def test_a_derived_network_is_its_definition() -> None:
    net, given = net_of(FOUND), batch()
    weights = dict(net.named_parameters())
    with torch.no_grad():
        for name, p in net.named_parameters():
            if ".norm." in name or ".first." in name or ".third." in name:
                p += 0.3 * torch.randn(p.shape, dtype=DOUBLE, generator=seeded(5))
    x = begun(given.inputs, weights)
    for at, (op, stride) in enumerate(
        [("mbconv_5x5_e2", 2), ("mbconv_3x3_e1", 1), ("mbconv_3x3_e2", 2)]
    ):
        x = inverted(x, weights, f"layers.{at}", op, stride)
    value = F.cross_entropy(finished(x, weights), given.targets)
    torch.testing.assert_close(net(given, None, {}, SILENCE).value, value)
    # Evaluation takes the running statistics, which the pass above has moved a tenth of the way.
    assert not torch.allclose(net(given, None, {}, None).value, value)
    smoothed = net_of(FOUND, label_smoothing=0.1)
    loss = smoothed(given, None, {}, SILENCE)
    wanted = F.cross_entropy(
        smoothed._scores(given.inputs, {}, SILENCE), given.targets, label_smoothing=0.1
    )
    torch.testing.assert_close(loss.objective, wanted)
    assert loss.penalty != 0 == smoothed(given, None, {}, None).penalty


def test_the_network_of_a_genotype_is_of_its_kind() -> None:
    for genotype, kind in ((FOUND, DenseNet), (ZOO["DARTS_V2"].genotype, ConvNet)):
        config = CnnConfig(channels=4, layers=3)
        assert type(derived_network(config, genotype, 5, seeded(0))) is kind
    for setting in ({"partial": 2}, {"skip_dropout": 0.1}, {"auxiliary": True}, {"drop_path": 0.1},
                    {"stem": "imagenet"}):  # fmt: skip
        with pytest.raises(UsageError, match="no place in a network of dense blocks"):
            net_of(FOUND, **setting)


# Deriving


@pytest.mark.parametrize("seed", range(6))
def test_the_best_path_is_derived(seed: int) -> None:
    """Against every route in turn, with the largest alpha of every layer on it."""
    tables = {name: m.weights.detach() for name, m in softmaxes(seed).items()}
    best, most = None, -1.0
    for chain in chains(4, 3):
        steps = list(zip(chain, chain[1:], strict=False))
        p = math.prod(float(tables[ROUTES][i, j - i - 1]) for i, j in steps)
        if p > most:
            best, most = steps, p
    assert best is not None and most > 0
    scales = (1, 1, 2, 2, 4)
    parts = [Part("stem", 0, 3, 1, ("conv_3x3",))]
    for i, j in best:
        rows = [r for r, x in enumerate(LAYOUT.layers) if x.block == j and x.source in (i, j)]
        ops = [LAYOUT.ops[int(tables[LAYERS][r].argmax())] for r in rows]
        kept = tuple(op for op in ops if op != "skip_connect")
        parts.append(Part("block", j, SMALL.widths[j - 1], scales[j] // scales[i], kept))
    parts.append(Part("end", 0, 6, 1, ("conv_1x1",)))
    found = LAYOUT.derive({name: table.tolist() for name, table in tables.items()})
    assert parts_of(found) == parts
    net_of(found)(batch(), None, {}, SILENCE).objective.backward()


# Genotypes


def test_a_genotype_comes_back_from_json_in_any_order() -> None:
    plain = json.loads(json.dumps(FOUND.to_plain(), sort_keys=True))
    assert list(plain) != list(FOUND.to_plain())
    read = Genotype.from_plain(plain)
    assert parts_of(read) == parts_of(FOUND) and check_genotype(read) is read
    assert [part.number for part in parts_of(read)] == [0, 2, 10, 0]
    assert not is_dense(ZOO["DARTS_V2"].genotype.cells)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end_w6_s1": None}, "one stem, one end"),
        ({"block3_w4_s3": "block2_w4_s2"}, "'block3_w4_s3' is no part"),
        ({"block2_w9_s1": "block2_w4_s2"}, "each block once"),
        ({"normal": "block2_w4_s2"}, "'normal' is no part"),
        ({"stem_w3_s2": "stem_w3_s1", "stem_w3_s1": None}, "stride 1"),
    ],
)
def test_what_is_no_dense_network_is_refused(change: dict[str, Any], message: str) -> None:
    plain = FOUND.to_plain()
    added = {name: plain[like] for name, like in change.items() if like is not None}
    plain = {n: c for n, c in {**plain, **added}.items() if change.get(n, "") is not None}
    with pytest.raises(UsageError, match=message):
        check_genotype(Genotype.from_plain(plain))


@pytest.mark.parametrize("op", ["sep_conv_3x3", "mbconv_3x5_e3", "mbconv_4x4_e3", "skip_connect"])
def test_unknown_operations_are_refused(op: str) -> None:
    with pytest.raises(UsageError, match=f"no operation '{op}'"):
        mbconv_sizes(op)


def test_it_is_shown_block_by_block() -> None:
    lines = text_svg_dot.as_text(FOUND, "found").splitlines()
    assert lines[:5] == [
        "found", "", "dense network: 2 blocks, 3 layers", "",
        "block  channels   size  operations, one after the other",
    ]  # fmt: skip
    assert lines[5:] == [
        " stem         3      1  conv_3x3",
        "    2         4    1/2  mbconv_5x5_e2, mbconv_3x3_e1",
        "   10         5    1/4  mbconv_3x3_e2",
        "  end         6    1/4  conv_1x1",
    ]
    svg = text_svg_dot.as_svg(FOUND)
    assert "mbconv_5x5_e2" in svg and "x_t" not in svg and "block10_w5_s2" in svg
    assert '"block2_w4_s2/in" -> "block2_w4_s2/s1"' in text_svg_dot.as_dot(FOUND)
    assert raster.cell_image(FOUND).ndim == 3
