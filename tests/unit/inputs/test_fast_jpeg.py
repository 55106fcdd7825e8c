"""The inexact shortcuts for large photographs: off by default, and only where errors are small.

The model's input here is a quarter of ViT-L/14's in each direction, and so are all sizes.
tests/reference/test_fast_jpeg.py measures the errors at real sizes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from clip_embed.errors import ImageError
from clip_embed.inputs.preprocess import Pixels, PreprocessConfig, preprocess_image
from clip_embed.inputs.resize import resize_and_center_crop
from tests.helpers.large_images import (
    Draw,
    Size,
    camera_tags,
    line_art,
    screenshot,
    stripes,
    tags_without_camera,
    write_jpeg,
)
from tests.helpers.sample_images import MEAN, STD, Array, noise, scene

MODEL_SIZE = 56
CONFIG = PreprocessConfig(MODEL_SIZE, MEAN, STD, Image.Resampling.BICUBIC)
PHOTO_SIZE = (1000, 752)
VERY_LARGE_SIZE = (904, 896)


def preprocess_fast(path: Path) -> Pixels:
    return preprocess_image(path, CONFIG, fast_jpeg=True)


def exact_pixels(path: Path) -> Array:
    """Return the pixels of a file that Pillow decodes and turns upright."""
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    return np.asarray(resize_and_center_crop(upright, MODEL_SIZE, CONFIG.resample))


def assert_close_but_not_equal(pixels: Pixels, exact: Array) -> None:
    """Check that a shortcut was taken, and that the error is small."""
    shift = np.abs(pixels.array.astype(int) - exact)
    assert shift.mean() <= 0.3
    assert 1 <= shift.max() <= 3


def test_camera_jpeg_is_exact_by_default(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "x.jpg", scene, PHOTO_SIZE, camera_tags())
    exact = exact_pixels(path)
    np.testing.assert_array_equal(preprocess_image(path, CONFIG).array, exact)
    assert_close_but_not_equal(preprocess_fast(path), exact)


def test_very_large_image_is_exact_by_default(tmp_path: Path) -> None:
    path = tmp_path / "x.bmp"
    noise(*VERY_LARGE_SIZE).save(path)
    exact = exact_pixels(path)
    np.testing.assert_array_equal(preprocess_image(path, CONFIG).array, exact)
    pixels = preprocess_fast(path)
    assert_close_but_not_equal(pixels, exact)
    assert (pixels.width, pixels.height) == VERY_LARGE_SIZE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_jpeg_applies_the_orientation(orientation: int, tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "x.jpg", scene, PHOTO_SIZE, camera_tags(orientation))
    pixels = preprocess_fast(path)
    assert_close_but_not_equal(pixels, exact_pixels(path))
    width, height = PHOTO_SIZE
    upright_size = (height, width) if orientation > 4 else (width, height)
    assert (pixels.width, pixels.height) == upright_size


@pytest.mark.parametrize(
    ("draw", "size", "tags"),
    [
        pytest.param(scene, (512, 520), camera_tags(), id="too small"),
        pytest.param(scene, (876, 752), camera_tags(), id="width not divisible"),
        pytest.param(scene, (880, 756), camera_tags(), id="height not divisible"),
        pytest.param(scene, (888, 752), tags_without_camera(), id="no camera"),
        pytest.param(stripes, (888, 752), tags_without_camera(), id="stripes without a camera"),
        pytest.param(line_art, (888, 752), camera_tags(), id="line art"),
        pytest.param(screenshot, (888, 752), camera_tags(), id="screenshot"),
    ],
)
def test_fast_jpeg_is_exact_if_the_error_could_be_large(
    draw: Draw, size: Size, tags: Image.Exif, tmp_path: Path
) -> None:
    """This holds for a JPEG that is too small, does not name a camera, or has sharp edges."""
    path = write_jpeg(tmp_path / "x.jpg", draw, size, tags)
    np.testing.assert_array_equal(preprocess_fast(path).array, exact_pixels(path))


@pytest.mark.parametrize("fast_jpeg", [False, True], ids=["exact", "fast"])
def test_truncated_large_photograph_is_rejected(fast_jpeg: bool, tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "x.jpg", scene, PHOTO_SIZE, camera_tags())
    path.write_bytes(path.read_bytes()[:-10_000])
    with pytest.raises(ImageError, match=r"^x\.jpg is damaged or incomplete: "):
        preprocess_image(path, CONFIG, fast_jpeg=fast_jpeg)
