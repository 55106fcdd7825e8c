"""A file becomes the square of pixels CLIP looks at. Knows nothing of torch or the network.

On an upright RGB image the result equals open_clip's transform bit for bit, but for two kinds of
large image that are shrunk in stages: there it is within a mean of 0.3 and a maximum of 3 of 255
(tests/test_image.py holds photographs, screenshots, line art and noise to it). Other images become
upright and RGB first: orientation from EXIF is applied, transparency is laid on white, and 16-bit,
floating-point, palette, greyscale and CMYK pixels are converted before they are resized.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from clip_embed import bombs, colours
from clip_embed.errors import ImageError, ModelError
from clip_embed.resize import to_square, to_square_at_once

# What Pillow may try, and nothing else: its rarer decoders are an attack surface without a user.
# MPO, several JPEGs in one, is opened as JPEG: Pillow registers no opener of that name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF")
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and HEIC"

DEFAULT_MAX_PIXELS = 100_000_000

# A camera's JPEG is decoded at a quarter of its size if the shorter side is then still at least
# 3.3 times the model's: 12 megapixels for 224. Less leaves errors of 4 and more at sharp edges, as
# does decoding at half size anything smaller.
JPEG_SCALE = 4
JPEG_MIN_RATIO = 3.3
# What a quarter hides is not known before all is decoded, so it is guessed: from how far the result
# moves if a further half is taken away. Of photographs that is a mean of 0.1 to 0.5 and at most 9;
# of screenshots, line art and noise more than 0.9, and those are decoded whole.
MAX_MEAN_SHIFT, MAX_SHIFT = 0.6, 10
# That guess is blind to stripes one pixel wide in strong colours, whose mean a whole decoding
# clips: errors of 19. No lens draws them, so only a file that names its camera is decoded in part.
_EXIF_MAKE = 0x010F

pillow_heif.register_heif_opener(thumbnails=False)
# The limit below is checked before anything is decoded; Pillow's own would only warn, or refuse
# at a size of its choosing.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Preprocessing:
    """What the model was trained to see, as `preprocess_cfg` of `open_clip_config.json` states it.

    size: pixels per side. mean, std: per channel, of values in 0–1, in RGB order.
    resample: Pillow's filter.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Image.Resampling

    @classmethod
    def from_open_clip(cls, preprocess_cfg: Mapping[str, Any], size: int) -> Preprocessing:
        """Raises ModelError for values missing, malformed or not supported."""
        interpolation = preprocess_cfg.get("interpolation", "bicubic")
        resample = {
            "bicubic": Image.Resampling.BICUBIC,
            "bilinear": Image.Resampling.BILINEAR,
        }.get(interpolation)
        if resample is None:
            raise ModelError(f"preprocess_cfg: interpolation {interpolation!r} is not supported")
        resize_mode = preprocess_cfg.get("resize_mode", "shortest")
        if resize_mode != "shortest":
            raise ModelError(f"preprocess_cfg: resize_mode {resize_mode!r} is not supported")
        return cls(size, _triple(preprocess_cfg, "mean"), _triple(preprocess_cfg, "std"), resample)


def _triple(preprocess_cfg: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    value = preprocess_cfg.get(name)
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or not all(isinstance(v, int | float) for v in value)
    ):
        raise ModelError(f"preprocess_cfg: {name} is {value!r}; expected three numbers")
    red, green, blue = value
    return float(red), float(green), float(blue)


def max_pixels(setting: str | None) -> int:
    """CLIP_MAX_IMAGE_PIXELS as a number; the default where it is not set. Raises ValueError."""
    text = (setting or "").strip() or str(DEFAULT_MAX_PIXELS)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"CLIP_MAX_IMAGE_PIXELS is {text!r}; give a whole number of pixels")
    return int(text)


@dataclass(frozen=True)
class Pixels:
    """A prepared image.

    array: uint8 [S, S, 3], RGB. width, height: of the upright source, in pixels.
    """

    array: npt.NDArray[np.uint8]
    width: int
    height: int


