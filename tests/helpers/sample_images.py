"""Make sample images, preprocess their files, and compare the pixels with the exact ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clip_embed.inputs.preprocess import Pixels, PreprocessConfig, preprocess_image
from clip_embed.inputs.resize import resize_and_center_crop

Array = npt.NDArray[Any]

SIZE = 224
"""Pixels per side of the model's input, as for ViT-L/14."""

# open_clip's OPENAI_DATASET_MEAN and OPENAI_DATASET_STD.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
CONFIG = PreprocessConfig(SIZE, MEAN, STD, Image.Resampling.BICUBIC)


def noise(width: int, height: int) -> Image.Image:
    """Return random pixels, in which the smallest difference in geometry is visible."""
    values = _random_bytes()[: width * height * 3].reshape(height, width, 3)
    return Image.fromarray(values)


@functools.cache
def _random_bytes() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, 3 * 2**24, dtype=np.uint8)


def black_and_white_noise(width: int, height: int) -> Image.Image:
    """Return pixels that are 0 or 255 at random, on which resizing makes its largest errors."""
    return noise(width, height).point(lambda value: 255 * (value > 127))


def scene(width: int = 150, height: int = 100) -> Image.Image:
    """Return soft colors, as in a photo, that no flip or rotation maps onto themselves."""
    colors = np.random.default_rng(3).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)


def gray(value: int) -> list[int]:
    return [value] * 3


def _make_sizes() -> Mapping[str, list[tuple[int, int]]]:
    rng = Random(224)

    def long_side(short: int) -> int:
        return int(short * 100 ** rng.random())

    edges = [1, 2, 3, 111, 112, 223, 224, 225, 226, 447, 448, 449]
    strips = [(short, long_side(short)) for short in [*range(1, 20), *range(20, 300, 14)]]
    strips += [(1, 100), (7, 700), (15, 1500)]
    return {
        "squares": [(side, side) for side in [*edges, *range(5, 1500, 90)]],
        "around 224": [(a, b) for a in edges[3:] for b in (3, 223, 224, 225, 336, 500)],
        "small": [(rng.randint(1, 50), rng.randint(1, 50)) for _ in range(40)],
        "any": [(rng.randint(1, 1500), rng.randint(1, 1500)) for _ in range(50)],
        "tall strips": strips,
        "wide strips": [(long, short) for short, long in strips],
    }


SIZES = _make_sizes()
"""More than 200 widths and heights, by kind."""


def save_and_preprocess(
    picture: Image.Image, path: Path, *, fast_jpeg: bool = False, **options: Any
) -> Pixels:
    """Save a picture in the format of the path's suffix, and preprocess the file."""
    picture.save(path, **options)
    return preprocess_image(path, CONFIG, fast_jpeg=fast_jpeg)


def exact_pixels(picture: Image.Image) -> Array:
    """Return uint8 [S, S, 3] of an upright RGB picture, by the same resize as the service.

    tests/reference/test_pixels.py checks that this resize equals open_clip's.
    """
    assert picture.mode == "RGB"
    return np.asarray(resize_and_center_crop(picture, SIZE, Image.Resampling.BICUBIC))


def max_difference(pixels: Array, expected: Array) -> int:
    return int(np.abs(pixels.astype(int) - expected).max())


def assert_equal(pixels: Pixels, picture: Image.Image) -> None:
    """Check that `pixels` is exactly what an upright RGB picture gives."""
    np.testing.assert_array_equal(pixels.array, exact_pixels(picture))


def assert_similar(pixels: Pixels, picture: Image.Image) -> None:
    """Check that `pixels` is as close to a picture as lossy compression allows.

    Two orientations of `scene` differ by 60 on average.
    """
    difference = np.abs(pixels.array.astype(int) - exact_pixels(picture))
    assert difference.mean() < 4
    assert difference.max() < 40
