"""Convert any image that Pillow has opened to upright 8-bit RGB. Knows nothing of sizes or CLIP."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

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


_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}


def fix_tiff_byte_order(image: ImageFile.ImageFile) -> None:
    """Declare the pixels of compressed big-endian TIFFs as native.

    libtiff, which reads them, returns numbers in the machine's byte order; Pillow 13 takes some for
    the file's byte order, which gives another image.
    """
    for number, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
            raw_mode, *rest = tile.args
            args = (_NATIVE.get(raw_mode, raw_mode), *rest)
            image.tile[number] = tile._replace(args=args)


def exif_value(image: Image.Image, tag: int) -> Any:
    """Return the EXIF value of `tag`, None if there is none."""
    try:
        return image.getexif().get(tag)
    except Exception:  # damaged EXIF in an intact image counts as none
        return None


def to_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    orientation = exif_value(image, _EXIF_ORIENTATION)
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode RGB, with transparency on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        gray = np.asarray(image)
        eight_bit = _to_8_bit(gray)
        if "transparency" in image.info:  # the one transparent value of a 16-bit PNG
            eight_bit[gray == image.info["transparency"]] = 255
        return Image.fromarray(eight_bit).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _to_8_bit(gray: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Convert one channel of 16- or 32-bit integers, or of floats, to 0–255.

    Integers are read as 16-bit, where 65535 is white; 32-bit ones as 8-bit if none exceeds 255.
    Floats are read as 0–1 unless one exceeds 1; then as 0–255. Values outside are clipped; NaN is
    black, infinity white.
    """
    values = np.where(np.isnan(gray), 0, gray).astype(np.float32, copy=False)
    highest = float(values.max(initial=0.0, where=np.isfinite(values)))
    if np.issubdtype(gray.dtype, np.floating):
        scale = 255.0 if highest <= 1.0 else 1.0
    else:
        scale = 255.0 / 65535.0 if highest > 255.0 or gray.dtype.itemsize == 2 else 1.0
    values *= np.float32(scale)  # in place from here on: the peak of memory is here
    np.clip(values, 0, 255, out=values)
    eight_bit: npt.NDArray[np.uint8] = np.round(values, out=values).astype(np.uint8)
    return eight_bit
