"""Turn an image file into the square of pixels that CLIP reads. Knows no torch and no network.

For an upright RGB image the result equals open_clip's transform bit for bit (long strips excepted:
resize.py). Other images become upright and RGB first: EXIF orientation is applied, transparency is
laid on white, and 16-bit, floating-point, palette, grayscale and CMYK pixels are converted before
they are resized.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image, ImageFile, UnidentifiedImageError

from clip_embed.errors import ImageError, ModelError
from clip_embed.inputs import color, decode_limits, png_chunks, truncation
from clip_embed.inputs.fast_jpeg import (
    can_decode_at_quarter,
    decode_at_quarter,
    halve_if_very_large,
)
from clip_embed.inputs.jpeg_end_marker import append_missing_eoi
from clip_embed.inputs.resize import resize_and_center_crop
from clip_embed.inputs.tiff_fixes import (
    KIND_TAGS,
    describe_kind,
    fix_tiff,
    gray_samples,
    is_8_bit,
)
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
        filters = {
            "bicubic": Image.Resampling.BICUBIC,
            "bilinear": Image.Resampling.BILINEAR,
        }
        resample = filters.get(interpolation) if isinstance(interpolation, str) else None
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
        or not all(_is_finite(v) for v in value)
    ):
        raise ModelError(f"preprocess_cfg: {name} is {value!r}; expected three numbers")
    red, green, blue = value
    return float(red), float(green), float(blue)


def _is_finite(value: object) -> bool:
    """Tell whether `value` is a number that float64 holds. JSON has NaN, true and 10**400 too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True)
class Pixels:
    """A preprocessed image.

    array: uint8 [S, S, 3], RGB. width, height: of the upright source, in pixels.
    """

    array: npt.NDArray[np.uint8]
    width: int
    height: int


def preprocess_image(
    source: str | os.PathLike[str] | BinaryIO,
    config: PreprocessConfig,
    max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
    fast_jpeg: bool = False,
    name: str = "image",
) -> Pixels:
    """Decode, apply the EXIF orientation, convert to RGB, resize the shorter side, crop the center.

    source: a path, or the open file, which may be a BytesIO. fast_jpeg: allow the inexact shortcuts
    of fast_jpeg.py for large photographs. name: what messages call an open file; a path has its own
    name.

    Raises ImageError if the file is not an image of an accepted format, is damaged or incomplete,
    or has more than `max_pixels` pixels.
    """
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return preprocess_image(file, config, max_pixels, fast_jpeg, Path(source).name)
    try:
        return _preprocess(source, config, max_pixels, fast_jpeg, name)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_describe_unidentified(source, name)) from error
    except MemoryError as error:
        raise ImageError(f"{name} takes more memory than there is; send it smaller") from error
    except Exception as error:
        # Damaged bytes make Pillow's decoders raise exceptions of many types: OSError, ValueError,
        # SyntaxError, struct.error, zlib.error, IndexError and more.
        [reason, *_] = str(error).splitlines() or [type(error).__name__]
        raise ImageError(
            f"{name} is damaged or incomplete: {reason[:200]}; send the whole file, or save it anew"
        ) from error


def _preprocess(
    file: BinaryIO, config: PreprocessConfig, max_pixels: int, fast_jpeg: bool, name: str
) -> Pixels:
    """Preprocess an open file. Complete a JPEG that lacks only its last marker.

    Raises ImageError, or whatever Pillow raises.
    """
    try:
        return _preprocess_whole(file, config, max_pixels, fast_jpeg, name)
    except OSError:  # an ordinary JPEG never comes here, so it costs nothing
        completed = _append_missing_eoi(file)
        if completed is None:
            raise
        return _preprocess_whole(completed, config, max_pixels, fast_jpeg, name)


def _preprocess_whole(
    file: BinaryIO, config: PreprocessConfig, max_pixels: int, fast_jpeg: bool, name: str
) -> Pixels:
    """Preprocess an open file that is whole. Raises ImageError, or whatever Pillow raises."""
    file, frame = _check_container(file, name)
    with Image.open(file, formats=FORMATS) as image:
        _check_size(image, name, max_pixels)
        _check_decoding_cost(image, file, name, max_pixels)
        if fast_jpeg and can_decode_at_quarter(image, config.size):
            fast = decode_at_quarter(file, config.size, config.resample)
            if fast is not None:
                array, (width, height) = fast
                return Pixels(array, width, height)
        upright = _load_upright(image, frame, file, name)
    width, height = upright.size
    if fast_jpeg:
        upright = halve_if_very_large(upright, config.size)
    square = resize_and_center_crop(upright, config.size, config.resample)
    return Pixels(np.asarray(square, dtype=np.uint8), width, height)


