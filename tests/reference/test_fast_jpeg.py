"""The error of the inexact shortcuts for large photographs, against open_clip's pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from clip_embed.errors import ImageError
from clip_embed.inputs.preprocess import Pixels, preprocess_image
from tests.helpers.large_images import (
    KINDS,
    Draw,
    Size,
    camera_tags,
    line_art,
    photograph,
    screenshot,
    stripes,
    tags_without_camera,
    write_jpeg,
)
from tests.helpers.sample_images import CONFIG, Array, save_and_preprocess, scene
from tests.reference.open_clip_transform import open_clip_pixels

PHOTO_SIZE = (4000, 3000)
CAMERA_SIZES = [(2944, 2960), PHOTO_SIZE, (3024, 4032)]
"""One step below the smallest size that is decoded at a quarter, and two sizes of real cameras."""

VERY_LARGE_SIZE = (3600, 3584)


def preprocess_fast(path: Path) -> Pixels:
    return preprocess_image(path, CONFIG, fast_jpeg=True)


def exact_pixels(path: Path) -> Array:
    """Return open_clip's pixels of a file that Pillow decodes and turns upright."""
    with Image.open(path) as opened:
        return open_clip_pixels(ImageOps.exif_transpose(opened).convert("RGB"))


def assert_within_limits(pixels: Pixels, exact: Array) -> None:
    shift = np.abs(pixels.array.astype(int) - exact)
    assert shift.mean() <= 0.3
    assert shift.max() <= 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", CAMERA_SIZES, ids=str)
def test_fast_jpeg_is_within_limits(kind: str, size: Size, tmp_path: Path) -> None:
    """A camera's JPEG stays within a mean of 0.3 and a maximum of 3 of 255, whatever it shows."""
    path = write_jpeg(tmp_path / "x.jpg", KINDS[kind], size, camera_tags())
    pixels = preprocess_fast(path)
    assert_within_limits(pixels, exact_pixels(path))
    assert (pixels.width, pixels.height) == size


@pytest.mark.parametrize("kind", KINDS)
def test_halved_image_is_within_limits(kind: str, tmp_path: Path) -> None:
    """Very large images of any format are halved, within the same limits."""
    picture = KINDS[kind](*VERY_LARGE_SIZE)
    pixels = save_and_preprocess(picture, tmp_path / "x.bmp", fast_jpeg=True)
    exact = open_clip_pixels(picture)
    assert_within_limits(pixels, exact)
    assert not np.array_equal(pixels.array, exact)  # it was halved


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_jpeg_of_any_orientation_is_within_limits(orientation: int, tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "x.jpg", photograph, PHOTO_SIZE, camera_tags(orientation))
    pixels, exact = preprocess_fast(path), exact_pixels(path)
    assert_within_limits(pixels, exact)
    width, height = PHOTO_SIZE
    upright_size = (height, width) if orientation > 4 else (width, height)
    assert (pixels.width, pixels.height) == upright_size
    assert not np.array_equal(pixels.array, exact)  # it was decoded at a quarter


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.jpg", {}),
        ("x.mpo", {"save_all": True, "append_images": [Image.new("L", (64, 64))]}),
    ],
    ids=["one photo", "first of two photos"],
)
def test_fast_jpeg_of_a_gray_photo_is_within_limits(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    picture = photograph(*PHOTO_SIZE).convert("L")
    pixels = save_and_preprocess(
        picture, tmp_path / name, fast_jpeg=True, quality=90, exif=camera_tags(), **options
    )
    assert_within_limits(pixels, exact_pixels(tmp_path / name))


@pytest.mark.parametrize(
    ("draw", "size", "tags"),
    [
        pytest.param(scene, (2048, 2056), camera_tags(), id="too small"),
        pytest.param(scene, (4001, 3000), camera_tags(), id="width not divisible"),
        pytest.param(scene, (4000, 3004), camera_tags(), id="height not divisible"),
        pytest.param(photograph, PHOTO_SIZE, tags_without_camera(), id="no camera"),
        pytest.param(stripes, PHOTO_SIZE, tags_without_camera(), id="stripes without a camera"),
        pytest.param(line_art, PHOTO_SIZE, camera_tags(), id="line art"),
        pytest.param(screenshot, PHOTO_SIZE, camera_tags(), id="screenshot"),
    ],
)
def test_fast_jpeg_is_exact_if_the_error_could_be_large(
    draw: Draw, size: Size, tags: Image.Exif, tmp_path: Path
) -> None:
    """This holds for a JPEG that is too small, does not name a camera, or has sharp edges."""
    path = write_jpeg(tmp_path / "x.jpg", draw, size, tags)
    np.testing.assert_array_equal(preprocess_fast(path).array, exact_pixels(path))


def test_truncated_large_photograph_is_rejected(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "x.jpg", photograph, PHOTO_SIZE, camera_tags())
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(ImageError, match=r"^x\.jpg is damaged or incomplete: "):
        preprocess_fast(path)
