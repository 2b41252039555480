"""The image network: published sizes, its loss, its noise, evaluation, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnnnas.cnn.cell import DerivedCell
from rnnnas.cnn.model import CnnConfig, ConvNet, low_precision
from rnnnas.cnn.noise import SILENCE
from rnnnas.cnn.space import image_spaces
from rnnnas.cnn.zoo import ZOO, genotype_of
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.darts import Darts
from rnnnas.types import Batch

DOUBLE = torch.float64
V2 = ZOO["DARTS_V2"].genotype


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net_of(cells: Any, classes: int = 10, seed: int = 0, **settings: Any) -> ConvNet:
    settings = {"channels": 4, "layers": 3, **settings}
    return ConvNet(CnnConfig(**settings), cells, classes, generator=seeded(seed))


def batch_of(size: int = 8, count: int = 4, seed: int = 0, classes: int = 10) -> Batch:
    draws = seeded(seed)
    images = torch.randn(count, 3, size, size, dtype=DOUBLE, generator=draws)
    return Batch(images, torch.randint(classes, (count,), generator=draws))


def mixtures(seed: int = 0, nodes: int = 4) -> dict[str, Mixture]:
    draws = seeded(seed)
    return {
        name: Mixture(
            torch.randn(len(s.edges), 8, dtype=DOUBLE, generator=draws).softmax(-1).requires_grad_()
        )
        for name, s in image_spaces(nodes).items()
    }


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_search_network_has_the_published_number_of_weights() -> None:
    assert count(net_of(image_spaces(), channels=16, layers=8)) == 1_930_618


@pytest.mark.parametrize(
    ("name", "weights", "auxiliary"),
    [("DARTS_V2", 3_349_342, 476_426), ("DARTS_V1", 3_169_414, 476_426)],
)
def test_published_cells_have_the_published_number_of_weights(
    name: str, weights: int, auxiliary: int
) -> None:
    cells = ZOO[name].genotype
    assert count(net_of(cells, channels=36, layers=20)) == weights
    both = net_of(cells, channels=36, layers=20, auxiliary=True)
    assert count(both) == weights + auxiliary and both.side == 13


def test_the_network_for_imagenet_has_the_published_number_of_weights() -> None:
    assert count(net_of(V2, 1000, channels=48, layers=14, stem="imagenet")) == 4_718_752


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", [*ZOO, "random:3", "random:4"])
def test_every_cell_trains_and_evaluates(name: str, stem: Any) -> None:
    size = 32 if stem == "cifar" else 64
    net = net_of(genotype_of(name, 1), 7, layers=4, stem=stem, auxiliary=True, drop_path=0.3)
    net = net.double()
    batch = batch_of(size, classes=7)
    loss = net(batch, None, {}, net.noise(batch, seeded(1)))
    loss.objective.backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and bool(torch.isfinite(p.grad).all()), name
    assert net.logits(batch.inputs).shape == (4, 7)
    assert loss.count == 4 and loss.hidden_state is None


def test_shapes_within_the_network() -> None:
    net = net_of(V2, channels=6, layers=6).double()
    shapes: list[tuple[int, ...]] = []
    for cell in net.cells:
        cell.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    net.logits(batch_of(16).inputs)
    assert [s[1:] for s in shapes] == [
        (24, 16, 16), (24, 16, 16), (48, 8, 8), (48, 8, 8), (96, 4, 4), (96, 4, 4),
    ]  # fmt: skip


def cross_entropy(scores: Tensor, targets: Tensor, smooth: float = 0.0) -> Tensor:
    """-Σ_k q_k log p_k, q = (1 - smooth) at the target + smooth / K everywhere."""
    log_p = scores - scores.exp().sum(1, keepdim=True).log()
    q = torch.full_like(log_p, smooth / scores.shape[1])
    q[torch.arange(len(targets)), targets] += 1 - smooth
    return -(q * log_p).sum(1).mean()


def test_the_loss_is_the_cross_entropy_and_training_adds_the_rest_as_penalty() -> None:
    net = net_of(V2, auxiliary=True, label_smoothing=0.1, auxiliary_weight=0.3).double()
    batch = batch_of()
    seen: list[Tensor] = []
    assert net.auxiliary is not None
    for head in (net.classifier, net.auxiliary):
        head.register_forward_hook(lambda _, __, out: seen.append(out))
    loss = net(batch, None, {}, SILENCE)
    side, main = seen
    smoothed = cross_entropy(main, batch.targets, 0.1)
    beside = cross_entropy(side, batch.targets, 0.1)
    torch.testing.assert_close(loss.value, cross_entropy(main, batch.targets))
    torch.testing.assert_close(loss.objective, smoothed + 0.3 * beside)
    seen.clear()
    loss = net(batch, None, {}, None)
    torch.testing.assert_close(loss.value, cross_entropy(seen[0], batch.targets))
    assert len(seen) == 1 and float(loss.penalty) == 0.0  # a report has no second head
    torch.testing.assert_close(net.logits(batch.inputs), seen[0])


def test_evaluation_changes_nothing_and_training_moves_only_the_running_statistics() -> None:
    net = net_of(V2, drop_path=0.2).double()
    batch = batch_of()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    first = net(batch, None, {}, None).value
    assert torch.equal(net(batch, None, {}, None).value, first)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    net(batch, None, {}, net.noise(batch, seeded(0)))
    changed = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {n for n, _ in net.named_buffers()} != set()
    assert not torch.equal(net(batch, None, {}, None).value, first)
    assert not list(net_of(image_spaces()).buffers())


def test_an_evaluated_image_does_not_depend_on_its_neighbours() -> None:
    net, batch = net_of(V2).double(), batch_of()
    torch.testing.assert_close(net.logits(batch.inputs)[:2], net.logits(batch.inputs[:2]))


def test_drop_path_leaves_states_in_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask in float32 makes no float32 of what bfloat16 convolutions gave."""
    cell = net_of(V2).cells[0]
    assert isinstance(cell, DerivedCell)
    state = torch.ones(2, 4, 8, 8, dtype=torch.bfloat16)
    for edge in cell.edges:
        monkeypatch.setattr(edge, "forward", lambda given, train: given)
    monkeypatch.setattr(cell.entries, "forward", lambda older, last, train: [state, state])
    paths = torch.full((len(cell.edges), 2, 1, 1, 1), 1.25)
    assert cell(state, state, paths, True).dtype == torch.bfloat16


