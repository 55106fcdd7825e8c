"""Images and texts that hurt: cut off, damaged, mislabelled, enormous, odd. All are made here.

`images` and `texts` return cases; each says of which kind it is and what must come of it. Knows
nothing of the service, nor of who prepares them (`each_alone.py`).
"""

from __future__ import annotations

import functools
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 10_000_000
"""The limit these cases are made for: a tenth of the usual one, as are time and memory then."""

VECTOR = "a vector"
EITHER = "a vector or an error"
NOT_AN_IMAGE = "is not an image this service can read; send one of"
DAMAGED = "is damaged or incomplete: "
UNREADABLE = "is a damaged [A-Z]+, or of a kind this service cannot read; save it anew"
REFUSED = f"{DAMAGED}|{NOT_AN_IMAGE}|{UNREADABLE}"
TOO_LARGE = r"pixels; the limit is 10,000,000 \(CLIP_MAX_IMAGE_PIXELS\); send it smaller"


@dataclass(frozen=True)
class Case:
    """One input.

    expected: VECTOR, EITHER, or a pattern that its error must hold. from_cog: the same, where Cog
    answers before the service sees the input.
    """

    kind: str
    name: str
    content: Any
    expected: str
    media_type: str = "application/octet-stream"
    from_cog: str | None = None


# --- pictures as they should be --------------------------------------------------------------


def encode(picture: Image.Image, format_name: str, **options: Any) -> bytes:
    encoded = BytesIO()
    picture.save(encoded, format_name, **options)
    return encoded.getvalue()


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def scene(width: int = 90, height: int = 60) -> Image.Image:
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
    return encode(scene(), **FORMATS[extension])


# --- files written by hand -------------------------------------------------------------------


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


PNG = b"\x89PNG\r\n\x1a\n"


