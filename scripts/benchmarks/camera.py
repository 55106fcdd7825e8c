"""Make photographs as a phone's camera writes them, since the repository holds none of 12
megapixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

LARGE = (4032, 3024)  # width, height
NOISE = 6  # standard deviation, of 255
EXIF_MAKE = 0x010F  # the camera's maker


def write_camera_photo(photo: Path, path: Path) -> None:
    """Write `photo` as a JPEG of 12 megapixels, with a sensor's noise and the camera's name."""
    with Image.open(photo) as image:
        enlarged = image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, NOISE, (LARGE[1], LARGE[0], 3)).astype(np.float32)
    pixels = (np.asarray(enlarged) + noise).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[EXIF_MAKE] = "a camera"
    Image.fromarray(pixels).save(path, quality=90, exif=exif)