def test_drop_path_grows_with_progress_and_is_the_noises_alone() -> None:
    net = net_of(V2, drop_path=0.4).double()
    batch = batch_of(count=600)
    for progress in (0.25, 0.5, 1.0):
        noise = net.noise(batch, seeded(1), progress=progress)
        assert noise.paths is not None and noise.paths.shape == (3, 8, 600, 1, 1, 1)
        share = float((noise.paths == 0).double().mean())
        assert share == pytest.approx(0.4 * progress, abs=0.02)
    assert net.noise(batch, seeded(1), progress=0.0) == SILENCE
    assert torch.equal(net.noise(batch, seeded(1)).paths, noise.paths)  # type: ignore[arg-type]
    small = batch_of()
    noise = net.noise(small, seeded(3))
    values = [net(small, None, {}, n).value.detach() for n in (noise, noise, SILENCE)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_masks_of_identities_fit_the_network(stem: Any) -> None:
    net = net_of(image_spaces(), layers=4, skip_dropout=0.3, partial=2, stem=stem).double()
    batch = batch_of(11 if stem == "cifar" else 75)
    noise = net.noise(batch, seeded(0))
    assert noise.skips is not None and noise.paths is None
    size = [(14, 2, 11), (6, 4, 6), (6, 8, 3), (14, 8, 3)]
    if stem == "imagenet":
        size = [(14, 2, 10), (6, 4, 5), (6, 8, 3), (14, 8, 3)]
    assert [m.shape for m in noise.skips] == [(e, 4, c, h, h) for e, c, h in size]
    loss = net(batch, None, mixtures(), noise).value
    assert torch.isfinite(loss)
    assert not torch.equal(loss, net(batch, None, mixtures(), SILENCE).value)


@pytest.mark.parametrize("partial", [1, 2])
def test_every_allowed_alpha_gets_a_gradient(partial: int) -> None:
    spaces = image_spaces()
    allowed = [[(e + o) % 3 > 0 for o in range(8)] for e in range(14)]
    spaces = {"normal": spaces["normal"], "reduce": spaces["reduce"].prune(allowed)}
    net = net_of(spaces, layers=4, partial=partial).double()
    alphas = {n: a.detach().double().requires_grad_() for n, a in Darts().init(spaces, seeded(0)).items()}  # fmt: skip  # noqa: E501
    batch = batch_of()
    loss = net(batch, None, Darts().mix(alphas, spaces, 0.0, seeded(0)), SILENCE)
    grads = dict(zip(alphas, torch.autograd.grad(loss.value, list(alphas.values())), strict=True))
    assert bool((grads["normal"] != 0).all())
    assert torch.equal(grads["reduce"] != 0, torch.tensor(allowed))


def test_search_uses_the_statistics_of_its_batch_in_evaluation_too() -> None:
    net, batch, mix = net_of(image_spaces()).double(), batch_of(), mixtures()
    torch.testing.assert_close(
        net(batch, None, mix, None).value, net(batch, None, mix, SILENCE).value
    )
    torch.testing.assert_close(net.logits(batch.inputs, mix).logsumexp(1).shape, torch.Size([4]))


def test_a_seed_gives_the_same_weights_and_leaves_torchs_own_alone() -> None:
    state = torch.get_rng_state()
    for cells in (image_spaces(), V2):
        a, b, c = (net_of(cells, seed=seed) for seed in (1, 1, 2))
        for (name, x), y, z in zip(a.named_parameters(), b.parameters(), c.parameters(), strict=True):  # fmt: skip  # noqa: E501
            assert torch.equal(x, y), name
            assert x.dim() == 1 or not torch.equal(x, z), name
    assert torch.equal(torch.get_rng_state(), state)


def test_a_functional_call_uses_what_it_is_given() -> None:
    """Weights and running statistics both, and the network's own stay as they are."""
    net, other = net_of(V2, seed=1).double(), net_of(V2, seed=2).double()
    batch = batch_of()
    expected = other(batch, None, {}, SILENCE)
    state = {n: t.clone() for n, t in net_of(V2, seed=2).double().state_dict().items()}
    before = {n: t.clone() for n, t in net.state_dict().items()}
    loss = functional_call(net, state, (batch, None, {}, SILENCE))
    assert torch.equal(loss.value, expected.value)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in state.items())


