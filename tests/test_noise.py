"""The masks of one window: shares, scaling, shapes, and draws that can be repeated."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.lm.noise import SILENCE, LayerNoise, LMNoise, NoiseConfig, draw

# Which share makes which mask, and the mask's shape for B = 5, D = 3, H = 4, V = 11.
KINDS = {
    "dropoute": ("words", (11, 1)),
    "dropouti": ("inputs", (1, 5, 3)),
    "dropoutx": ("x", (5, 3)),
    "dropouth": ("h", (5, 4)),
    "dropout": ("outputs", (1, 5, 4)),
}
MASKS = [mask for mask, _ in KINDS.values()]
ALL = NoiseConfig(dropout=0.5, dropouti=0.4, dropoute=0.1, dropoutx=0.3, dropouth=0.2)


def drawn(
    config: NoiseConfig, seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int
) -> LMNoise:
    whole: dict[str, Any] = {"streams": 5, "embedding": 3, "hidden": 4, "vocabulary": 11, **sizes}
    return draw(config, **whole, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def equal(one: LMNoise, other: LMNoise) -> bool:
    return one.above == other.above == () and all(
        a is b is None or (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b))
        for a, b in zip(one[:-1], other[:-1], strict=True)
    )


@pytest.mark.parametrize("share", KINDS)
def test_a_share_makes_its_own_mask_and_no_other(share: str) -> None:
    mask, shape = KINDS[share]
    noise = drawn(NoiseConfig(**{share: 0.5}))
    present = {name: m for name, m in noise._asdict().items() if m is not None and name != "above"}
    assert list(present) == [mask] and present[mask].shape == shape


def test_every_setting_has_its_mask() -> None:
    assert {f.name for f in fields(NoiseConfig)} == {*KINDS, "weightdrop"}
    assert {*MASKS, "weights", "above"} == set(LMNoise._fields)


def test_no_noise_is_no_masks() -> None:
    assert drawn(NoiseConfig()) == SILENCE == (*(None,) * 6, ())


@pytest.mark.parametrize("share", KINDS)
@pytest.mark.parametrize("p", [0.1, 0.75])
def test_shares_and_scaling(share: str, p: float) -> None:
    """Values are 0 or 1 / (1 - p), and about a share p of them is 0, so that the mean is 1."""
    big = {"streams": 200, "embedding": 100, "hidden": 100, "vocabulary": 20000}
    noise = drawn(NoiseConfig(**{share: p}), **big)
    mask = getattr(noise, KINDS[share][0])
    scale = 1 / (1 - p)
    kept = mask != 0
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], scale), rtol=1e-15, atol=0)
    count = mask.numel()
    assert abs(float((~kept).double().mean()) - p) < 5 * (p * (1 - p) / count) ** 0.5


def test_streams_and_units_are_masked_apart() -> None:
    noise = drawn(ALL, streams=50, embedding=60, hidden=60, vocabulary=500)
    for name in MASKS:
        mask = getattr(noise, name)
        rows = mask.reshape(-1, mask.shape[-1])
        if rows.shape[1] > 1:  # words have one value a row
            assert len(torch.unique(rows, dim=0)) == len(rows)
            assert len(torch.unique(rows, dim=1).T) == rows.shape[1]


def test_a_seed_gives_one_draw_whatever_the_global_generator_says() -> None:
    torch.manual_seed(1)
    one = drawn(ALL)
    torch.manual_seed(2)
    assert equal(one, drawn(ALL)) and not equal(one, drawn(ALL, seed=1))


def test_masks_are_drawn_in_a_fixed_order() -> None:
    """words, inputs, x, h, outputs: a resumed run of a later version must draw the same."""
    generator = torch.Generator().manual_seed(3)
    expected = [
        torch.empty(shape, dtype=torch.float64).bernoulli_(1 - p, generator=generator) / (1 - p)
        for p, (_, shape) in zip((0.1, 0.4, 0.3, 0.2, 0.5), KINDS.values(), strict=True)
    ]
    assert equal(drawn(ALL, seed=3), LMNoise(*expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_have_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    noise = drawn(ALL, dtype=dtype)
    assert all(getattr(noise, name).dtype == dtype for name in MASKS)


def test_the_masks_of_layers() -> None:
    """Of a cell of ours: each layer its own x and h. The first layer's are those of one layer."""
    noise = drawn(ALL, layers=3)
    assert equal(noise._replace(above=()), drawn(ALL))
    assert noise.layer(0) == LayerNoise(noise.x, noise.h, None)
    assert [noise.layer(k) for k in (1, 2)] == list(noise.above)
    for layer in noise.above:
        assert layer.x is not None and layer.x.shape == (5, 4)
        assert layer.h is not None and layer.h.shape == (5, 4) and layer.weights is None
    masks = [m for k in range(3) for m in (noise.layer(k).h,) if m is not None]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
    assert SILENCE.layer(2) == LayerNoise(None, None, None)


def test_the_masks_of_a_baseline() -> None:
    """Of an LSTM or GRU: the weights' in each layer, `dropouth` between layers, no `dropoutx`."""
    config = NoiseConfig(dropoutx=0.5, dropouth=0.75, weightdrop=0.2)
    noise = drawn(config, layers=2, gates=3, hidden=40, streams=50)
    assert noise.x is None and noise.h is None and noise.outputs is None
    (above,) = noise.above
    assert above.x is not None and above.h is None and above.x.shape == (50, 40)
    assert set(above.x.unique().tolist()) == {0.0, 4.0}
    for mask in (noise.weights, above.weights):
        assert mask is not None and mask.shape == (120, 40)
        assert set(mask.unique().tolist()) == {0.0, 1.25}
        assert abs(float((mask == 0).double().mean()) - 0.2) < 0.03
    assert noise.weights is not None and not torch.equal(noise.weights, above.weights)
    only = drawn(config, gates=3)
    assert only.x is only.h is None and only.above == ()


@pytest.mark.parametrize("share", [*KINDS, "weightdrop"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_shares_outside_the_interval_are_refused(share: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"noise\.{share} = .* must lie in \[0, 1\)"):
        NoiseConfig(**{share: value})
