"""Augmentation against loops over single images, written from the definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rnnnas.data.image_augment import (
    GREY,
    TRIES,
    AugmentConfig,
    Draws,
    augment,
    centre_box,
    crop,
    cut_out,
    draw,
    flip,
    jitter,
    normalised,
    random_boxes,
    resized,
)
from rnnnas.errors import UsageError

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


def images(count: int = 9, height: int = 7, width: int = 10, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("padding", [1, 4])
def test_crop(padding: int) -> None:
    x = images(count=(2 * padding + 1) ** 2)
    offsets = [(t, c) for t in range(2 * padding + 1) for c in range(2 * padding + 1)]
    top, left = torch.tensor(offsets).unbind(1)
    found = crop(x, top, left, padding)
    assert found.dtype == torch.uint8
    for i, (t, c) in enumerate(offsets):
        padded = np.zeros((3, 7 + 2 * padding, 10 + 2 * padding), np.uint8)
        padded[:, padding:-padding, padding:-padding] = x[i]
        assert np.array_equal(found[i], padded[:, t : t + 7, c : c + 10])


def test_flip() -> None:
    x, flipped = images(), torch.tensor([True, False, True] * 3)
    for i, found in enumerate(flip(x, flipped)):
        assert np.array_equal(found, x[i].numpy()[:, :, ::-1] if flipped[i] else x[i])


@pytest.mark.parametrize("length", [1, 2, 3, 4, 16])
def test_cutout_is_a_square_clipped_at_the_borders(length: int) -> None:
    centres = [(y, x) for y in range(7) for x in range(10)]
    given = torch.randn(70, 3, 7, 10, generator=seeded()) + 10
    found = cut_out(given, torch.tensor(centres), length)
    for i, (y, x) in enumerate(centres):
        expected = given[i].clone()
        for row in range(7):
            for column in range(10):
                if (y - length // 2 <= row < y - length // 2 + length
                        and x - length // 2 <= column < x - length // 2 + length):  # fmt: skip
                    expected[:, row, column] = 0
        assert torch.equal(found[i], expected)
    whole = (found[35, 0] == 0).sum()
    assert whole == min(length, 7) * min(length, 10) or length == 16


def test_jitter_by_pixel() -> None:
    x = images(count=20).double() / 255
    factors = 0.4 + 1.2 * torch.rand(20, 3, generator=seeded(), dtype=torch.float64)
    found = jitter(x, factors).numpy()

    def clipped(value: float) -> float:
        return min(1.0, max(0.0, value))

    def grey(pixel: Any) -> float:
        return sum(weight * float(value) for weight, value in zip(GREY, pixel, strict=True))

    for i in range(20):
        b, c, s = factors[i].tolist()
        picture = x[i].numpy().copy()
        spots = list(np.ndindex(7, 10))
        for y, z in spots:
            picture[:, y, z] = [clipped(b * v) for v in picture[:, y, z]]
        mean = sum(grey(picture[:, y, z]) for y, z in spots) / len(spots)
        for y, z in spots:
            picture[:, y, z] = [clipped(c * v + (1 - c) * mean) for v in picture[:, y, z]]
        for y, z in spots:
            own = grey(picture[:, y, z])
            picture[:, y, z] = [clipped(s * v + (1 - s) * own) for v in picture[:, y, z]]
        assert np.allclose(found[i], picture, rtol=0, atol=1e-14)
    assert 0.02 < (found == 1).mean() < 0.5  # clipping was at work


def test_normalisation() -> None:
    x = images()
    expected = (x.double() / 255 - MEAN.double().view(3, 1, 1)) / STD.double().view(3, 1, 1)
    found = normalised(x, MEAN, STD)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-6)
    floats = x.float().requires_grad_()  # whose own numbers stay, and have a gradient
    again = normalised(floats, MEAN, STD)
    assert torch.equal(again, found) and torch.equal(floats.detach(), x.float())
    again.sum().backward()
    assert floats.grad is not None and float(floats.grad.min()) > 0


def test_the_whole_in_its_order() -> None:
    """Crop, flip, jitter, normalisation, cutout, each by its own function on one image a time."""
    config = AugmentConfig(crop_padding=2, cutout=3, jitter=0.4)
    x = images(count=40)
    draws = draw(config, x, seeded(3))
    assert all(drawn is not None for drawn in draws)
    found = augment(x, draws, config, MEAN, STD)
    top, left, flipped, factors, hole = (drawn for drawn in draws if drawn is not None)
    for i in range(40):
        one = crop(x[i : i + 1], top[i : i + 1], left[i : i + 1], 2)
        one = flip(one, flipped[i : i + 1])
        one = jitter(one / 255, factors[i : i + 1])
        one = (one - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
        one = cut_out(one, hole[i : i + 1], 3)
        assert torch.allclose(found[i], one[0], rtol=0, atol=1e-5)
    assert torch.equal(augment(x, Draws(), config, MEAN, STD), normalised(x, MEAN, STD))
    assert torch.equal(x, images(count=40))  # what came in stays as it was


def test_draws_are_uniform_and_a_function_of_the_seed() -> None:
    config = AugmentConfig(crop_padding=2, cutout=3, jitter=0.25)
    x = images(count=7000)
    draws, again = draw(config, x, seeded(1)), draw(config, x, seeded(1))
    other = draw(config, x, seeded(2))
    for drawn, same, different in zip(draws, again, other, strict=True):
        assert drawn is not None and same is not None and different is not None
        assert torch.equal(drawn, same) and not torch.equal(drawn, different)
    top, left, flipped, factors, hole = (drawn for drawn in draws if drawn is not None)
    for values, count in ((top, 5), (left, 5), (hole[:, 0], 7), (hole[:, 1], 10)):
        counts = torch.bincount(values, minlength=count)
        assert len(counts) == count
        spread = (7000 / count * (1 - 1 / count)) ** 0.5
        assert ((counts - 7000 / count).abs() < 5 * spread).all()
    assert abs(int(flipped.sum()) - 3500) < 5 * 42
    assert float(factors.min()) >= 0.75 and float(factors.max()) <= 1.25
    assert torch.allclose(factors.mean(0), torch.ones(3), atol=5 * 0.25 / (3 * 7000) ** 0.5)
    drawn = torch.stack((top, left, flipped.long(), hole[:, 0], hole[:, 1]), 0).double()
    drawn = torch.cat((drawn, factors.double().T))
    beside = torch.corrcoef(drawn) - torch.eye(8)
    assert float(beside.abs().max()) < 5 / 7000**0.5  # each on its own


def test_nothing_is_drawn_that_is_not_asked_for() -> None:
    off = AugmentConfig(crop_padding=0, flip=False)
    assert draw(off, images(), seeded()) == Draws()
    scaled = draw(AugmentConfig(resized_crop=True, size=8), images(), seeded())
    assert scaled.top is None and scaled.left is None and scaled.flipped is not None


def test_random_boxes_by_the_definition() -> None:
    sizes = [(300, 500), (20, 400), (400, 20), (32, 32), (1, 1), (3, 90)] * 200
    drawn = torch.rand(len(sizes), TRIES, 4, generator=seeded(), dtype=torch.float64)
    found = random_boxes(torch.tensor(sizes), drawn).tolist()
    fallbacks = 0
    for (height, width), numbers, box in zip(sizes, drawn.tolist(), found, strict=True):
        for area, ratio, y, x in numbers:
            pixels = (0.08 + 0.92 * area) * height * width
            shape = math.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
            h, w = round(math.sqrt(pixels / shape)), round(math.sqrt(pixels * shape))
            if 1 <= h <= height and 1 <= w <= width:
                expected = [int(y * (height - h + 1)), int(x * (width - w + 1)), h, w]
                break
        else:
            fallbacks += 1
            h, w = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
            expected = [(height - h) // 2, (width - w) // 2, h, w]
        assert box == expected
        assert 0 <= box[0] <= height - box[2] and 0 <= box[1] <= width - box[3]
    assert 100 < fallbacks < 700
    print(f"{len(sizes)} boxes, {fallbacks} of them the largest in the middle")


@pytest.mark.parametrize(
    ("box", "side"), [((2, 3, 20, 24), 8), ((0, 0, 6, 5), 11), ((1, 2, 9, 9), 9), ((5, 5, 1, 1), 3)]
)
def test_scaling_is_by_a_triangle_as_wide_as_a_pixel_of_the_larger_grid(
    box: tuple[int, int, int, int], side: int
) -> None:
    picture = images(1, 26, 30)[0]
    top, left, height, width = box
    part = picture.numpy()[:, top : top + height, left : left + width].astype(np.float64)

    def weights(length: int) -> np.ndarray:
        made = np.zeros((side, length))
        scale = length / side
        for i in range(side):
            for j in range(length):
                distance = abs(j + 0.5 - (i + 0.5) * scale) / max(scale, 1.0)
                made[i, j] = max(0.0, 1 - distance)
            made[i] /= made[i].sum()
        return made

    expected = np.einsum("ij,cjk,lk->cil", weights(height), part, weights(width))
    found = resized(picture, box, side).numpy()
    assert found.dtype == np.uint8 and found.shape == (3, side, side)
    assert np.abs(found - expected).max() <= 0.501  # rounding


def test_the_middle() -> None:
    assert centre_box(256, 256) == (16, 16, 224, 224)
    assert centre_box(100, 41) == (32, 2, 36, 36)
    assert centre_box(1, 1) == (0, 0, 1, 1)


def test_settings_are_checked() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"crop_padding": -1}, "augment.crop_padding = -1"),
        ({"cutout": -2}, "augment.cutout = -2"),
        ({"size": -2}, "augment.size = -2"),
        ({"jitter": 1.5}, "augment.jitter = 1.5"),
        ({"jitter": -0.1}, "augment.jitter = -0.1"),
        ({"jitter": math.nan}, "augment.jitter = nan"),
        ({"resized_crop": True}, "augment.resized_crop needs a size"),
    ]
    for options, says in cases:
        with pytest.raises(UsageError, match=says) as caught:
            AugmentConfig(**options)
        assert caught.value.remedy
    assert AugmentConfig() == AugmentConfig(
        crop_padding=4, flip=True, cutout=0, jitter=0.0, resized_crop=False, size=0
    )