def _check_container(
    file: BinaryIO, name: str
) -> tuple[BinaryIO, tuple[int, int, int, int] | None]:
    """Check that a file is whole. Return what Pillow is to read, and the first frame of a WebP.

    Raises ImageError if the file is empty or ends too early.
    """
    if file.seek(0, os.SEEK_END) == 0:
        raise ImageError(f"{name} is empty; send an image")
    file.seek(0)
    beginning = file.read(12)
    file.seek(0)
    is_png, is_webp = beginning.startswith(png_chunks.SIGNATURE), beginning[8:] == b"WEBP"
    if not is_png and not is_webp and beginning[4:8] != b"ftyp":
        return file, None
    with _content(file) as data:
        if is_png:
            return png_chunks.drop_unused_chunks(file, data, name), None
        if cut := truncation.find_truncation(data):
            raise ImageError(f"{name} is incomplete: {cut}; send the whole file")
        return file, truncation.webp_first_frame(data) if is_webp else None


def _append_missing_eoi(file: BinaryIO) -> BinaryIO | None:
    """Return a JPEG that lacks only its last marker with that marker, None for any other file."""
    file.seek(0)
    if file.read(2) != b"\xff\xd8":
        return None
    file.seek(-2, os.SEEK_END)
    if file.read(2) == b"\xff\xd9":
        return None
    file.seek(0)
    return append_missing_eoi(file.read())


def _load_upright(
    image: ImageFile.ImageFile,
    frame: tuple[int, int, int, int] | None,
    file: BinaryIO,
    name: str,
) -> Image.Image:
    """Decode an image and convert it to upright RGB. frame: where the first frame lies, if known.

    Raises ImageError, or whatever Pillow raises.
    """
    color.ignore_xmp(image)
    color.fix_png_transparency(image)
    samples = gray_samples(image)
    if image.format == "TIFF":
        if cut := truncation.find_tiff_truncation(image.tag_v2, file.seek(0, os.SEEK_END)):  # type: ignore[attr-defined]
            raise ImageError(f"{name} is incomplete: {cut}; send the whole file")
        fix_tiff(image, name)
    elif image.format == "GIF" and image.tile:
        frame = image.tile[0].extents
    image.load()
    picture: Image.Image = image
    if image.format in ("BMP", "DIB"):
        picture = color.drop_empty_alpha(image)
    elif frame is not None and frame != (0, 0, *image.size):
        picture = color.lay_frame_on_white(image, frame)
    return color.to_rgb(color.to_upright(picture), samples)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"{name} is {image.width} × {image.height}, {pixels:,} pixels; the limit is"
            f" {max_pixels:,} (CLIP_MAX_IMAGE_PIXELS); send it smaller"
        )


@contextlib.contextmanager
def _content(file: BinaryIO) -> Iterator[memoryview | mmap.mmap]:
    """Give access to the bytes of a file without reading them all."""
    if isinstance(file, io.BytesIO):
        with file.getbuffer() as view:
            yield view
    else:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped


def _check_decoding_cost(image: Image.Image, file: BinaryIO, name: str, max_pixels: int) -> None:
    """Refuse an image that costs far more to decode than its pixels. Raises ImageError."""
    # A scan of a sequential JPEG encodes every block, so its length bounds its cost.
    progressive = image.format in ("JPEG", "MPO") and "progressive" in image.info
    if not progressive and image.format != "TIFF":
        return
    with _content(file) as data:
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


# What may stand before the first tag of HTML or SVG. Possessive: otherwise a regular expression
# could try every way to divide a row of comments.
_BEFORE_TAG = rb"(?>\s+|<!--.*?-->|<\?xml[^>]*>|<!doctype (?!html)[^>\[]*(?:\[.*?\])?\s*>)*+"
# What is sent instead of an image: its beginning, its name and the way out.
_NOT_IMAGES = (
    (rb"%pdf-", "a PDF, not an image", "send a page of it as PNG or JPEG"),
    (_BEFORE_TAG + rb"<svg[\s>]", "an SVG, which this service cannot draw", "send it as a PNG"),
    (
        _BEFORE_TAG + rb"<(?:!doctype html|html|head|body)[\s>]",
        "an HTML page, not an image",
        "send the image's own address",
    ),
)


def _describe_unidentified(file: BinaryIO, name: str) -> str:
    """Say what is wrong with a file that Pillow cannot open."""
    file.seek(0)
    beginning = file.read(1_000).ljust(16, b"\0")  # some of Pillow's checks need so many
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for pattern, what, way_out in _NOT_IMAGES:
        if re.match(pattern, text, re.DOTALL):
            return f"{name} is {what}; {way_out}"
    for known in FORMATS:
        _, accepts = Image.OPEN[known]
        if accepts is not None and accepts(beginning[:16]) is True:
            return (known == "TIFF" and _describe_tiff(file, name)) or (
                f"{name} is a damaged {known}, or of a kind this service cannot read; save it anew"
                " as JPEG or PNG"
            )
    return f"{name} is not an image this service can read; send one of {FORMAT_NAMES}"


def _describe_tiff(file: BinaryIO, name: str) -> str | None:
    """Name the kind of a TIFF that Pillow cannot open, None if its tags cannot be read."""
    with _content(file) as data, contextlib.suppress(struct.error):
        tags = decode_limits.read_tiff_tags(data, KIND_TAGS)
        if tags and not is_8_bit(tags):
            return describe_kind(tags, name)
    return None
