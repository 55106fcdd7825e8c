"""Pixels of any size become the square in the middle that CLIP looks at, as torchvision makes it.

Knows nothing of files or colours.
"""

from __future__ import annotations

import math

from PIL import Image

# A long strip resized as CLIP resizes it would be mostly cropped away again: 1 × 20,000 pixels
# become 224 × 4,480,000. Beyond this many pixels only the part that survives is computed, which
# differs from the whole by at most 2 of 255 (coordinates round differently, in each direction).
WHOLE_RESIZE_MAX_PIXELS = 16_000_000

# Any image is halved by plain averages first if that leaves at least 8 times the model's size.
HALVING_MIN_RATIO = 8


def to_square(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """torchvision's Resize (shorter side) and CenterCrop to `size` pixels a side, with Pillow's
    filter `resample`; of very large images nearly so, as the constants above say."""
    odd = image.width % 2 or image.height % 2
    if min(image.size) >= 2 * HALVING_MIN_RATIO * size and not odd:
        image = image.reduce(2)
    new_size, (left, top) = _place(image.size, size)
    if new_size[0] * new_size[1] > WHOLE_RESIZE_MAX_PIXELS:
        return _part(image, new_size, (left, top), size, resample)
    if new_size != image.size:
        image = image.resize(new_size, resample)
    return image.crop((left, top, left + size, top + size))


def to_square_at_once(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """As `to_square`, but what is cropped away is not computed first: where other errors are larger
    than the 1 of 255 by which this may differ."""
    new_size, corner = _place(image.size, size)
    scales = [old / new for old, new in zip(image.size, new_size, strict=True)]
    (x0, x1), (y0, y1) = (
        (first * scale, (first + size) * scale) for first, scale in zip(corner, scales, strict=True)
    )
    return image.resize((size, size), resample, box=(x0, y0, x1, y1))


def _place(old_size: tuple[int, int], size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The whole image's size once resized, and the upper left corner of its square."""
    width, height = old_size
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    # torchvision rounds half to even here, as Python's round does.
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    return (new_width, new_height), (left, top)


def _part(
    image: Image.Image,
    new_size: tuple[int, int],
    corner: tuple[int, int],
    size: int,
    resample: Image.Resampling,
) -> Image.Image:
    """The square at `corner` of `image` resized to `new_size`, from no more than it draws on."""
    # A pass in one direction rounds to 8 bits before the other begins, so their order shows. This
    # is Pillow 13's choice for the whole; for a part it would often choose otherwise.
    down_first = image.height - new_size[1] > 2 * max(image.width - new_size[0], 0)
    spans = []
    for old, new, first in zip(image.size, new_size, corner, strict=True):
        scale = old / new
        begin, end = first * scale, (first + size) * scale
        # Bicubic draws on two source pixels either way, and on more as it shrinks.
        reach = math.ceil(2 * max(scale, 1.0)) + 1
        low, high = max(math.floor(begin) - reach, 0), min(math.ceil(end) + reach, old)
        spans.append((low, high, begin - low, end - low))
    (left, right, x0, x1), (top, bottom, y0, y1) = spans
    # Cut first: Pillow keeps a box in float32, too coarse far along a strip.
    image = image.crop((left, top, right, bottom))
    if down_first:
        image = image.resize((image.width, size), resample, box=(0, y0, image.width, y1))
        return image.resize((size, size), resample, box=(x0, 0, x1, size))
    image = image.resize((size, image.height), resample, box=(x0, 0, x1, image.height))
    return image.resize((size, size), resample, box=(0, y0, size, y1))
