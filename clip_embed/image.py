"""A file becomes the square of pixels CLIP looks at. Knows nothing of torch or the network.

On an upright RGB image the result equals open_clip's transform bit for bit, but for two kinds of
large image that are shrunk in stages: there it is within a mean of 0.3 and a maximum of 3 of 255
(tests/test_image.py holds photographs, screenshots, line art and noise to it). Other images become
upright and RGB first: orientation from EXIF is applied, transparency is laid on white, and 16-bit,
floating-point, palette, greyscale and CMYK pixels are converted before they are resized.
"""

from __future__ import annotations

import math
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

from clip_embed.errors import ImageError, ModelError

# What Pillow may try, and nothing else: its rarer decoders are an attack surface without a user.
# MPO, several JPEGs in one, is opened as JPEG: Pillow registers no opener of that name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF")
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and HEIC"

DEFAULT_MAX_PIXELS = 100_000_000

# A long strip resized as CLIP resizes it would be mostly cropped away again: 1 × 20,000 pixels
# become 224 × 4,480,000. Beyond this many pixels only the part that survives is computed, which
# differs from the whole by at most 2 of 255 (coordinates round differently, in each direction).
WHOLE_RESIZE_MAX_PIXELS = 16_000_000

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
# Any image is halved by plain averages first if that leaves at least 8 times the model's size.
HALVING_MIN_RATIO = 8

# EXIF orientation → what makes the image upright. Source: CIPA DC-008 (EXIF 2.32), tag 0x0112.
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
            photograph = _prepare_photograph(image, preprocessing)
        if photograph is not None:
            return photograph
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image, name, max_pixels)
            image.load()
            upright = _to_rgb(_to_upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image this service can read; send one of {FORMAT_NAMES}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever the damaged bytes led them to: OSError, ValueError,
        # SyntaxError, struct.error, zlib.error, IndexError and more.
        raise ImageError(f"{name} is damaged or incomplete: {error}") from error
    array = _resize_and_crop(_halve(upright, preprocessing.size), preprocessing)
    return Pixels(np.asarray(array, dtype=np.uint8), upright.width, upright.height)


def _prepare_photograph(image: Image.Image, preprocessing: Preprocessing) -> Pixels | None:
    """A large JPEG from a camera, decoded at a quarter of its size, if that shows no difference.

    None if it is not such an image. The image cannot be decoded whole afterwards: open it again.
    """
    if not isinstance(image, JpegImageFile) or image.mode not in ("RGB", "L"):
        return None
    # Where the scale does not divide a side, the last pixels would stand for more than they are.
    if (
        min(image.size) < JPEG_SCALE * JPEG_MIN_RATIO * preprocessing.size
        or image.width % (2 * JPEG_SCALE)
        or image.height % (2 * JPEG_SCALE)
        or not _names_a_camera(image)
    ):
        return None
    image.draft(None, (image.width // JPEG_SCALE, image.height // JPEG_SCALE))
    image.load()
    upright = _to_rgb(_to_upright(image))
    array = np.asarray(_resize_and_crop(upright, preprocessing), dtype=np.uint8)
    coarse = np.asarray(_resize_and_crop(upright.reduce(2), preprocessing))
    shift = np.abs(array.astype(np.int16) - coarse)
    if shift.mean() > MAX_MEAN_SHIFT or shift.max() > MAX_SHIFT:
        return None
    return Pixels(array, JPEG_SCALE * upright.width, JPEG_SCALE * upright.height)


def _names_a_camera(image: Image.Image) -> bool:
    try:
        return bool(str(image.getexif().get(_EXIF_MAKE, "")).strip("\0 "))
    except Exception:  # damaged EXIF in an intact image: as if there were none
        return False


def _halve(image: Image.Image, size: int) -> Image.Image:
    """Half the image if it is so large that nobody will tell, else the image."""
    odd = image.width % 2 or image.height % 2
    return image if odd or min(image.size) < 2 * HALVING_MIN_RATIO * size else image.reduce(2)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"{name} is {image.width} × {image.height}, {pixels:,} pixels; the limit is"
            f" {max_pixels:,} (CLIP_MAX_IMAGE_PIXELS); send it smaller"
        )


def _to_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged EXIF in an intact image: as if there were none
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image)
        eight_bit = _to_8_bit(grey)
        if "transparency" in image.info:  # the one transparent value of a 16-bit PNG
            eight_bit[grey == image.info["transparency"]] = 255
        return Image.fromarray(eight_bit).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _to_8_bit(grey: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """One channel of 16- or 32-bit integers, or of floats, to 0–255.

    Integers are read as 16-bit, where 65535 is white; 32-bit ones as 8-bit if none exceeds 255.
    Floats are read as 0–1 unless one exceeds 1; then as 0–255. What lies outside is clipped; NaN is
    black, infinity white.
    """
    values = np.where(np.isnan(grey), 0, grey).astype(np.float32)
    highest = float(values.max(initial=0.0, where=np.isfinite(values)))
    if np.issubdtype(grey.dtype, np.floating):
        scale = 255.0 if highest <= 1.0 else 1.0
    else:
        scale = 255.0 / 65535.0 if highest > 255.0 or grey.dtype.itemsize == 2 else 1.0
    eight_bit: npt.NDArray[np.uint8] = np.clip(values * scale, 0, 255).round().astype(np.uint8)
    return eight_bit


def _resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """torchvision's Resize (shorter side) and CenterCrop, on the part that survives the crop."""
    size = preprocessing.size
    width, height = image.size
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    # torchvision rounds half to even here, as Python's round does.
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    if new_width * new_height <= WHOLE_RESIZE_MAX_PIXELS:
        if (new_width, new_height) != (width, height):
            image = image.resize((new_width, new_height), preprocessing.resample)
        return image.crop((left, top, left + size, top + size))
    return _resize_part(image, (new_width, new_height), (left, top), preprocessing)


def _resize_part(
    image: Image.Image,
    new_size: tuple[int, int],
    corner: tuple[int, int],
    preprocessing: Preprocessing,
) -> Image.Image:
    """The square at `corner` of `image` resized to `new_size`, from no more than it draws on."""
    size, resample = preprocessing.size, preprocessing.resample
    # A pass in one direction rounds to 8 bits before the other begins, so their order shows. This
    # is Pillow 13's choice for the whole; for a part it would often choose otherwise.
    down_first = image.height - new_size[1] > 2 * max(image.width - new_size[0], 0)
    spans = []
    for old, new, first in zip(image.size, new_size, corner, strict=True):
        scale = old / new
        begin, end = first * scale, (first + size) * scale
        # Bicubic draws on two source pixels either way, and on more as it shrinks.
        reach = math.ceil(2 * max(scale, 1.0)) + 1
        low, high = max(math.floor(begin) - reach, 0), min(math.ceil(end) + reach, old)
        spans.append((low, high, begin - low, end - low))
    (left, right, x0, x1), (top, bottom, y0, y1) = spans
    # Cut first: Pillow keeps a box in float32, too coarse far along a strip.
    image = image.crop((left, top, right, bottom))
    if down_first:
        image = image.resize((image.width, size), resample, box=(0, y0, image.width, y1))
        return image.resize((size, size), resample, box=(x0, 0, x1, size))
    image = image.resize((size, image.height), resample, box=(x0, 0, x1, image.height))
    return image.resize((size, size), resample, box=(0, y0, size, y1))
