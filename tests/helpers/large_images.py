"""Draw large images of several kinds, and write them as a camera does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.helpers.paths import PHOTOS
from tests.helpers.sample_images import noise

Size = tuple[int, int]
Draw = Callable[[int, int], Image.Image]

EXIF_MAKE, EXIF_ORIENTATION = 0x010F, 0x0112


@functools.lru_cache(maxsize=1)
def photograph(width: int, height: int) -> Image.Image:
    """Return an enlarged photo with the noise of a sensor."""
    with Image.open(PHOTOS[0]) as photo:
        large = photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(1).standard_normal((height, width, 3), np.float32) * 6
    return Image.fromarray((np.asarray(large) + grain).clip(0, 255).astype(np.uint8))


def screenshot(width: int, height: int) -> Image.Image:
    """Return small colored text and boxes on white and gray."""
    window = _window()
    page = Image.new("RGB", (width, height))
    for x in range(0, width, window.width):
        for y in range(0, height, window.height):
            page.paste(window, (x, y))
    return page


@functools.cache
def _window() -> Image.Image:
    rng = Random(2)
    width, height = 1000, 1001
    window = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(window)
    draw.rectangle((0, 0, width // 5, height), fill=(230, 233, 240))
    font = ImageFont.load_default(14)
    line = "The quick brown fox jumps over the lazy dog 0123456789 " * 3
    for y in range(10, height, 19):
        color = rng.randrange(200), rng.randrange(200), rng.randrange(200)
        draw.text((width // 5 + 10, y), line, fill=color, font=font)
        draw.rectangle((5, y, rng.randrange(20, width // 5), y + 12), fill=color)
    return window


def line_art(width: int, height: int) -> Image.Image:
    """Return thin, sharp lines in all directions on white, most of them black."""
    rng = Random(3)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for number in range(width * height // 30_000):
        ends = [rng.randrange(side) for side in (width, height, width, height)]
        color = "black" if number % 4 else (rng.randrange(256), rng.randrange(256), 0)
        draw.line(ends, fill=color, width=rng.randrange(1, 8))
    return page


def stripes(width: int, height: int) -> Image.Image:
    """Return red and black stripes one pixel wide, which decoding at a quarter gets wrong by 19."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[:, ::2] = (255, 0, 0)
    return Image.fromarray(values)


KINDS: dict[str, Draw] = {
    "photograph": photograph,
    "screenshot": screenshot,
    "line art": line_art,
    "noise": noise,
}


def camera_tags(orientation: int = 1) -> Image.Exif:
    """Return EXIF as a camera writes it, with the name of its maker."""
    tags = Image.Exif()
    tags[EXIF_ORIENTATION] = orientation
    tags[EXIF_MAKE] = "A maker of cameras"
    return tags


def tags_without_camera() -> Image.Exif:
    tags = Image.Exif()
    tags[EXIF_ORIENTATION] = 1
    return tags


def write_jpeg(path: Path, draw: Draw, size: Size, tags: Image.Exif) -> Path:
    """Write a JPEG with EXIF tags. Each picture is drawn and encoded once per session."""
    data, exif = _encoded_jpeg(draw, size), tags.tobytes()
    # The APP1 segment that holds EXIF follows the start-of-image marker.
    app1 = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path.write_bytes(data[:2] + app1 + data[2:])
    return path


@functools.cache
def _encoded_jpeg(draw: Draw, size: Size) -> bytes:
    encoded = BytesIO()
    draw(*size).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()
