"""Resize and center crop of a part: long strips, and the inexact shortcut.

tests/reference/test_pixels.py compares the resize of images of all sizes with open_clip's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_embed.inputs import resize
from clip_embed.inputs.resize import resize_center_only
from tests.helpers.sample_images import (
    SIZE,
    SIZES,
    black_and_white_noise,
    exact_pixels,
    max_difference,
    save_and_preprocess,
)

BICUBIC = Image.Resampling.BICUBIC


@pytest.mark.parametrize("kind", ["tall strips", "wide strips"])
def test_resizing_only_the_center_part_is_within_2_of_255(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black-and-white noise shows the largest error."""
    for width, height in SIZES[kind][::8]:
        picture = black_and_white_noise(width, height)
        whole = exact_pixels(picture)
        with monkeypatch.context() as patched:
            patched.setattr(resize, "WHOLE_RESIZE_MAX_PIXELS", 0)
            part = exact_pixels(picture)
        assert max_difference(part, whole) <= 2, f"{width} × {height} differs"


@pytest.mark.parametrize(
    ("width", "height"), [(448, 448), (449, 600), (740, 745), (1001, 741), (1500, 900)]
)
def test_resize_center_only_is_within_1_of_255(width: int, height: int) -> None:
    """This holds for images that shrink by half or more; smaller ones differ by up to 30."""
    picture = black_and_white_noise(width, height)
    square = np.asarray(resize_center_only(picture, SIZE, BICUBIC))
    assert max_difference(square, exact_pixels(picture)) <= 1


@pytest.mark.parametrize(
    ("width", "height"), [(1, 20_000), (20_000, 1), (1, 1_000_001), (4_000_000, 1)]
)
def test_very_long_strip_is_resized_in_part(width: int, height: int, tmp_path: Path) -> None:
    """Resized as a whole, a strip one pixel wide would exceed any machine's memory."""
    length = max(width, height)
    values = np.random.default_rng(0).integers(0, 256, (length, 1), dtype=np.uint8)
    # Each pixel becomes 224 × 224, so the square needs only a few pixels around the middle.
    top = round((SIZE * length - SIZE) / 2)
    first = top // SIZE - 5
    middle = Image.fromarray(values[first : first + 12]).convert("RGB")
    middle = middle.resize((SIZE, 12 * SIZE), BICUBIC)
    square = np.asarray(middle)[top - first * SIZE :][:SIZE]
    if width > height:
        values, square = values.T, square.transpose(1, 0, 2)
    pixels = save_and_preprocess(Image.fromarray(values), tmp_path / "strip.tif")
    assert (pixels.width, pixels.height) == (width, height)
    assert max_difference(pixels.array, square) <= 1
