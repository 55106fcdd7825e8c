"""Write image files: valid ones with Pillow, invalid ones byte by byte."""

from __future__ import annotations

import functools
import re
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()

# --- valid files, by Pillow ------------------------------------------------------------------


def encode(picture: Image.Image, format_name: str, **options: Any) -> bytes:
    """Return `picture` as a file."""
    encoded = BytesIO()
    picture.save(encoded, format_name, **options)
    return encoded.getvalue()


def noise(width: int, height: int) -> Image.Image:
    """Return random pixels, which compress badly."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def scene(width: int = 90, height: int = 60) -> Image.Image:
    """Return soft colors, as in a photo."""
    return noise(6, 5).resize((width, height), Image.Resampling.BICUBIC)


FORMATS: dict[str, dict[str, Any]] = {
    "jpg": {"format_name": "JPEG"},
    "progressive.jpg": {"format_name": "JPEG", "progressive": True},
    "png": {"format_name": "PNG"},
    "webp": {"format_name": "WEBP"},
    "lossless.webp": {"format_name": "WEBP", "lossless": True},
    "gif": {"format_name": "GIF"},
    "bmp": {"format_name": "BMP"},
    "dib": {"format_name": "DIB"},
    "tif": {"format_name": "TIFF"},
    "lzw.tif": {"format_name": "TIFF", "compression": "tiff_lzw"},
    "deflate.tif": {"format_name": "TIFF", "compression": "tiff_adobe_deflate"},
    "jpeg.tif": {"format_name": "TIFF", "compression": "jpeg"},
    "avif": {"format_name": "AVIF", "speed": 10},
    "heic": {"format_name": "HEIF"},
}
MEDIA_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "tif": "image/tiff",
    "avif": "image/avif",
    "heic": "image/heic",
}


@functools.cache
def plain(extension: str) -> bytes:
    """Return a small valid file of a format."""
    return encode(scene(), **FORMATS[extension])


# --- files written byte by byte --------------------------------------------------------------


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    """Return a chunk of a PNG. crc: a wrong checksum."""
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


PNG = b"\x89PNG\r\n\x1a\n"


def header(width: int, height: int, depth: int, color: int, interlace: int = 0) -> bytes:
    """Return the header chunk of a PNG."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))


def png(
    depth: int, color: int, row: bytes, *chunks: bytes, size: tuple[int, int] = (64, 64)
) -> bytes:
    """Return a PNG whose rows are all `row`, with `chunks` before its pixels."""
    rows = zlib.compress((b"\0" + row) * size[1])
    return b"".join(
        [PNG, header(*size, depth, color), *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    )


BYTE, SHORT, LONG = 1, 3, 4


def tiff(tags: list[tuple[int, int, int, int]], data: bytes = b"", order: str = "<") -> bytes:
    """Return a TIFF of one directory. tags: number, type, count, value. data: begins at byte 8."""
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + struct.pack(f"{order}{'H2x' if (kind, count) == (SHORT, 1) else 'I'}", value)
        for tag, kind, count, value in tags
    )
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    offset, count = struct.pack(f"{order}I", 8 + len(data)), struct.pack(f"{order}H", len(tags))
    return magic + offset + data + count + entries + bytes(4)


def samples(
    values: np.ndarray,
    order: str = "<",
    *extra: tuple[int, int, int, int],
    data: bytes | None = None,
) -> bytes:
    """Return a TIFF of one channel with `values`. data: the same values, compressed."""
    if data is None:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [
        (256, LONG, 1, values.shape[1]),
        (257, LONG, 1, values.shape[0]),
        (258, SHORT, 1, 8 * values.itemsize),
        (262, SHORT, 1, 1),
        (273, LONG, 1, 8),
        (278, LONG, 1, values.shape[0]),
        (279, LONG, 1, len(data)),
        (339, SHORT, 1, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]),
    ]
    return tiff([*tags, *extra], data, order)


def tiles(
    size: tuple[int, int],
    tile: tuple[int, int],
    data: bytes,
    *,
    count: int = 1,
    before: tuple[tuple[int, int, int, int], ...] = (),
) -> bytes:
    """Return an RGB TIFF of deflated tiles, each holding `data`. before: the first tags."""
    offsets = struct.pack(f"<{count}I", *[8] * count)
    lengths = struct.pack(f"<{count}I", *[len(data)] * count)
    offsets_start = 8 + len(data)
    tags = [
        (256, LONG, 1, size[0]),
        (257, LONG, 1, size[1]),
        (258, SHORT, 1, 8),
        (259, SHORT, 1, 8),
        (262, SHORT, 1, 2),
        (277, SHORT, 1, 3),
        (284, SHORT, 1, 1),
        *before,
        (322, LONG, 1, tile[0]),
        (323, LONG, 1, tile[1]),
        (324, LONG, count, 8 if count == 1 else offsets_start),
        (325, LONG, count, len(data) if count == 1 else offsets_start + 4 * count),
    ]
    return tiff(tags, data + offsets + lengths)


def strip_markers(data: bytes, marker: bytes) -> bytes:
    """Remove the segments with one marker from a JPEG."""
    out, position = data[:2], 2
    while data[position + 1 : position + 2] != b"\xda":
        length = 2 + struct.unpack_from(">H", data, position + 2)[0]
        if data[position + 1 : position + 2] != marker:
            out += data[position : position + length]
        position += length
    return out + data[position:]


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def after_start(jpeg: bytes, *segments: bytes) -> bytes:
    """Insert segments after the start-of-image marker of a JPEG."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def scans(jpeg: bytes, count: int) -> bytes:
    """Repeat the last scan of a JPEG `count` times."""
    last = jpeg.rfind(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * count + jpeg[-2:]


def declare_size(data: bytes, width: int, height: int) -> bytes:
    """Change the size that an AVIF or HEIC declares (ISO/IEC 14496-12, 'ispe')."""
    size = b"ispe" + struct.pack(">III", 0, width, height)
    return re.sub(rb"ispe\0\0\0\0.{8}", lambda _: size, data, flags=re.DOTALL)


def bmp(width: int, height: int, bits: int, data: bytes, compression: int = 0) -> bytes:
    """Return a BMP with `data` as its pixels."""
    palette = bytes(range(4)) * (2**bits if bits <= 8 else 0)
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + info + palette + data


def circular(data: bytes) -> bytes:
    """Make the first directory of a little-endian TIFF name itself as the next one."""
    [start] = struct.unpack_from("<I", data, 4)
    end = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    return data[:end] + struct.pack("<I", start) + data[end + 4 :]