def header(width: int, height: int, depth: int, colour: int, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(
    depth: int, colour: int, row: bytes, *chunks: bytes, size: tuple[int, int] = (64, 64)
) -> bytes:
    """A PNG whose rows are all `row`; `chunks` come before its pixels."""
    rows = zlib.compress((b"\0" + row) * size[1])
    return b"".join(
        [PNG, header(*size, depth, colour), *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    )


BYTE, SHORT, LONG = 1, 3, 4


def tiff(tags: list[tuple[int, int, int, int]], data: bytes = b"", order: str = "<") -> bytes:
    """A TIFF of one directory. tags: number, type, count, value; data begins at byte 8."""
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
    """A TIFF of one channel, its numbers as `values` are. data: instead of them, compressed."""
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
    """A TIFF of RGB in deflated tiles, each of which is `data`. before: tags that come first."""
    offsets = struct.pack(f"<{count}I", *[8] * count)
    lengths = struct.pack(f"<{count}I", *[len(data)] * count)
    at = 8 + len(data)
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
        (324, LONG, count, 8 if count == 1 else at),
        (325, LONG, count, len(data) if count == 1 else at + 4 * count),
    ]
    return tiff(tags, data + offsets + lengths)


def strip_markers(data: bytes, wanted: bytes) -> bytes:
    """A JPEG without its segments of one marker."""
    out, position = data[:2], 2
    while data[position + 1 : position + 2] != b"\xda":
        length = 2 + struct.unpack_from(">H", data, position + 2)[0]
        if data[position + 1 : position + 2] != wanted:
            out += data[position : position + length]
        position += length
    return out + data[position:]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def after_start(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def scans(jpeg: bytes, count: int) -> bytes:
    """A JPEG with its last scan `count` times."""
    last = jpeg.rfind(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * count + jpeg[-2:]


def announced(data: bytes, width: int, height: int) -> bytes:
    """An AVIF or HEIC that announces another size (ISO/IEC 14496-12, 'ispe') than it has."""
    size = b"ispe" + struct.pack(">III", 0, width, height)
    return re.sub(rb"ispe\0\0\0\0.{8}", lambda _: size, data, flags=re.DOTALL)


def bmp(width: int, height: int, bits: int, data: bytes, compression: int = 0) -> bytes:
    palette = bytes(range(4)) * (2**bits if bits <= 8 else 0)
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + info + palette + data


# --- the images, by kind ---------------------------------------------------------------------

Made = Iterator[tuple[str, bytes, str]]
"""Names, contents and what is expected."""


def cut_off() -> Made:
    """Broken off at many places, as an upload that was interrupted."""
    picture = noise(90, 60)
    for extension, options in FORMATS.items():
        whole = encode(picture, **options)
        for percent in (0, 1, 3, 10, 25, 40, 55, 70, 85, 95):
            yield f"{percent}%.{extension}", whole[: len(whole) * percent // 100], REFUSED


def damaged() -> Made:
    """A few wrong bytes, more often near the beginning than elsewhere."""
    for extension in FORMATS:
        whole, chance = plain(extension), random.Random(extension)
        for number in range(4):
            broken = bytearray(whole)
            for _ in range(2 + number):
                broken[chance.randrange(len(whole) // chance.choice([1, 8]))] ^= chance.randrange(
                    1, 256
                )
            yield f"{number}.{extension}", bytes(broken), EITHER


def misnamed() -> Made:
    """One format under another's name: the content decides."""
    extensions = list(MEDIA_TYPES)
    for extension, other in zip(extensions, extensions[3:] + extensions[:3], strict=True):
        yield f"a-{extension}.{other}", plain(extension), VECTOR
    yield "photo", plain("jpg"), VECTOR
    yield "photo.txt", plain("png"), VECTOR
    yield "photo.html", plain("webp"), VECTOR
    yield "photo.exe", plain("gif"), VECTOR


def no_images() -> Made:
    """What is sent by mistake, or to see what happens."""
    for name, content in {
        "page.html": b"<!doctype html><title>404 Not Found</title>",
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "entities.svg": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        "paper.pdf": encode(scene(), "PDF"),
        "page.ps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "data.json": b'{"image": null}',
        "letter.txt": b"Dear Sir or Madam,",
        "wide.txt": "a photo of a cat".encode("utf-16"),
        "archive.zip": b"PK\3\4" + bytes(60),
        "picture.svgz": b"\x1f\x8b\x08" + bytes(60),
        "program": b"\x7fELF\2\1\1" + bytes(60),
        "script.sh": b"#!/bin/sh\nexit 0\n",
        "video.mp4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(60),
        "sound.wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
        "empty.jpg": b"",
        "nul.png": b"\0",
        "zeros.png": bytes(5_000),
        "ones.jpg": b"\xff" * 5_000,
        "random.png": random.Random(0).randbytes(5_000),
        "base64.jpg": b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA==",
    }.items():
        yield name, content, NOT_AN_IMAGE


UNLISTED = {
    **dict.fromkeys(("DDS", "EPS", "ICNS", "ICO", "IM", "JPEG2000", "PCX", "PPM", "QOI"), "RGB"),
    **dict.fromkeys(("SGI", "TGA"), "RGB"),
    **dict.fromkeys(("BLP", "PALM"), "P"),
    **dict.fromkeys(("MSP", "XBM"), "1"),
    "SPIDER": "F",
}


def unlisted() -> Made:
    """What Pillow can open, or finds worth a try, and the service does not list."""
    for format_name, mode in UNLISTED.items():
        picture = scene().quantize() if mode == "P" else scene().convert(mode)
        yield f"a.{format_name.lower()}", encode(picture, format_name), NOT_AN_IMAGE
    for name, content in {
        "a.psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(300),
        "a.wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
        "a.cur": b"\0\0\2\0\1\0" + bytes(60),
        "a.fits": b"SIMPLE  =                    T".ljust(2880),
        "a.pcd": bytes(2048) + b"PCD_" + bytes(100),
        "a.fli": bytes(4) + b"\x12\xaf" + bytes(200),
        "a.dcx": b"\xb1\x68\xde\x3a" + bytes(60),
        "a.gbr": struct.pack(">7I", 28, 2, 9, 9, 3, 0, 0) + bytes(300),
        "a.h5": b"\x89HDF\r\n\x1a\n" + bytes(60),
        "a.grib": b"GRIB" + bytes(60),
        "a.xpm": b"/* XPM */" + bytes(60),
        "a.ftex": b"FTEX" + bytes(60),
        "a.mpeg": b"\0\0\1\xb3" + bytes(60),
    }.items():
        yield name, content, NOT_AN_IMAGE


def odd_sizes() -> Made:
    """A single pixel, and strips."""
    for extension, options in FORMATS.items():
        yield f"1x1.{extension}", encode(noise(1, 1), **options), VECTOR
    for width, height in ((1, 20_000), (20_000, 1)):
        for extension in ("jpg", "png", "gif", "bmp", "lzw.tif"):
            strip = encode(noise(width, height), **FORMATS[extension])
            yield f"{width}x{height}.{extension}", strip, VECTOR
    yield "1x16383.webp", encode(noise(1, 16_383), "WEBP"), VECTOR
    yield "65500x1.jpg", encode(noise(65_500, 1), "JPEG"), VECTOR
    yield "2x4999999.png", png(8, 0, bytes(2), size=(2, 4_999_999)), VECTOR
    yield "1x20000.avif", encode(noise(1, 20_000), "AVIF", speed=10), VECTOR
    yield "20000x16.heic", encode(noise(4_000, 16), "HEIF"), VECTOR


def no_sizes() -> Made:
    """Files that announce no pixels at all."""
    yield "0x9.png", png(8, 2, bytes(27), size=(0, 9)), REFUSED
    yield "9x0.png", png(8, 2, bytes(27), size=(9, 0)), REFUSED
    gif = plain("gif")
    yield "0x0.gif", gif[:6] + bytes(4) + gif[10:], VECTOR  # its frame has a size
    frame = gif.index(b"\x2c\0\0\0\0")
    yield "0x0-frame.gif", gif[: frame + 5] + bytes(4) + gif[frame + 9 :], REFUSED
    yield "0x0.bmp", bmp(0, 0, 24, b""), REFUSED
    yield "0x9.tif", samples(np.zeros((9, 0), np.uint8)), REFUSED
    jpeg = plain("jpg")
    start = jpeg.index(b"\xff\xc0")
    yield "0x0.jpg", jpeg[: start + 5] + bytes(4) + jpeg[start + 9 :], REFUSED
    for extension in ("avif", "heic"):
        yield f"0x0.{extension}", announced(plain(extension), 0, 0), REFUSED


def over_the_limit() -> Made:
    """One row of pixels too many, in every format; nothing of it need be decoded."""
    side = 3163  # its square is 10,004,569
    picture = Image.new("RGB", (side, side), "teal")
    for extension, options in FORMATS.items():
        if extension not in ("avif", "heic"):  # whose encoders take their time
            whole = encode(picture, **options)
            is_raw = extension in ("bmp", "dib", "tif")
            yield f"large.{extension}", whole[:9_000] if is_raw else whole, TOO_LARGE
    for extension in ("avif", "heic"):
        # 128 × 64: other sizes stand in a HEIC a second time, as what is cut out of whole blocks.
        small = encode(scene(128, 64), **FORMATS[extension])
        yield f"large.{extension}", announced(small, side, side), TOO_LARGE
    yield "header.png", PNG + header(2**31 - 1, 2**31 - 1, 8, 2) + chunk(b"IDAT", b""), TOO_LARGE
    yield "header.bmp", bmp(30_000, 30_000, 24, b""), TOO_LARGE
    yield (
        "header.tif",
        samples(np.zeros((1, 1), np.uint8)).replace(
            struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 2**31)
        ),
        TOO_LARGE,
    )


def at_the_limit() -> Made:
    """As many pixels as are allowed, in what takes most memory: what a request may cost."""
    side = 3162
    flat = Image.new("RGBA", (side, side), (0, 128, 128, 128))
    yield "alpha.png", encode(flat, "PNG", compress_level=1), VECTOR
    yield "alpha.webp", encode(flat, "WEBP", lossless=True, method=0), VECTOR
    yield "alpha.tif", encode(flat, "TIFF", compression="tiff_adobe_deflate"), VECTOR
    yield "cmyk.jpg", encode(Image.new("CMYK", flat.size, (9, 99, 9, 9)), "JPEG"), VECTOR
    yield "progressive.jpg", encode(flat.convert("RGB"), "JPEG", progressive=True), VECTOR
    yield "grey16.png", png(16, 0, b"\x55\xaa" * side, size=flat.size), VECTOR
    yield "palette.gif", encode(Image.new("P", flat.size), "GIF"), VECTOR
    yield (
        "float.tif",
        encode(Image.new("F", flat.size, 0.5), "TIFF", compression="tiff_lzw"),
        VECTOR,
    )


def bombs() -> Made:
    """A few bytes that would become very many."""
    zeros = zlib.compress(bytes(100_000_000))
    pixels = zlib.compress(bytes(31 * 10))
    small = header(10, 10, 8, 2)
    huge = header(65_535, 65_535, 8, 6)
    idat, end = chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    yield "pixels.png", PNG + huge + chunk(b"IDAT", zeros) + end, TOO_LARGE
    yield "behind-the-pixels.png", PNG + small + chunk(b"IDAT", zeros) + end, VECTOR
    comment = chunk(b"zTXt", b"k\0\0" + zeros)
    yield "comment.png", PNG + small + comment + idat + end, REFUSED
    yield "comment-behind.png", PNG + small + idat + comment + end, REFUSED
    comments = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000))) * 200
    yield "comments.png", PNG + small + comments + idat + end, REFUSED
    yield (
        "international.png",
        PNG + small + chunk(b"iTXt", b"k\0\1\0\0\0" + zeros) + idat + end,
        REFUSED,
    )
    yield "profile.png", PNG + small + chunk(b"iCCP", b"k\0\0" + zeros) + idat + end, REFUSED
    yield "many-chunks.png", PNG + small + chunk(b"tEXt", b"k\0v") * 50_000 + idat + end, VECTOR
    tile = zlib.compress(bytes(3 * 6_000 * 6_000))
    yield "tile.tif", tiles((1, 1), (6_000, 6_000), tile), "is cut from tiles of 6000 × 6000"
    lie = ((322, SHORT, 1, 6_000), (323, SHORT, 1, 6_000))
    yield "tile-twice.tif", tiles((1, 1), (16, 16), tile, before=lie), "tiles of 6000 × 6000"
    tile = zlib.compress(bytes(3 * 9_600 * 16))
    yield "tiles.tif", tiles((1, 64_000), (9_600, 16), tile, count=4_000), "tiles of 9600 × 16"
    strip = zlib.compress(bytes(3 * 90 * 200_000))
    tags = [(256, LONG, 1, 90), (257, LONG, 1, 60), (258, SHORT, 1, 8), (259, SHORT, 1, 8)]
    tags += [(262, SHORT, 1, 2), (273, LONG, 1, 8), (277, SHORT, 1, 3), (278, LONG, 1, 200_000)]
    yield "strip.tif", tiff([*tags, (279, LONG, 1, len(strip))], strip), EITHER
    tags = [(256, LONG, 1, 9), (257, LONG, 1, 9), (258, SHORT, 1, 8), (262, SHORT, 1, 1)]
    tags += [(273, LONG, 2**32 - 1, 8), (279, LONG, 2**31, 8)]
    yield "counts.tif", tiff(tags, bytes(100)), REFUSED
    gif = plain("gif")
    frame = gif.index(b"\x2c\0\0\0\0") + 5
    yield "frame.gif", gif[:frame] + b"\xff" * 4 + gif[frame + 4 :], TOO_LARGE
    yield "screen.gif", gif[:6] + b"\xff" * 4 + gif[10:], TOO_LARGE
    solid = Image.new("RGB", (16_383, 700), "teal")
    yield "solid.webp", encode(solid, "WEBP", method=0), TOO_LARGE
    again = encode(Image.new("RGB", (1000, 1000), "teal"), "JPEG", progressive=True)
    yield "scans.jpg", scans(again, 100_000), "holds more than 100 scans"
    hidden = after_start(again, segment(0xFE, b"\xff\xd9"))
    yield "scans-behind-a-comment.jpg", scans(hidden, 1_000), "holds more than 100 scans"
    yield "scans-allowed.jpg", scans(again, 80), VECTOR
    several = encode(Image.new("RGB", (200, 200), "teal"), "JPEG", progressive=True)
    tags = [(256, LONG, 1, 200), (257, LONG, 1, 200), (258, SHORT, 1, 8), (259, SHORT, 1, 7)]
    many = scans(several, 5_000)
    tags += [(262, SHORT, 1, 6), (273, LONG, 1, 8), (277, SHORT, 1, 3), (278, LONG, 1, 200)]
    yield "scans.tif", tiff([*tags, (279, LONG, 1, len(many))], many), REFUSED
    for extension in ("avif", "heic"):
        big = encode(Image.new("RGB", (2_000, 1_500), "teal"), **FORMATS[extension])
        yield f"announces-less.{extension}", announced(big, 64, 48), EITHER
    for extension in ("avif", "heic"):
        yield f"announces-more.{extension}", announced(plain(extension), 3_000, 3_000), EITHER


def animated() -> Made:
    """Of many pictures in a file the first is embedded, whatever the others are."""
    first = scene().quantize(64).convert("RGB")
    others = [Image.new("RGB", first.size, (n, 0, 0)) for n in range(99)]
    together = {"save_all": True, "append_images": others}
    for extension in ("png", "webp", "gif", "tif"):
        yield f"100.{extension}", encode(first, **FORMATS[extension], **together), VECTOR
    pages = encode(first, "TIFF", save_all=True, append_images=others[:1])
    yield "pages-in-a-circle.tif", circular(pages), VECTOR
    for extension in ("avif", "heic"):
        few = {"save_all": True, "append_images": others[:3]}
        yield f"4.{extension}", encode(first, **FORMATS[extension], **few), VECTOR
    yield "2.mpo", encode(first, "MPO", save_all=True, append_images=others[:1]), VECTOR
    gif = encode(first, "GIF", save_all=True, append_images=others[:1])
    yield "second-cut-off.gif", gif[:-30], VECTOR
    webp = encode(first, "WEBP", save_all=True, append_images=others[:5])
    yield "last-cut-off.webp", webp[:-30], REFUSED
    clear = Image.new("RGBA", first.size, (0, 0, 0, 0))
    yield "first-clear.gif", encode(clear, "GIF", save_all=True, append_images=[first]), VECTOR
    yield "loop.gif", encode(first, "GIF", loop=65_535, duration=0, save_all=True), VECTOR


def circular(data: bytes) -> bytes:
    """A little-endian TIFF whose first directory says that the next is itself."""
    [start] = struct.unpack_from("<I", data, 4)
    end = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    return data[:end] + struct.pack("<I", start) + data[end + 4 :]


EXIF = b"Exif\0\0MM\0*\0\0\0\x08"
BAD_EXIF = {
    "junk": b"Exif\0\0junk",
    "none": b"no EXIF at all",
    "ends": EXIF + b"\0\x05\x01\x12",
    "65535-times": EXIF + b"\0\1\x01\x12\0\3\0\0\xff\xff\0\6\0\6\0\0\0\0",
    "99": EXIF + b"\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0",
    "text": EXIF + b"\0\1\x01\x12\0\2\0\0\0\x026\0\0\0\0\0\0\0",
    "in-a-circle": EXIF + b"\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08",
    "far": b"Exif\0\0MM\0*\xff\xff\xff\xff",
}


def bad_exif() -> Made:
    """EXIF that makes no sense, in intact pictures."""
    for fault, exif in BAD_EXIF.items():
        for extension in ("jpg", "png", "webp"):
            yield f"{fault}.{extension}", encode(scene(), **FORMATS[extension], exif=exif), VECTOR
        yield f"{fault}.heic", encode(scene(), "HEIF", exif=exif), VECTOR
    avif = encode(scene(), "AVIF", speed=10, exif=EXIF + bytes(14))
    at = avif.index(b"MM\0*\0\0\0\x08")
    yield "junk.avif", avif[:at] + b"junkjunk" + avif[at + 8 :], EITHER
    marker = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='"
    yield "broken-xmp.jpg", after_start(plain("jpg"), segment(0xE1, marker)), VECTOR
    yield "mpo-header.jpg", after_start(plain("jpg"), segment(0xE2, b"MPF\0MM\0*junk")), VECTOR
    yield (
        "photoshop.jpg",
        after_start(plain("jpg"), segment(0xED, b"Photoshop 3.0\0" + b"8BIM" + bytes(40))),
        VECTOR,
    )


def bad_profiles() -> Made:
    """Colour profiles that are none. They are not applied, so they do no harm."""
    for name, profile in {
        "junk": b"junk",
        "cut": b"\0\0\x0c\x48Lino\2\x10\0\0mntrRGB XYZ ",
        "megabyte": random.Random(1).randbytes(1_000_000),
    }.items():
        for extension in ("jpg", "png", "webp", "tif", "avif", "heic"):
            options = {**FORMATS[extension], "icc_profile": profile}
            yield f"{name}.{extension}", encode(scene(), **options), VECTOR
    part = segment(0xE2, b"ICC_PROFILE\0\7\x63" + bytes(90))
    yield "part-7-of-99.jpg", after_start(plain("jpg"), part), VECTOR
    yield "no-parts.jpg", after_start(plain("jpg"), segment(0xE2, b"ICC_PROFILE\0")), REFUSED
    yield "not-deflated.png", png(8, 0, bytes(64), chunk(b"iCCP", b"k\0\0junk")), VECTOR
    yield "method-9.png", png(8, 0, bytes(64), chunk(b"iCCP", b"k\0\x09junk")), REFUSED


def print_colours() -> Made:
    """CMYK, with and without the marker of Adobe's that says how it is meant."""
    cmyk = encode(scene().convert("CMYK"), "JPEG")
    yield "adobe.jpg", cmyk, VECTOR
    yield "no-adobe.jpg", strip_markers(cmyk, b"\xee"), VECTOR
    adobe = cmyk.index(b"Adobe")
    for transform in (1, 2, 255):
        changed = cmyk[: adobe + 11] + bytes([transform]) + cmyk[adobe + 12 :]
        yield f"adobe-{transform}.jpg", changed, VECTOR
    yield "adobe-short.jpg", after_start(plain("jpg"), segment(0xEE, b"Adobe")), REFUSED
    yield (
        "adobe-rgb.jpg",
        after_start(plain("jpg"), segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")),
        VECTOR,
    )
    yield "grey.jpg", encode(scene().convert("L"), "JPEG"), VECTOR
    yield "ycbcr.tif", encode(scene().convert("YCbCr"), "TIFF"), VECTOR
    yield "lab.tif", encode(scene().convert("LAB"), "TIFF"), VECTOR
    yield "cmyk.tif", encode(scene().convert("CMYK"), "TIFF"), VECTOR
    yield "progressive.jpg", encode(scene().convert("CMYK"), "JPEG", progressive=True), VECTOR


def depths() -> Made:
    """More and fewer bits than eight, and numbers that are no colours."""
    for depth in (1, 2, 4, 8, 16):
        yield f"grey{depth}.png", png(depth, 0, b"\x5a" * (8 * depth)), VECTOR
    for depth in (1, 2, 4, 8):
        row, colours = (
            b"\x5a" * (8 * depth),
            chunk(b"PLTE", bytes(range(3 * 2**depth % 256 or 192))),
        )
        yield f"palette{depth}.png", png(depth, 3, row, colours), VECTOR
    yield "rgb16.png", png(16, 2, b"\x5a" * 384), VECTOR
    yield "rgba16.png", png(16, 6, b"\x5a" * 512), VECTOR
    yield "la16.png", png(16, 4, b"\x5a" * 256), VECTOR
    yield "rgb3.png", png(3, 2, b"\x5a" * 192), REFUSED
    ramp = np.linspace(0, 1, 4096).reshape(64, 64)
    odd = ramp.copy()
    odd[:3] = np.array([[np.nan], [np.inf], [-np.inf]])
    nan = np.full((64, 64), np.nan)
    for order, name in (("<", "le"), (">", "be")):
        for dtype in ("u1", "u2", "i2", "i4", "f4"):
            values = (ramp * (1 if dtype == "f4" else 100)).astype(dtype)
            yield f"{dtype}-{name}.tif", samples(values, order), VECTOR
        for dtype in ("f2", "f8", "u8"):
            values = (ramp * 100).astype(dtype)
            yield f"{dtype}-{name}.tif", samples(values, order), UNREADABLE
    yield "u4-le.tif", samples((ramp * 1e9).astype("u4")), VECTOR
    yield "u4-be.tif", samples((ramp * 1e9).astype("u4"), ">"), UNREADABLE
    yield "nan-and-infinity.tif", samples(odd.astype("f4")), VECTOR
    yield "all-nan.tif", samples(nan.astype("f4")), VECTOR
    yield "largest.tif", samples((ramp * 3e38).astype("f4")), VECTOR
    yield "negative.tif", samples((-ramp * 2**31).astype("i4")), VECTOR
    yield "float.png", png(16, 0, struct.pack("<64H", *range(64))), VECTOR


def transparency() -> Made:
    """Transparent colours, as many as formats know ways to say so, and wrong ones."""
    palette = chunk(b"PLTE", bytes(range(48)))
    row = bytes(range(16)) * 4
    for name, table in {"table": bytes(range(16)), "one": b"\0", "none": b""}.items():
        yield f"palette-{name}.png", png(8, 3, row, palette, chunk(b"tRNS", table)), VECTOR
    yield "palette-too-long.png", png(8, 3, row, palette, chunk(b"tRNS", bytes(300))), REFUSED
    yield "beyond-the-palette.png", png(8, 3, bytes([200]) * 64, palette), VECTOR
    yield "no-palette.png", png(8, 3, row), REFUSED
    yield "palette-in-grey.png", png(8, 0, row, palette), VECTOR
    for depth in (1, 2, 4, 8, 16):
        key = chunk(b"tRNS", b"\0\1")
        yield f"key-grey{depth}.png", png(depth, 0, b"\x11" * (8 * depth), key), VECTOR
    for depth in (8, 16):
        key = chunk(b"tRNS", struct.pack(">3H", 17, 17, 17))
        yield f"key-rgb{depth}.png", png(depth, 2, b"\x11" * (24 * depth), key), VECTOR
    yield "key-short.png", png(8, 2, bytes(192), chunk(b"tRNS", b"\0")), REFUSED
    yield "key-beside-alpha.png", png(8, 6, bytes(256), chunk(b"tRNS", bytes(6))), VECTOR
    yield "key-out-of-range.png", png(8, 0, bytes(64), chunk(b"tRNS", b"\xff\xff")), VECTOR
    yield "all-clear.webp", encode(Image.new("RGBA", (64, 64)), "WEBP", lossless=True), VECTOR
    gif = encode(scene().quantize(4), "GIF", transparency=1)
    control = gif.index(b"\x21\xf9")
    yield "index.gif", gif, VECTOR
    yield "index-255.gif", gif[: control + 6] + b"\xff" + gif[control + 7 :], VECTOR
    yield "grey-alpha.tif", encode(scene().convert("LA"), "TIFF"), VECTOR
    yield "alpha.heic", encode(scene().convert("RGBA"), "HEIF"), VECTOR
    yield "alpha.avif", encode(scene().convert("RGBA"), "AVIF", speed=10), VECTOR


def structure() -> Made:
    """Parts that are wrong, missing, twice or in no order."""
    idat, end = chunk(b"IDAT", zlib.compress(bytes(65 * 64))), chunk(b"IEND", b"")
    grey = header(64, 64, 8, 0)
    for name, content, expected in (
        ("wrong-crc", PNG + grey + chunk(b"IDAT", zlib.compress(bytes(65 * 64)), 1) + end, VECTOR),
        ("wrong-header-crc", PNG + grey[:-1] + b"\0" + idat + end, REFUSED),
        ("no-end", PNG + grey + idat, VECTOR),
        ("no-pixels", PNG + grey + end, REFUSED),
        ("header-twice", PNG + grey + header(32, 32, 8, 0) + idat + end, EITHER),
        ("trailing", PNG + grey + idat + end + b"trailing" * 99, VECTOR),
        ("unknown", PNG + grey + chunk(b"abCd", b"?") + idat + end, VECTOR),
        ("unknown-critical", PNG + grey + chunk(b"ABCD", b"?") + idat + end, VECTOR),
        ("too-few-rows", PNG + grey + chunk(b"IDAT", zlib.compress(bytes(650))) + end, EITHER),
        ("not-deflated", PNG + grey + chunk(b"IDAT", bytes(999)) + end, REFUSED),
        ("interlaced", PNG + header(64, 64, 8, 0, 1) + idat + end, REFUSED),
        ("filter-9", PNG + grey + chunk(b"IDAT", zlib.compress(b"\x09" * 4160)) + end, REFUSED),
        ("long-chunk", PNG + grey + struct.pack(">I", 2**31) + b"IDAT", REFUSED),
    ):
        yield f"{name}.png", content, expected
    jpeg = plain("jpg")
    yield "trailing.jpg", jpeg + bytes(9_999), VECTOR
    yield "no-end.jpg", jpeg[:-2], REFUSED
    yield "restart.jpg", encode(scene(), "JPEG", restart_marker_blocks=1), VECTOR
    yield "filled.jpg", jpeg[:2] + b"\xff" * 500 + jpeg[2:], VECTOR
    yield "comment.jpg", after_start(jpeg, *[segment(0xFE, bytes(65_000))] * 20), VECTOR
    yield "no-tables.jpg", strip_markers(jpeg, b"\xc4"), VECTOR  # those of the standard
    yield "no-quantization.jpg", strip_markers(jpeg, b"\xdb"), REFUSED
    frame = jpeg.index(b"\xff\xc0")
    yield "12-bit.jpg", jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], REFUSED
    yield "arithmetic.jpg", jpeg[:frame] + b"\xff\xc9" + jpeg[frame + 2 :], EITHER
    yield "lossless.jpg", jpeg[:frame] + b"\xff\xc3" + jpeg[frame + 2 :], REFUSED
    for bits in (1, 4, 8, 16, 24, 32):
        yield f"{bits}-bit.bmp", bmp(64, 64, bits, b"\x5a" * (8 * 64 * bits)), VECTOR
    yield "top-down.bmp", bmp(64, -64, 24, bytes(64 * 64 * 3)), VECTOR
    yield "run-lengths.bmp", bmp(64, 64, 8, b"\x40\7\0\0" * 64 + b"\0\1", 1), VECTOR
    yield "run-lengths-end.bmp", bmp(64, 64, 8, b"\x40\7\0\0" * 9, 1), REFUSED
    yield "run-lengths-jump.bmp", bmp(64, 64, 8, b"\0\2\xff\xff" * 99, 1), EITHER
    yield "compression-99.bmp", bmp(64, 64, 24, bytes(9_999), 99), REFUSED
    yield "3-bit.bmp", bmp(64, 64, 3, bytes(9_999)), REFUSED
    tags = [(256, LONG, 1, 64), (257, LONG, 1, 64), (258, SHORT, 1, 8), (262, SHORT, 1, 1)]
    data = [(273, LONG, 1, 8), (278, LONG, 1, 64), (279, LONG, 1, 4096)]
    whole = bytes(4096)
    for name, content in {
        "signature.jpg": b"\xff\xd8\xff",
        "signature.png": PNG,
        "signature.gif": b"GIF89a",
        "signature.webp": b"RIFF\4\0\0\0WEBP",
        "signature.bmp": b"BM",
        "signature.tif": b"II*\0",
        "signature.avif": b"\0\0\0\x10ftypavif\0\0\0\0",
        "signature.heic": b"\0\0\0\x10ftypheic\0\0\0\0",
    }.items():
        yield name, content, REFUSED
    yield "no-tags.tif", tiff([]), REFUSED
    yield "no-data.tif", tiff(tags), REFUSED
    yield "one-strip-missing.tif", tiff([*tags, *data[:1], (278, LONG, 1, 32)], whole), EITHER
    yield "beyond-the-end.tif", tiff([*tags, (273, LONG, 1, 2**31), *data[1:]], whole), REFUSED
    yield "into-itself.tif", circular(tiff([*tags, *data], whole)), VECTOR
    yield "directory-beyond.tif", b"II*\0\xff\xff\xff\x7f", REFUSED
    for number in (6, 7, 34712, 50000, 50001, 52546, 65_000):
        compressed = tiff([*tags, (259, SHORT, 1, number), *data], whole)
        yield f"compression-{number}.tif", compressed, REFUSED
    tags[2] = (258, SHORT, 1, 5)
    yield "5-bit.tif", tiff([*tags, *data], whole), UNREADABLE
    gif = plain("gif")
    yield "no-trailer.gif", gif[:-1], VECTOR
    size = gif.index(b"\x2c\0\0\0\0") + 10
    yield "codes-of-20-bits.gif", gif[:size] + b"\x14" + gif[size + 1 :], REFUSED
    webp = plain("webp")
    yield "size.webp", webp[:4] + b"\xff" * 4 + webp[8:], REFUSED
    yield "chunk-size.webp", webp[:16] + b"\xff" * 4 + webp[20:], REFUSED


KINDS: dict[str, Callable[[], Made]] = {
    "cut off": cut_off,
    "damaged bytes": damaged,
    "misnamed": misnamed,
    "not an image": no_images,
    "not a listed format": unlisted,
    "odd sizes": odd_sizes,
    "no size": no_sizes,
    "over the limit": over_the_limit,
    "at the limit": at_the_limit,
    "bombs": bombs,
    "many pictures": animated,
    "corrupt EXIF": bad_exif,
    "broken profiles": bad_profiles,
    "print colours": print_colours,
    "depths": depths,
    "transparency": transparency,
    "structure": structure,
}


@functools.cache
def images() -> list[Case]:
    """Every image, by kind."""
    return [
        Case(kind, name, content, expected, MEDIA_TYPES.get(name.rpartition(".")[2], "x/x"))
        for kind, made in KINDS.items()
        for name, content, expected in made()
    ]


# --- the texts, by kind ----------------------------------------------------------------------

# Halves of a surrogate pair are no JSON, strictly, and Cog reads it so.
HALF = (
    r"^HTTP 400: Failed to parse the request body as JSON: input\.text: (lone leading surrogate|"
    "unexpected end of hex escape)"
)
NOTHING = "which holds no visible character; send at least one word"
MEGABYTES = 10 * 2**20

TEXTS: dict[str, dict[str, str]] = {
    "nothing to see": {
        "spaces": " " * 9,
        "every white space": " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\xa0\u1680\u2003\u2028\u2029",
        "NUL": "\0",
        "controls": "".join(map(chr, [*range(9), *range(14, 28), 127])),
        "escape sequence": "\x1b[31m\x1b[0m",
        "byte order mark": "\ufeff",
        "entities": "&nbsp;&#32;&#9;",
        "a million spaces": " " * 1_000_000,
        "a cat behind a million NULs": "\0" * 1_000_000 + "cat",
    },
    "hardly anything": {
        "one letter": "a",
        "full stop": ".",
        "soft hyphen": "\xad",
        "zero width": "\u200b\u200c\u200d\u2060",
        "directions": "\u202e\u202d\u2066\u2069",
        "other controls": "".join(map(chr, range(0x80, 0x85))),
        "combining mark": "\u0301",
        "variation selector": "\ufe0f",
        "the dropped letter": "\u0345",
        "no character": "\uffff\ufffe",
        "private use": "\ue000\U0010fffd",
        "entity of nothing": "&#0;&#x110000;",
    },
    "surrogates": {
        "high": "\ud800",
        "low": "\udfff",
        "reversed": "\udc00\ud83d",
        "pair": "\ud83d\ude00",
        "between": "a cat\ud83d and a dog",
        "many": "\ud800" * 5_000,
    },
    "megabytes": {
        "words": "word " * (MEGABYTES // 5),
        "one word": "a" * MEGABYTES,
        "signs": "!" * MEGABYTES,
        "entities": "&amp;" * (MEGABYTES // 5),
        "open entities": "&#" * (MEGABYTES // 2),
        "digits of an entity": "&#" + "9" * MEGABYTES,
        "mojibake": "Ã©" * (MEGABYTES // 4),
        "combining marks": "e" + "\u0301" * (MEGABYTES // 2),
        "families": "👩\u200d👩\u200d👧" * (MEGABYTES // 18),
        "special tokens": "<end_of_text>" * (MEGABYTES // 13),
        "line ends": "x\n" * (MEGABYTES // 2),
    },
    "scripts": {
        "Arabic": "صورة قطة نائمة على أريكة",
        "Hebrew with marks": "תְּמוּנָה שֶׁל חָתוּל",
        "both directions": "a cat \u202eevil\u202c قطة cat",
        "Hanzi": "一张红色自行车的照片",
        "Thai": "ภาพถ่ายของแมว",
        "Hindi": "बिल्ली की तस्वीर",
        "stacked marks": "".join(f"{c}\u0300\u0301\u0302\u0303\u0304" * 9 for c in "zalgo"),
        "Hangul letters": "\u1112\u1161\u11ab" * 9,
        "mathematical letters": "𝔞 𝕡𝕙𝕠𝕥𝕠 𝓸𝓯 𝖆 𝚌𝚊𝚝",
        "ligatures": "ﷺ ﬃ ŉ ǆ",
        "dotted capital": "İSTANBUL",
    },
    "emoji": {
        "one": "😀",
        "family": "👨\u200d👩\u200d👧\u200d👦",
        "flags": "🇨🇭🇯🇵🏴󠁧󠁢󠁳󠁣󠁴󠁿",
        "half a flag": "🇨",
        "tones": "👍🏻👍🏽👍🏿🏿🏿",
        "keycaps": "1\ufe0f\u20e3#\ufe0f\u20e3",
        "joined for ever": "👩\u200d" * 1_000,
    },
    "special tokens": {
        "end": "<end_of_text>",
        "start": "<start_of_text>",
        "OpenAI's end": "<|endoftext|>",
        "OpenAI's start": "<|startoftext|>",
        "capitals": "<END_OF_TEXT> a cat",
        "escaped": "&lt;end_of_text&gt; a cat",
        "many": "<start_of_text><end_of_text>" * 50,
        "inside": "a cat <end_of_text> a dog",
        "BERT's": "[CLS] a cat [SEP] [PAD] [MASK]",
    },
    "long words": {
        "a word of 100,000": "Donaudampfschiff" * 6_250,
        "a URL": "https://example.com/" + "a%20b/" * 2_000,
        "base64": "QUJD" * 5_000,
        "digits": "31415926535" * 1_000,
        "10,000 words": "word " * 10_000,
        "underscores": "snake_" * 5_000,
    },
    "what looks like code": {
        "SQL": "'; DROP TABLE vectors; --",
        "shell": "$(reboot) `id` | cat /etc/passwd > /dev/null",
        "HTML": "<script>alert(1)</script>",
        "format": "%s%s%n {0.__class__} ${jndi:ldap://x}",
        "JSON": '{"text": null}',
        "path": "../../etc/passwd",
        "backslashes": "\\\\ \\u0000 \\ud800 \\x00",
        "None": "None",
        "number": "NaN",
    },
}


def texts() -> list[Case]:
    """Every text, by kind."""
    return [
        Case(
            kind,
            name,
            content,
            NOTHING if kind == "nothing to see" else VECTOR,
            from_cog=HALF if kind == "surrogates" and name != "pair" else None,
        )
        for kind, made in TEXTS.items()
        for name, content in made.items()
    ]


BY_COG = "^Input validation error: "
NO_ADDRESS = "; send an http:// or https:// URL, or a data: URI$"


def addresses() -> list[Case]:
    """What stands in an image's place and is none, for the service alone: no file is ever read."""
    return [
        Case("addresses", content[:40], content, expected)
        for expected, contents in {
            NO_ADDRESS: (
                *("", " ", "\0", "null", "a cat", "x" * 100_000, "/etc/passwd", "../../etc/passwd"),
                *("file:///etc/passwd", "ftp://a/b", "gs://bucket/cat.jpg", "javascript:alert(1)"),
                *("DATA:image/png;base64,AAAA", "//host/cat.jpg", "about:blank", "HTTP"),
            ),
            NOT_AN_IMAGE: (
                *("data:,", "data:;base64,AAAA", "data:image/png,text", "data:image/png;base64,!!"),
                *("data:image/../../x;base64,AAAA", "data:image/é;base64,AAAA"),
                "data:image/jpeg;base64," + "A" * 8_000_000,
            ),
            BY_COG: (
                *("data:", "data:image/png", "data:image/png;base64", "data:image/png;base64,AAA"),
                *(
                    "http://",
                    "http://[::1",
                    "http://127.0.0.1:1/cat.jpg",
                    "https://nowhere.invalid/",
                ),
            ),
        }.items()
        for content in contents
    ]
