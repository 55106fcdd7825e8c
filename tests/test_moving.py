"""What the README says of moving here from other software, where a test can see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from clip_embed.image import Preprocessing, prepare
from conftest import ROOT

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def both(path: Path, size: tuple[int, int]) -> list[npt.NDArray[np.float64]]:
    """Pixels [S, S, 3] of 0–255 of a photograph scaled to `size`: ours, and transformers'."""
    photo = Image.open(ROOT / "examples" / "cat.jpg").convert("RGB").resize(size)
    photo.save(path)
    ours = prepare(path, Preprocessing(224, MEAN, STD, Image.Resampling.BICUBIC)).array
    (values,) = CLIPImageProcessor()(images=photo, return_tensors="np")["pixel_values"]
    theirs = (values.transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)) * 255
    return [ours.astype(np.float64), theirs]


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (300, 300), (333, 500), (451, 300)])
def test_pixels_equal_those_of_transformers(tmp_path: Path, size: tuple[int, int]) -> None:
    """Up to 1 of 255, which its resizing in torch rounds otherwise."""
    ours, theirs = both(tmp_path / "photo.png", size)
    assert np.abs(ours - theirs).max() < 1.01


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (500, 334), (1000, 667)])
def test_its_crop_may_lie_one_pixel_aside(tmp_path: Path, size: tuple[int, int]) -> None:
    """Where 3 of 4 pixels are left over: here half of them is rounded up, there always down."""
    ours, theirs = both(tmp_path / "photo.png", size)
    longer = int(224 * max(size) / min(size))
    assert (longer - 224) % 4 == 3
    if size[0] < size[1]:
        ours, theirs = ours.transpose(1, 0, 2), theirs.transpose(1, 0, 2)
    assert np.abs(ours - theirs).max() > 10
    assert np.abs(ours[:, :-1] - theirs[:, 1:]).max() < 1.01
