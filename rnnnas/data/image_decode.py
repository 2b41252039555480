"""One encoded image: its size from the head, its pixels as uint8 (3, h, w).

Whatever Pillow reads as 8 bits a channel becomes RGB: grey values are repeated, transparency is
dropped, of an animation the first frame counts. The orientation in EXIF is ignored, as ImageNet's
is. 16-bit and floating-point pixels have no obvious 8-bit form and are refused.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from rnnnas.errors import DataError

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".avif",
    ".bmp",
    ".gif",
    ".webp",
    ".ppm",
    ".pgm",
    ".tif",
    ".tiff",
)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "LAB")

# What Pillow raises for bytes that are no image, or only the head of one.
_DAMAGED = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, MemoryError, IndexError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

Pixels = npt.NDArray[np.uint8]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within: Pillow's remarks on odd metadata are dropped, and decompression bombs are errors.

    Warnings are switched for the process: this goes around a loop, not into its threads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def size_of(data: bytes, where: str) -> tuple[int, int]:
    """(h, w) in pixels, from the head alone. Raises DataError where `data` is no image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except _DAMAGED as error:
        raise _unreadable(where, error) from error


def decode(data: bytes, where: str) -> tuple[Pixels, bool]:
    """The pixels, (3, h, w), and whether they were converted to RGB.

    Args:
        where: file and row, for the message.

    Raises:
        DataError: no image, a damaged one, or one without an 8-bit form.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            if mode not in _MODES:
                raise DataError(
                    f"{where}: pixels of Pillow's mode {mode!r} have no clear 8-bit form",
                    "Save the image with 8 bits a channel.",
                )
            rgb: Any = image if mode == "RGB" else image.convert("RGB")
            pixels = np.ascontiguousarray(np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1))
    except _DAMAGED as error:
        raise _unreadable(where, error) from error
    return pixels, mode != "RGB"


def _unreadable(where: str, error: Exception) -> DataError:
    said = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
    return DataError(
        f"{where}: not an image that can be read{said}",
        "Put a whole JPEG or PNG in its place, or leave it out.",
    )
