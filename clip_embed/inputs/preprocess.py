"""Turn an image file into the square of pixels that CLIP reads. Knows no torch and no network.

For an upright RGB image the result equals open_clip's transform bit for bit (long strips excepted:
resize.py). Other images become upright and RGB first: EXIF orientation is applied, transparency is
laid on white, and 16-bit, floating-point, palette, grayscale and CMYK pixels are converted before
they are resized.
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

from clip_embed.errors import ImageError, ModelError
from clip_embed.inputs import color, decode_limits
from clip_embed.inputs.fast_jpeg import (
    can_decode_at_quarter,
    decode_at_quarter,
    halve_if_very_large,
)
from clip_embed.inputs.resize import resize_and_center_crop
from clip_embed.settings import DEFAULT_MAX_IMAGE_PIXELS

# The formats that Pillow may try. Its rarer decoders are an attack surface without users.
# MPO, several JPEGs in one file, is opened as JPEG: Pillow registers no opener of that name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF")
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and HEIC"

pillow_heif.register_heif_opener(thumbnails=False)
# The limit on pixels is checked here before anything is decoded; Pillow's own would only warn, or
# refuse at a size of its choosing.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class PreprocessConfig:
    """The preprocessing of the model: `preprocess_cfg` of `open_clip_config.json`.

    size: pixels per side. mean, std: per channel, of values in 0–1, in RGB order.
    resample: Pillow's filter.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Image.Resampling

    @classmethod
    def from_open_clip(cls, preprocess_cfg: Mapping[str, Any], size: int) -> PreprocessConfig:
        """Read open_clip's `preprocess_cfg`. size: of the model's input, in pixels.

        Raises ModelError for a value that is missing, malformed or not supported.
        """
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


@dataclass(frozen=True)
class Pixels:
    """A preprocessed image.

    array: uint8 [S, S, 3], RGB. width, height: of the upright source, in pixels.
    """

    array: npt.NDArray[np.uint8]
    width: int
    height: int


def preprocess_image(
    path: str | os.PathLike[str],
    config: PreprocessConfig,
    max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
    fast_jpeg: bool = False,
) -> Pixels:
    """Decode, apply the EXIF orientation, convert to RGB, resize the shorter side, crop the center.

    fast_jpeg: allow the inexact shortcuts of fast_jpeg.py for large photographs.

    Raises ImageError if the file is not an image of an accepted format, is damaged, or has more
    than `max_pixels` pixels.
    """
    name = Path(path).name
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image, name, max_pixels)
            _check_decoding_cost(image, path, name, max_pixels)
            if fast_jpeg and can_decode_at_quarter(image, config.size):
                fast = decode_at_quarter(path, config.size, config.resample)
                if fast is not None:
                    array, (width, height) = fast
                    return Pixels(array, width, height)
            color.fix_png_transparency(image)
            color.fix_tiff_byte_order(image)
            image.load()
            upright = color.to_rgb(color.to_upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_describe_unidentified(path, name)) from error
    except MemoryError as error:
        raise ImageError(f"{name} takes more memory than there is; send it smaller") from error
    except Exception as error:
        # Damaged bytes make Pillow's decoders raise exceptions of many types: OSError, ValueError,
        # SyntaxError, struct.error, zlib.error, IndexError and more.
        [reason, *_] = str(error).splitlines() or [type(error).__name__]
        raise ImageError(
            f"{name} is damaged or incomplete: {reason[:200]}; send the whole file, or save it anew"
        ) from error
    width, height = upright.size
    if fast_jpeg:
        upright = halve_if_very_large(upright, config.size)
    square = resize_and_center_crop(upright, config.size, config.resample)
    return Pixels(np.asarray(square, dtype=np.uint8), width, height)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"{name} is {image.width} × {image.height}, {pixels:,} pixels; the limit is"
            f" {max_pixels:,} (CLIP_MAX_IMAGE_PIXELS); send it smaller"
        )


def _check_decoding_cost(
    image: Image.Image, path: str | os.PathLike[str], name: str, max_pixels: int
) -> None:
    """Refuse an image that costs far more to decode than its pixels. Raises ImageError."""
    # A scan of a sequential JPEG encodes every block, so its length bounds its cost.
    progressive = image.format in ("JPEG", "MPO") and "progressive" in image.info
    if not progressive and image.format != "TIFF":
        return
    # Mapped, not read: only a few bytes of a large TIFF are needed.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        scans = decode_limits.count_jpeg_scans(data) if progressive else 0
        tile = None if progressive else decode_limits.tiff_tile_size(data)
    if scans > decode_limits.MAX_SCANS:
        raise ImageError(
            f"{name} holds more than {decode_limits.MAX_SCANS} scans; save it anew as a JPEG that"
            " is not progressive"
        )
    if tile is not None:
        width, height = tile
        across, down = -(-image.width // max(width, 1)), -(-image.height // max(height, 1))
        pixels = across * width * down * height
        # The parts of edge tiles outside the image may be as large as the image itself.
        if pixels > max(max_pixels, 2 * image.width * image.height):
            raise ImageError(
                f"{name} is cut from tiles of {width} × {height}, {pixels:,} pixels; the limit is"
                f" {max_pixels:,} (CLIP_MAX_IMAGE_PIXELS); save it anew without tiles"
            )


def _describe_unidentified(path: str | os.PathLike[str], name: str) -> str:
    """Say what is wrong with a file that Pillow cannot open."""
    with open(path, "rb") as file:
        beginning = file.read(16).ljust(16, b"\0")  # some of Pillow's checks need so many
    for known in FORMATS:
        _, accepts = Image.OPEN[known]
        if accepts is not None and accepts(beginning) is True:
            return (
                f"{name} is a damaged {known}, or of a kind this service cannot read; save it anew"
                " as JPEG or PNG"
            )
    return f"{name} is not an image this service can read; send one of {FORMAT_NAMES}"
