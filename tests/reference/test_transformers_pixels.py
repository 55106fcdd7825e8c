"""Pixels compared with those of transformers, as docs/migration.md describes the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from clip_embed.inputs.preprocess import preprocess_image
from tests.helpers.paths import ROOT
from tests.helpers.sample_images import CONFIG, MEAN, STD

Array = npt.NDArray[np.float64]


def preprocess_with_both(path: Path, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return our pixels and transformers', [S, S, 3] of 0–255, of a photo resized to `size`."""
    photo = Image.open(ROOT / "examples" / "cat.jpg").convert("RGB").resize(size)
    photo.save(path)
    ours = preprocess_image(path, CONFIG).array
    (values,) = CLIPImageProcessor()(images=photo, return_tensors="np")["pixel_values"]
    theirs = (values.transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)) * 255
    return ours.astype(np.float64), theirs


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (300, 300), (333, 500), (451, 300)])
def test_pixels_differ_from_transformers_by_1_at_most(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """transformers resizes with torch, which rounds differently."""
    ours, theirs = preprocess_with_both(tmp_path / "photo.png", size)
    assert np.abs(ours - theirs).max() < 1.01


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (500, 334), (1000, 667)])
def test_crop_may_differ_from_transformers_by_one_pixel(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """If 3 of 4 pixels remain, half of them is rounded up here and always down there."""
    ours, theirs = preprocess_with_both(tmp_path / "photo.png", size)
    longer = int(224 * max(size) / min(size))
    assert (longer - 224) % 4 == 3
    if size[0] < size[1]:
        ours, theirs = ours.transpose(1, 0, 2), theirs.transpose(1, 0, 2)
    assert np.abs(ours - theirs).max() > 10
    assert np.abs(ours[:, :-1] - theirs[:, 1:]).max() < 1.01
