"""A file becomes the square of pixels CLIP looks at. Knows nothing of torch or the network.

On an upright RGB image the result equals open_clip's transform bit for bit. Other images become
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
from PIL import Image, ImageFile, UnidentifiedImageError

from clip_embed import bombs
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
            _check_effort(image, path, name, max_pixels)
            _mend_transparency(image)
            _mend_byte_order(image)
            image.load()
            upright = _to_rgb(_to_upright(image))
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
    square = _resize_and_crop(upright, preprocessing)
    return Pixels(np.asarray(square, dtype=np.uint8), upright.width, upright.height)


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
    if image.format in ("JPEG", "MPO"):
        if bombs.jpeg_scans(Path(path).read_bytes()) > bombs.MAX_SCANS:
            raise ImageError(
                f"{name} holds more than {bombs.MAX_SCANS} scans; save it anew as a JPEG that is"
                " not progressive"
            )
    elif image.format == "TIFF" and (tile := bombs.tiff_tile(Path(path).read_bytes())):
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


def _mend_transparency(image: ImageFile.ImageFile) -> None:
    """The transparent colour of a PNG that has not 8 bits, as Pillow's 8 bits show it.

    Pillow keeps the number in the file, and compares it with what it makes of the pixels. Of 16-bit
    RGB it keeps the upper halves: colours that differ from the transparent one only in the lower
    halves are as transparent.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or not image.tile:
        return
    raw_mode = image.tile[0].args
    if raw_mode == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif raw_mode in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[raw_mode]


_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}


def _mend_byte_order(image: ImageFile.ImageFile) -> None:
    """libtiff, which reads compressed TIFFs, hands out numbers in this machine's byte order; Pillow
    takes some for the file's, and would show another picture."""
    for number, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
            raw_mode, *rest = tile.args
            args = (_NATIVE.get(raw_mode, raw_mode), *rest)
            image.tile[number] = tile._replace(args=args)


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
    values = np.where(np.isnan(grey), 0, grey).astype(np.float32, copy=False)
    highest = float(values.max(initial=0.0, where=np.isfinite(values)))
    if np.issubdtype(grey.dtype, np.floating):
        scale = 255.0 if highest <= 1.0 else 1.0
    else:
        scale = 255.0 / 65535.0 if highest > 255.0 or grey.dtype.itemsize == 2 else 1.0
    values *= np.float32(scale)  # in place from here on: this is where most memory is taken
    np.clip(values, 0, 255, out=values)
    eight_bit: npt.NDArray[np.uint8] = np.round(values, out=values).astype(np.uint8)
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
