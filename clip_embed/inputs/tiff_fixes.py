"""Read the kinds of TIFF that Pillow 13 reads wrongly, or refuse them by name.

Compared with tifffile, which decodes TIFFs by other code. Source: TIFF 6.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import ImageFile, ImagePalette
from PIL.TiffImagePlugin import COMPRESSION_INFO

from clip_embed.errors import ImageError

_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 258, 259, 262, 266
_SAMPLES_PER_PIXEL, _PLANAR_CONFIGURATION, _COLOR_MAP, _EXTRA_SAMPLES, _SAMPLE_FORMAT = (
    277,
    284,
    320,
    338,
    339,
)
KIND_TAGS = (
    *(_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER),
    *(_PLANAR_CONFIGURATION, _EXTRA_SAMPLES, _SAMPLE_FORMAT),
)
"""The tags that say how pixels are stored."""

_SEPARATE_PLANES, _REVERSED_BITS = 2, 2
_WHITE_IS_ZERO, _YCBCR = 0, 6
_WEBP = 50_001  # the compression that the libtiff in Pillow's wheels lacks
_COLORS = {
    _WHITE_IS_ZERO: "grayscale (WhiteIsZero)",
    1: "grayscale",
    2: "RGB",
    3: "palette colors",
    5: "CMYK",
    _YCBCR: "YCbCr",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
}
_NUMBERS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}


@dataclass(frozen=True)
class GraySamples:
    """How the numbers of a gray image of more than 8 bits are meant.

    bits: per sample, of integers; 32-bit ones count as 16. white_is_zero: photometric
    interpretation 0.
    """

    bits: int = 16
    white_is_zero: bool = False


def gray_samples(image: ImageFile.ImageFile) -> GraySamples:
    """Return how the gray samples of an image that is not yet loaded are meant.

    Pillow unpacks 12 bits to 0–4095, and inverts min-is-white only up to 8 bits.
    """
    if image.format != "TIFF" or image.mode not in ("I;16", "I;16B", "I", "F"):
        return GraySamples()
    tags: Mapping[int, Any] = image.tag_v2  # type: ignore[attr-defined]
    is_12_bit = tags.get(_BITS_PER_SAMPLE) == (12,)
    return GraySamples(12 if is_12_bit else 16, tags.get(_PHOTOMETRIC, 0) == _WHITE_IS_ZERO)


def fix_tiff(image: ImageFile.ImageFile, name: str) -> None:
    """Correct what Pillow 13 has understood of a TIFF, before it is loaded.

    Raises ImageError for a kind that it would read wrongly.
    """
    tags: Mapping[int, Any] = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(_COMPRESSION) == _WEBP:
        raise ImageError(describe_kind(tags, name))
    if tags.get(_PLANAR_CONFIGURATION) == _SEPARATE_PLANES:
        _fix_separate_planes(image, tags, name)
    elif image.tile and image.tile[0].codec_name == "raw" and isinstance(image.tile[0].args, tuple):
        raw_mode = image.tile[0].args[0]
        if raw_mode in _REVERSED:
            _read_with_libtiff(image, _REVERSED[raw_mode])
    _fix_byte_order(image)
    colors = tags.get(_COLOR_MAP, ())
    if image.mode == "P" and max(colors, default=0) < 256:
        # Colors of 8 bits instead of 16, by old writers. libtiff's own tools read them so, too.
        image.palette = ImagePalette.raw("RGB;L", bytes(colors))


def _fix_separate_planes(image: ImageFile.ImageFile, tags: Mapping[int, Any], name: str) -> None:
    """Have libtiff read separate planes. Pillow takes each plane for 8-bit, in FillOrder 1."""
    if tags.get(_SAMPLES_PER_PIXEL, 1) == 1:
        return
    is_raw = image.info.get("compression") == "raw"
    if image.mode not in ("RGB", "RGBA", "CMYK") or (is_raw and tags.get(_PHOTOMETRIC) == _YCBCR):
        raise ImageError(describe_kind(tags, name))
    if not is_raw:
        return
    # Pillow's decoder divides by an associated alpha itself where planes are separate.
    _read_with_libtiff(image, image.mode + (";16N" if tags[_BITS_PER_SAMPLE][0] == 16 else ""))


# Raw modes of FillOrder 2 that Pillow's decoder lacks → as libtiff returns them.
_REVERSED = {"L;IR": "L;I", "P;1R": "P;1", "P;2R": "P;2", "P;4R": "P;4"}


def _read_with_libtiff(image: Any, raw_mode: str) -> None:
    """Have libtiff read an uncompressed TIFF, as Pillow does with TiffImagePlugin.READ_LIBTIFF."""
    arguments = (raw_mode, False, image.tag_v2.offset)
    image.tile = [ImageFile._Tile("libtiff", (0, 0, *image._tile_size), 0, arguments)]
    image.use_load_libtiff = True


_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}


def _fix_byte_order(image: ImageFile.ImageFile) -> None:
    """Declare the pixels of compressed big-endian TIFFs as native.

    libtiff, which reads them, returns numbers in the machine's byte order; Pillow 13 takes some for
    the file's byte order, which gives another image.
    """
    for number, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
            raw_mode, *rest = tile.args
            args = (_NATIVE.get(raw_mode, raw_mode), *rest)
            image.tile[number] = tile._replace(args=args)


def describe_kind(tags: Mapping[int, Any], name: str) -> str:
    """Return the message for a TIFF of a kind that is not read. tags: those of KIND_TAGS."""
    bits, compression = _first(tags, _BITS_PER_SAMPLE, 1), _first(tags, _COMPRESSION, 1)
    number, color = _first(tags, _SAMPLE_FORMAT, 1), _first(tags, _PHOTOMETRIC, 0)
    sample = f"{_NUMBERS[number]} sample" if number in _NUMBERS else "sample"
    words = [
        f"with {bits} {'bit' if bits == 1 else 'bits'} per {sample}",
        f"of {_COLORS.get(color, f'photometric interpretation {color}')}",
    ]
    if _EXTRA_SAMPLES in tags:
        words.append("with extra samples")
    if _first(tags, _PLANAR_CONFIGURATION, 1) == _SEPARATE_PLANES:
        words.append("in separate planes")
    if _first(tags, _FILL_ORDER, 1) == _REVERSED_BITS:
        words.append("in FillOrder 2")
    if compression not in COMPRESSION_INFO or compression == _WEBP:
        words.append(f"in compression {compression}")
    way_out = "anew as JPEG or PNG" if bits in (8, 16) else "anew with 8 or 16 bits"
    return f"{name} is a TIFF {' '.join(words)}, which this service cannot read; save it {way_out}"


def is_8_bit(tags: Mapping[int, Any]) -> bool:
    """Return whether this is 1- or 8-bit gray or RGB: one that Pillow refuses is damaged."""
    return (
        _first(tags, _BITS_PER_SAMPLE, 1) == 8
        and _first(tags, _SAMPLE_FORMAT, 1) == 1
        and _first(tags, _PHOTOMETRIC, 0) in (0, 1, 2)
        and _first(tags, _COMPRESSION, 1) in COMPRESSION_INFO
        and _EXTRA_SAMPLES not in tags
    )


def _first(tags: Mapping[int, Any], tag: int, default: int) -> int:
    value = tags.get(tag) or default
    return value[0] if isinstance(value, tuple) else value
