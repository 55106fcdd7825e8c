"""Convert any image that Pillow has opened to upright 8-bit RGB. Knows nothing of sizes or CLIP."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from clip_embed.inputs.tiff_fixes import GraySamples

# EXIF orientation → the operation that makes the image upright.
# Source: CIPA DC-008 (EXIF 2.32), tag 0x0112.
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


_DEFAULT_SAMPLES = GraySamples()


def fix_png_transparency(image: ImageFile.ImageFile) -> None:
    """Scale the transparent color of a PNG to 8 bits, as Pillow scales its pixels.

    Pillow 13 keeps the number from the file and compares it with 8-bit pixels. Of 16-bit RGB it
    keeps the upper halves, so colors that differ only in the lower halves become transparent, too.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or not image.tile:
        return
    raw_mode = image.tile[0].args
    if raw_mode == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif raw_mode in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[raw_mode]


def ignore_xmp(image: Image.Image) -> None:
    """Remove XMP from what Pillow knows of an image.

    Where EXIF has no orientation, Pillow 13 takes that of XMP, which no browser applies.
    """
    image.info.pop("xmp", None)
    image.info.pop("XML:com.adobe.xmp", None)


def exif_value(image: Image.Image, tag: int) -> Any:
    """Return the EXIF value of `tag`, None if there is none."""
    ignore_xmp(image)
    try:
        exif = image.getexif()
        if isinstance(data := image.info.get("exif"), bytes):
            exif = Image.Exif()  # that of the image may have been read together with XMP
            exif.load(data)
        return exif.get(tag)
    except Exception:  # damaged EXIF in an intact image counts as none
        return None


def to_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    orientation = exif_value(image, _EXIF_ORIENTATION)
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def lay_frame_on_white(image: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """Return an RGB image that is white outside its first frame.

    There the canvas is transparent. Pillow fills that of a GIF with color 0, and that of a WebP
    without transparency with black. frame: left, top, right, bottom.
    """
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(to_rgb(image).crop(frame), frame[:2])
    if "exif" in image.info:
        canvas.info["exif"] = image.info["exif"]
    return canvas


def drop_empty_alpha(image: Image.Image) -> Image.Image:
    """Return a BMP without its alpha channel if that is 0 everywhere.

    Writers that know no transparency leave it empty. Chromium shows such a file as opaque, too
    (blink, bmp_image_reader.cc: `seen_non_zero_alpha_pixel_`).
    """
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return image


def to_rgb(image: Image.Image, samples: GraySamples = _DEFAULT_SAMPLES) -> Image.Image:
    """Convert to mode RGB, with transparency on white. samples: of a gray image over 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        gray = np.asarray(image)
        eight_bit = _to_8_bit(gray, samples)
        if "transparency" in image.info:  # the one transparent value of a 16-bit PNG
            eight_bit[gray == image.info["transparency"]] = 255
        return Image.fromarray(eight_bit).convert("RGB")
    if image.mode == "La":  # Pillow converts it to this one only
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _to_8_bit(gray: npt.NDArray[Any], samples: GraySamples) -> npt.NDArray[np.uint8]:
    """Convert one channel of 16- or 32-bit integers, or of floats, to 0–255.

    Integers are read as 16-bit, where 65535 is white, or as 12-bit; 32-bit ones as 8-bit if none
    exceeds 255.
    Floats are read as 0–1 unless one exceeds 1; then as 0–255. Values outside are clipped; NaN is
    black, infinity white.
    """
    values = np.where(np.isnan(gray), 0, gray).astype(np.float32, copy=False)
    highest = float(values.max(initial=0.0, where=np.isfinite(values)))
    if np.issubdtype(gray.dtype, np.floating):
        scale = 255.0 if highest <= 1.0 else 1.0
    else:
        white = 2.0**samples.bits - 1
        scale = 255.0 / white if highest > 255.0 or gray.dtype.itemsize == 2 else 1.0
    values *= np.float32(scale)  # in place from here on: the peak of memory is here
    np.clip(values, 0, 255, out=values)
    if samples.white_is_zero:
        np.subtract(255, values, out=values)
    eight_bit: npt.NDArray[np.uint8] = np.round(values, out=values).astype(np.uint8)
    return eight_bit
