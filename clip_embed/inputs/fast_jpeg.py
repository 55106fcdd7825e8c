"""Prepare large photographs faster and inexactly. Off by default: CLIP_FAST_JPEG=1.

Two shortcuts. A camera's JPEG is decoded at a quarter of its size, and a very large image is halved
by plain averages before it is resized. On photographs, screenshots, line art and noise the result
stays within a mean of 0.3 and a maximum of 3 of 255 of the exact pixels
(tests/reference/test_fast_jpeg.py).
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from clip_embed.inputs import color
from clip_embed.inputs.resize import resize_center_only

JPEG_SCALE = 4
JPEG_MIN_RATIO = 3.3
"""A JPEG is decoded at a quarter of its size if the shorter side is then still at least so many
times the model's: 12 megapixels for 224 pixels. With a smaller ratio sharp edges are wrong by 4 and
more, and so are smaller images decoded at half size."""

MAX_MEAN_SHIFT, MAX_SHIFT = 0.6, 10
"""Limits for the estimated error of decoding at a quarter: the difference to decoding at an eighth.
Photographs shift by a mean of 0.1 to 0.5 and at most 9; screenshots, line art and noise by a mean
of more than 0.9, and are decoded exactly."""

# The estimate misses stripes one pixel wide in strong colors, whose average exact decoding clips,
# by up to 19. No lens draws them, so only a file that names its camera is decoded at a quarter.
_EXIF_MAKE = 0x010F

HALVING_MIN_RATIO = 8
"""An image is halved if its shorter side is then still so many times the model's size."""


def can_decode_at_quarter(image: Image.Image, size: int) -> bool:
    """Return whether `image` is a camera's JPEG, large enough for a square of `size` pixels."""
    return (
        isinstance(image, JpegImageFile)
        and image.mode in ("RGB", "L")
        and min(image.size) >= JPEG_SCALE * JPEG_MIN_RATIO * size
        # If the scale does not divide a side, the last pixels would stand for more than one.
        and not any(side % (2 * JPEG_SCALE) for side in image.size)
        and bool(str(color.exif_value(image, _EXIF_MAKE) or "").strip("\0 "))
    )


def decode_at_quarter(
    file: BinaryIO, size: int, resample: Image.Resampling
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]] | None:
    """Return the square of a JPEG, uint8 [size, size, 3], and the width and height of the image.

    None if the estimated error exceeds the limits. Raises whatever Pillow raises.
    """
    # Opened again: an image that has begun to decode cannot change its scale.
    file.seek(0)
    with Image.open(file, formats=("JPEG",)) as image:
        image.draft(None, (image.width // JPEG_SCALE, image.height // JPEG_SCALE))
        image.load()
        upright = color.to_rgb(color.to_upright(image))
    array = np.asarray(resize_center_only(upright, size, resample), dtype=np.uint8)
    coarse = np.asarray(resize_center_only(upright.reduce(2), size, resample))
    shift = np.abs(array.astype(np.int16) - coarse)
    if shift.mean() > MAX_MEAN_SHIFT or shift.max() > MAX_SHIFT:
        return None
    return array, (JPEG_SCALE * upright.width, JPEG_SCALE * upright.height)


def halve_if_very_large(image: Image.Image, size: int) -> Image.Image:
    """Return `image` at half its size if it is very large and its sides are even."""
    is_odd = image.width % 2 or image.height % 2
    if min(image.size) >= 2 * HALVING_MIN_RATIO * size and not is_odd:
        return image.reduce(2)
    return image
