"""One encoded picture: pixels as they were, modes converted, damage refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sample_images import encoded, pixels, png

from rnnnas.data.image_decode import decode, quiet, size_of
from rnnnas.errors import DataError


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_pictures_come_back(kind: str) -> None:
    there, changed = decode(encoded(pixels(1), kind), "x")
    assert np.array_equal(there, pixels(1)) and not changed
    assert there.flags["C_CONTIGUOUS"] and size_of(encoded(pixels(1), kind), "x") == (6, 8)


def test_a_jpeg_is_read_as_pillow_reads_it() -> None:
    data = encoded(pixels(2, 40, 30), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    assert np.array_equal(decode(data, "x")[0], expected)


def test_every_mode_of_8_bits_becomes_rgb() -> None:
    rgb = Image.fromarray(pixels(3).transpose(1, 2, 0))
    grey = np.asarray(rgb.convert("L"))
    see_through = rgb.convert("RGBA")
    see_through.putalpha(7)
    palette = rgb.quantize(4)
    cases = {
        "L": (rgb.convert("L"), {}, np.stack([grey] * 3)),
        "RGBA": (see_through, {}, pixels(3)),
        "P": (palette, {}, np.asarray(palette.convert("RGB")).transpose(2, 0, 1)),
        "1": (rgb.convert("1"), {}, np.stack([np.asarray(rgb.convert("1")) * np.uint8(255)] * 3)),
        "LA": (rgb.convert("LA"), {}, np.stack([grey] * 3)),
    }
    for mode, (picture, options, expected) in cases.items():
        there, changed = decode(saved(picture, **options), "x")
        assert np.array_equal(there, expected) and changed, mode
    print(f"{len(cases)} modes converted")


def test_transparent_palettes_are_read_without_a_word() -> None:
    palette = Image.fromarray(pixels(3).transpose(1, 2, 0)).quantize(4)
    data = saved(palette, transparency=bytes([0, 128, 255, 255]))
    with quiet():  # pytest makes every warning an error
        assert np.array_equal(
            decode(data, "x")[0], np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
        )


def test_pixels_of_more_than_8_bits_are_refused() -> None:
    wide = Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000)
    with pytest.raises(DataError, match="f.png.*mode.*no clear 8-bit form") as caught:
        decode(saved(wide), "f.png")
    assert caught.value.remedy


def test_a_gigantic_picture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    for limit in (40, 20):  # Pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with quiet(), pytest.raises(DataError, match="bomb"):
            decode(png(1), "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_damage_is_refused_or_harmless_and_never_something_else(kind: str) -> None:
    """Truncated anywhere: refused. Bytes overwritten: refused, or pixels of some kind."""
    whole = encoded(pixels(4, 24, 24), kind)
    refused = 0
    random = np.random.RandomState(0)
    with quiet():
        for end in range(0, len(whole) * 3 // 4, max(1, len(whole) // 30)):
            with pytest.raises(DataError, match="f.img: .*image") as caught:
                decode(whole[:end], "f.img")
            assert caught.value.remedy
        for _ in range(100):
            hurt = bytearray(whole)
            for place in random.randint(0, min(len(whole), 400), 3):
                hurt[place] = random.randint(256)
            try:
                there, _ = decode(bytes(hurt), "f.img")
                assert there.shape[0] == 3 and there.dtype == np.uint8
            except DataError:
                refused += 1
    print(f"{kind}: {refused} of 100 overwritten pictures refused")
