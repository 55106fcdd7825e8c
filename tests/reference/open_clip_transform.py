"""Preprocess images with open_clip, the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose

from tests.helpers.sample_images import SIZE, Array

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
TRANSFORM = image_transform_v2(PreprocessCfg(size=SIZE, mean=MEAN, std=STD), is_train=False)
_RESIZE_AND_CROP: Callable[[Image.Image], Image.Image] = Compose(TRANSFORM.transforms[:2])


def open_clip_pixels(picture: Image.Image) -> Array:
    """Return the pixels of an upright RGB image before they are normalized: uint8 [S, S, 3]."""
    assert picture.mode == "RGB"
    return np.asarray(_RESIZE_AND_CROP(picture))
