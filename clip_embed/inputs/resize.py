"""Resize the shorter side and crop the center, as torchvision does."""

from __future__ import annotations

import math

from PIL import Image

WHOLE_RESIZE_MAX_PIXELS = 16_000_000
"""Beyond this many pixels after resizing, only the part that the crop keeps is computed. A strip of
1 × 20,000 pixels would become 224 × 4,480,000 first: gigabytes from a tiny file. The result differs
from torchvision's by at most 2 of 255, because coordinates round differently in each direction."""


def resize_and_center_crop(
    image: Image.Image, size: int, resample: Image.Resampling
) -> Image.Image:
    """Return a square of `size` pixels a side, equal to torchvision's Resize and CenterCrop.

    resample: Pillow's filter. Long strips may differ: see WHOLE_RESIZE_MAX_PIXELS.
    """
    new_size, (left, top) = _resized_size_and_corner(image.size, size)
    if new_size[0] * new_size[1] > WHOLE_RESIZE_MAX_PIXELS:
        return _resize_part(image, new_size, (left, top), size, resample)
    if new_size != image.size:
        image = image.resize(new_size, resample)
    return image.crop((left, top, left + size, top + size))


def resize_center_only(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Return nearly the same square, computing nothing that the crop removes.

    For an image that shrinks by half or more, it differs from `resize_and_center_crop` by at most 1
    of 255.
    """
    new_size, corner = _resized_size_and_corner(image.size, size)
    scales = [old / new for old, new in zip(image.size, new_size, strict=True)]
    (x0, x1), (y0, y1) = (
        (first * scale, (first + size) * scale) for first, scale in zip(corner, scales, strict=True)
    )
    return image.resize((size, size), resample, box=(x0, y0, x1, y1))


def _resized_size_and_corner(
    old_size: tuple[int, int], size: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of the whole image after resizing, and the upper left corner of the crop."""
    width, height = old_size
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    # torchvision rounds half to even here, as Python's round does.
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    return (new_width, new_height), (left, top)


def _resize_part(
    image: Image.Image,
    new_size: tuple[int, int],
    corner: tuple[int, int],
    size: int,
    resample: Image.Resampling,
) -> Image.Image:
    """Return the square at `corner` of `image` resized to `new_size`, from the pixels it needs."""
    # Each of the two passes rounds to 8 bits, so their order shows. This is Pillow 13's order for
    # the whole image; for a part it would often choose the other.
    down_first = image.height - new_size[1] > 2 * max(image.width - new_size[0], 0)
    spans = []
    for old, new, first in zip(image.size, new_size, corner, strict=True):
        scale = old / new
        begin, end = first * scale, (first + size) * scale
        # Bicubic reads two source pixels in either direction, and more as it shrinks.
        reach = math.ceil(2 * max(scale, 1.0)) + 1
        low, high = max(math.floor(begin) - reach, 0), min(math.ceil(end) + reach, old)
        spans.append((low, high, begin - low, end - low))
    (left, right, x0, x1), (top, bottom, y0, y1) = spans
    # Crop first: Pillow keeps a box in float32, which is too coarse far along a strip.
    image = image.crop((left, top, right, bottom))
    if down_first:
        image = image.resize((image.width, size), resample, box=(0, y0, image.width, y1))
        return image.resize((size, size), resample, box=(x0, 0, x1, size))
    image = image.resize((size, image.height), resample, box=(x0, 0, x1, image.height))
    return image.resize((size, size), resample, box=(0, y0, size, y1))