def prepare(
    path: str | os.PathLike[str],
    preprocessing: Preprocessing,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Pixels:
    """Decode, turn upright, convert to RGB, resize the shorter side, crop the centre.

    Raises ImageError if the file is not an image of an accepted format, is damaged, or has more
    than `max_pixels` pixels.
    """
    name = Path(path).name
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image, name, max_pixels)
            _check_effort(image, path, name, max_pixels)
            if _may_be_decoded_in_part(image, preprocessing.size):
                in_part = _prepare_in_part(path, preprocessing)
                if in_part is not None:
                    return in_part
            colours.mend_transparency(image)
            colours.mend_byte_order(image)
            image.load()
            upright = colours.to_rgb(colours.to_upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_unidentified(path, name)) from error
    except MemoryError as error:
        raise ImageError(f"{name} takes more memory than there is; send it smaller") from error
    except Exception as error:
        # Pillow's decoders raise whatever the damaged bytes led them to: OSError, ValueError,
        # SyntaxError, struct.error, zlib.error, IndexError and more.
        [reason, *_] = str(error).splitlines() or [type(error).__name__]
        raise ImageError(
            f"{name} is damaged or incomplete: {reason[:200]}; send the whole file, or save it anew"
        ) from error
    square = to_square(upright, preprocessing.size, preprocessing.resample)
    return Pixels(np.asarray(square, dtype=np.uint8), upright.width, upright.height)


def _may_be_decoded_in_part(image: Image.Image, size: int) -> bool:
    """Whether it is a JPEG from a camera, large enough for a square of `size` pixels a side."""
    return (
        isinstance(image, JpegImageFile)
        and image.mode in ("RGB", "L")
        and min(image.size) >= JPEG_SCALE * JPEG_MIN_RATIO * size
        # Where the scale does not divide a side, the last pixels would stand for more than one.
        and not any(side % (2 * JPEG_SCALE) for side in image.size)
        and bool(str(colours.exif(image, _EXIF_MAKE) or "").strip("\0 "))
    )


def _prepare_in_part(path: str | os.PathLike[str], preprocessing: Preprocessing) -> Pixels | None:
    """The JPEG decoded at a quarter of its size; None if that might show a difference."""
    size, resample = preprocessing.size, preprocessing.resample
    # Opened once more: what has been decoded in part cannot be decoded whole.
    with Image.open(path, formats=("JPEG",)) as image:
        image.draft(None, (image.width // JPEG_SCALE, image.height // JPEG_SCALE))
        image.load()
        upright = colours.to_rgb(colours.to_upright(image))
    array = np.asarray(to_square_at_once(upright, size, resample), dtype=np.uint8)
    coarse = np.asarray(to_square_at_once(upright.reduce(2), size, resample))
    shift = np.abs(array.astype(np.int16) - coarse)
    if shift.mean() > MAX_MEAN_SHIFT or shift.max() > MAX_SHIFT:
        return None
    return Pixels(array, JPEG_SCALE * upright.width, JPEG_SCALE * upright.height)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"{name} is {image.width} × {image.height}, {pixels:,} pixels; the limit is"
            f" {max_pixels:,} (CLIP_MAX_IMAGE_PIXELS); send it smaller"
        )


def _check_effort(
    image: Image.Image, path: str | os.PathLike[str], name: str, max_pixels: int
) -> None:
    """Refuse a small picture that would be a great deal to decode."""
    # Without progression a scan has to spell out every block: its length bounds its cost.
    progressive = image.format in ("JPEG", "MPO") and "progressive" in image.info
    if not progressive and image.format != "TIFF":
        return
    # Mapped, not read: of a large TIFF only a few bytes are looked at.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        scans = bombs.jpeg_scans(data) if progressive else 0
        tile = None if progressive else bombs.tiff_tile(data)
    if scans > bombs.MAX_SCANS:
        raise ImageError(
            f"{name} holds more than {bombs.MAX_SCANS} scans; save it anew as a JPEG that is not"
            " progressive"
        )
    if tile is not None:
        width, height = tile
        across, down = -(-image.width // max(width, 1)), -(-image.height // max(height, 1))
        pixels = across * width * down * height
        # Tiles that stand out at the edges of a picture are allowed as much again as the picture.
        if pixels > max(max_pixels, 2 * image.width * image.height):
            raise ImageError(
                f"{name} is cut from tiles of {width} × {height}, {pixels:,} pixels; the limit is"
                f" {max_pixels:,} (CLIP_MAX_IMAGE_PIXELS); save it anew without tiles"
            )


def _unidentified(path: str | os.PathLike[str], name: str) -> str:
    """What to say of a file that Pillow knows by no more than its beginning, or not at all."""
    with open(path, "rb") as file:
        beginning = file.read(16).ljust(16, b"\0")  # some of its checks need that many
    for known in FORMATS:
        _, accepts = Image.OPEN[known]
        if accepts is not None and accepts(beginning) is True:
            return (
                f"{name} is a damaged {known}, or of a kind this service cannot read; save it anew"
                " as JPEG or PNG"
            )
    return f"{name} is not an image this service can read; send one of {FORMAT_NAMES}"
