"""Any picture Pillow has opened becomes upright 8-bit RGB. Knows nothing of sizes or of CLIP."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

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


def mend_transparency(image: ImageFile.ImageFile) -> None:
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


def mend_byte_order(image: ImageFile.ImageFile) -> None:
    """libtiff, which reads compressed TIFFs, hands out numbers in this machine's byte order; Pillow
    takes some for the file's, and would show another picture."""
    for number, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
            raw_mode, *rest = tile.args
            args = (_NATIVE.get(raw_mode, raw_mode), *rest)
            image.tile[number] = tile._replace(args=args)


def exif(image: Image.Image, tag: int) -> Any:
    """What EXIF says under `tag`, None if nothing."""
    try:
        return image.getexif().get(tag)
    except Exception:  # damaged EXIF in an intact image: as if there were none
        return None


def to_upright(image: Image.Image) -> Image.Image:
    """The image as people see it, by its EXIF."""
    orientation = exif(image, _EXIF_ORIENTATION)
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, on white where it is transparent."""
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