def test_a_twin_shares_the_weights_under_other_settings() -> None:
    net = net_of(image_spaces(), skip_dropout=0.5, precision="bfloat16")
    twin = net.twin(skip_dropout=0.1).in_float32()
    assert (twin.config.skip_dropout, twin.config.precision) == (0.1, "float32")
    assert net.config.skip_dropout == 0.5
    pairs = zip(net.parameters(), twin.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert twin.noise(batch_of(), seeded(0)).kept == pytest.approx(0.9)
    with pytest.raises(UsageError, match="channels"):
        net.twin(channels=8)
    with pytest.raises(UsageError, match="drop_path"):
        net.twin(drop_path=0.2)


def test_low_precision_rounds_training_and_never_evaluation() -> None:
    plain = net_of(V2, precision="float32", auxiliary=True)
    low = plain.twin(precision="bfloat16")
    batch = Batch(batch_of().inputs.float(), batch_of().targets)
    a, b = (net(batch, None, {}, SILENCE) for net in (plain, low))
    assert a.value.dtype == b.value.dtype == b.objective.dtype == torch.float32
    assert not torch.equal(a.value, b.value)
    assert b.value.item() == pytest.approx(a.value.item(), rel=0.03)
    a, b = (net(batch, None, {}, None) for net in (plain, low))
    assert torch.equal(a.value, b.value)
    assert not low_precision(CnnConfig(precision="float32"), torch.device("cpu"))
    assert low_precision(CnnConfig(precision="bfloat16"), torch.device("cpu"))


@pytest.mark.parametrize(
    "settings",
    [{"channels": 0}, {"layers": 0}, {"nodes": 0}, {"partial": 3, "channels": 16},
     {"drop_path": 1.0}, {"skip_dropout": -0.1}, {"label_smoothing": 1.5},
     {"auxiliary_weight": -1.0}, {"channels": 1, "stem": "imagenet"}],
)  # fmt: skip
def test_settings_that_make_no_network_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="model"):
        CnnConfig(**settings)


def test_settings_without_a_place_are_refused() -> None:
    for cells, settings in (
        (V2, {"partial": 2}), (V2, {"skip_dropout": 0.1}),
        (image_spaces(), {"auxiliary": True}), (image_spaces(), {"drop_path": 0.1}),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(settings))):
            net_of(cells, **settings)
    with pytest.raises(UsageError, match="normal"):
        net_of(Genotype.from_text("tanh0"))
    with pytest.raises(UsageError, match="auxiliary"):
        net = net_of(V2, auxiliary=True).double()
        net(batch_of(2), None, {}, SILENCE)


def test_one_layer_is_a_network() -> None:
    assert net_of(V2, layers=1).kinds == ["reduce"]
    config = replace(CnnConfig(), layers=8)
    net = ConvNet(config, image_spaces(), 10, generator=seeded(0))
    assert [k for k, kind in enumerate(net.kinds) if kind == "reduce"] == [2, 5]
