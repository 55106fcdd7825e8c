"""Generate bad images, by kind."""

from __future__ import annotations

import functools
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tests.helpers.bad_inputs.case import (
    EITHER,
    EMPTY,
    NOT_AN_IMAGE,
    REFUSED,
    TOO_LARGE,
    UNREADABLE_TIFF,
    VECTOR,
    Case,
)
from tests.helpers.bad_inputs.files import (
    FORMATS,
    LONG,
    MEDIA_TYPES,
    PNG,
    SHORT,
    after_start,
    bmp,
    chunk,
    circular,
    declare_size,
    encode,
    header,
    noise,
    plain,
    png,
    samples,
    scans,
    scene,
    segment,
    strip_markers,
    tiff,
    tiles,
)

Images = Iterator[tuple[str, bytes, str]]
"""Name, content and expected result of each image."""


def cut_off() -> Images:
    """Truncate files at many places, like interrupted uploads."""
    picture = noise(90, 60)
    for extension, options in FORMATS.items():
        whole = encode(picture, **options)
        for percent in (0, 1, 3, 10, 25, 40, 55, 70, 85, 95):
            yield f"{percent}%.{extension}", whole[: len(whole) * percent // 100], REFUSED


def damaged() -> Images:
    """Change a few bytes, more often near the beginning."""
    for extension in FORMATS:
        whole, chance = plain(extension), random.Random(extension)
        for number in range(4):
            broken = bytearray(whole)
            for _ in range(2 + number):
                broken[chance.randrange(len(whole) // chance.choice([1, 8]))] ^= chance.randrange(
                    1, 256
                )
            yield f"{number}.{extension}", bytes(broken), EITHER


def misnamed() -> Images:
    """Give files the extension of another format. The content decides."""
    extensions = list(MEDIA_TYPES)
    for extension, other in zip(extensions, extensions[3:] + extensions[:3], strict=True):
        yield f"a-{extension}.{other}", plain(extension), VECTOR
    yield "photo", plain("jpg"), VECTOR
    yield "photo.txt", plain("png"), VECTOR
    yield "photo.html", plain("webp"), VECTOR
    yield "photo.exe", plain("gif"), VECTOR


def no_images() -> Images:
    """Generate files of other kinds, sent by mistake or as an attack."""
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
        expected = {
            "page.html": "is an HTML page, not an image; send the image's own address$",
            "drawing.svg": "is an SVG, which this service cannot draw; send it as a PNG$",
            "entities.svg": "is an SVG, which this service cannot draw; send it as a PNG$",
            "paper.pdf": "is a PDF, not an image; send a page of it as PNG or JPEG$",
            "empty.jpg": EMPTY,
        }
        yield name, content, expected.get(name, NOT_AN_IMAGE)


UNLISTED = {
    **dict.fromkeys(("DDS", "EPS", "ICNS", "ICO", "IM", "JPEG2000", "PCX", "PPM", "QOI"), "RGB"),
    **dict.fromkeys(("SGI", "TGA"), "RGB"),
    **dict.fromkeys(("BLP", "PALM"), "P"),
    **dict.fromkeys(("MSP", "XBM"), "1"),
    "SPIDER": "F",
}


def unlisted() -> Images:
    """Generate images that Pillow tries to open and the service does not list."""
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


def odd_sizes() -> Images:
    """Generate single pixels and long strips."""
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


def no_sizes() -> Images:
    """Generate files that declare a width or height of 0."""
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
        yield f"0x0.{extension}", declare_size(plain(extension), 0, 0), REFUSED


def over_the_limit() -> Images:
    """Exceed the pixel limit by one row, in every format; decoding is not necessary."""
    side = 3163  # its square is 10,004,569
    picture = Image.new("RGB", (side, side), "teal")
    for extension, options in FORMATS.items():
        if extension not in ("avif", "heic"):  # their encoders are slow
            whole = encode(picture, **options)
            is_raw = extension in ("bmp", "dib", "tif")
            yield f"large.{extension}", whole[:9_000] if is_raw else whole, TOO_LARGE
    for extension in ("avif", "heic"):
        # 128 × 64: HEIC repeats other sizes as a crop of whole blocks.
        small = encode(scene(128, 64), **FORMATS[extension])
        yield f"large.{extension}", declare_size(small, side, side), TOO_LARGE
    yield "header.png", PNG + header(2**31 - 1, 2**31 - 1, 8, 2) + chunk(b"IDAT", b""), TOO_LARGE
    yield "header.bmp", bmp(30_000, 30_000, 24, b""), TOO_LARGE
    yield (
        "header.tif",
        samples(np.zeros((1, 1), np.uint8)).replace(
            struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 2**31)
        ),
        TOO_LARGE,
    )


def at_the_limit() -> Images:
    """Generate the largest allowed images in the formats that take most memory."""
    side = 3162
    flat = Image.new("RGBA", (side, side), (0, 128, 128, 128))
    yield "alpha.png", encode(flat, "PNG", compress_level=1), VECTOR
    yield "alpha.webp", encode(flat, "WEBP", lossless=True, method=0), VECTOR
    yield "alpha.tif", encode(flat, "TIFF", compression="tiff_adobe_deflate"), VECTOR
    yield "cmyk.jpg", encode(Image.new("CMYK", flat.size, (9, 99, 9, 9)), "JPEG"), VECTOR
    yield "progressive.jpg", encode(flat.convert("RGB"), "JPEG", progressive=True), VECTOR
    yield "gray16.png", png(16, 0, b"\x55\xaa" * side, size=flat.size), VECTOR
    yield "palette.gif", encode(Image.new("P", flat.size), "GIF"), VECTOR
    yield (
        "float.tif",
        encode(Image.new("F", flat.size, 0.5), "TIFF", compression="tiff_lzw"),
        VECTOR,
    )


def decompression_bombs() -> Images:
    """Generate small files that decode to very many bytes."""
    zeros = zlib.compress(bytes(100_000_000))
    pixels = zlib.compress(bytes(31 * 10))
    small = header(10, 10, 8, 2)
    huge = header(65_535, 65_535, 8, 6)
    idat, end = chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    yield "pixels.png", PNG + huge + chunk(b"IDAT", zeros) + end, TOO_LARGE
    yield "behind-the-pixels.png", PNG + small + chunk(b"IDAT", zeros) + end, VECTOR
    comment = chunk(b"zTXt", b"k\0\0" + zeros)
    yield "comment.png", PNG + small + comment + idat + end, VECTOR
    yield "comment-behind.png", PNG + small + idat + comment + end, VECTOR
    comments = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000))) * 200
    yield "comments.png", PNG + small + comments + idat + end, VECTOR
    yield (
        "international.png",
        PNG + small + chunk(b"iTXt", b"k\0\1\0\0\0" + zeros) + idat + end,
        VECTOR,
    )
    yield "profile.png", PNG + small + chunk(b"iCCP", b"k\0\0" + zeros) + idat + end, VECTOR
    yield "many-chunks.png", PNG + small + chunk(b"tEXt", b"k\0v") * 50_000 + idat + end, VECTOR
    tile = zlib.compress(bytes(3 * 6_000 * 6_000))
    yield "tile.tif", tiles((1, 1), (6_000, 6_000), tile), "is cut from tiles of 6000 × 6000"
    wrong_size = ((322, SHORT, 1, 6_000), (323, SHORT, 1, 6_000))
    yield "tile-twice.tif", tiles((1, 1), (16, 16), tile, before=wrong_size), "tiles of 6000 × 6000"
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
    progressive = encode(Image.new("RGB", (1000, 1000), "teal"), "JPEG", progressive=True)
    yield "scans.jpg", scans(progressive, 100_000), "holds more than 100 scans"
    hidden = after_start(progressive, segment(0xFE, b"\xff\xd9"))
    yield "scans-behind-a-comment.jpg", scans(hidden, 1_000), "holds more than 100 scans"
    yield "scans-allowed.jpg", scans(progressive, 80), VECTOR
    several = encode(Image.new("RGB", (200, 200), "teal"), "JPEG", progressive=True)
    tags = [(256, LONG, 1, 200), (257, LONG, 1, 200), (258, SHORT, 1, 8), (259, SHORT, 1, 7)]
    many = scans(several, 5_000)
    tags += [(262, SHORT, 1, 6), (273, LONG, 1, 8), (277, SHORT, 1, 3), (278, LONG, 1, 200)]
    yield "scans.tif", tiff([*tags, (279, LONG, 1, len(many))], many), REFUSED
    for extension in ("avif", "heic"):
        big = encode(Image.new("RGB", (2_000, 1_500), "teal"), **FORMATS[extension])
        yield f"declares-less.{extension}", declare_size(big, 64, 48), EITHER
    for extension in ("avif", "heic"):
        yield f"declares-more.{extension}", declare_size(plain(extension), 3_000, 3_000), EITHER


def animated() -> Images:
    """Generate files with several pictures, of which the first is embedded."""
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


def bad_exif() -> Images:
    """Write invalid EXIF into intact pictures."""
    for fault, exif in BAD_EXIF.items():
        for extension in ("jpg", "png", "webp"):
            yield f"{fault}.{extension}", encode(scene(), **FORMATS[extension], exif=exif), VECTOR
        yield f"{fault}.heic", encode(scene(), "HEIF", exif=exif), VECTOR
    avif = encode(scene(), "AVIF", speed=10, exif=EXIF + bytes(14))
    start = avif.index(b"MM\0*\0\0\0\x08")
    yield "junk.avif", avif[:start] + b"junkjunk" + avif[start + 8 :], EITHER
    marker = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='"
    yield "broken-xmp.jpg", after_start(plain("jpg"), segment(0xE1, marker)), VECTOR
    yield "mpo-header.jpg", after_start(plain("jpg"), segment(0xE2, b"MPF\0MM\0*junk")), VECTOR
    yield (
        "photoshop.jpg",
        after_start(plain("jpg"), segment(0xED, b"Photoshop 3.0\0" + b"8BIM" + bytes(40))),
        VECTOR,
    )


def bad_profiles() -> Images:
    """Write invalid color profiles, which the service does not apply."""
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
    yield "method-9.png", png(8, 0, bytes(64), chunk(b"iCCP", b"k\0\x09junk")), VECTOR


def print_colors() -> Images:
    """Generate CMYK and other color spaces, with and without Adobe's marker."""
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
    yield "gray.jpg", encode(scene().convert("L"), "JPEG"), VECTOR
    yield "ycbcr.tif", encode(scene().convert("YCbCr"), "TIFF"), VECTOR
    yield "lab.tif", encode(scene().convert("LAB"), "TIFF"), VECTOR
    yield "cmyk.tif", encode(scene().convert("CMYK"), "TIFF"), VECTOR
    yield "progressive.jpg", encode(scene().convert("CMYK"), "JPEG", progressive=True), VECTOR


def depths() -> Images:
    """Generate samples of more or fewer than eight bits, floats and NaN included."""
    for depth in (1, 2, 4, 8, 16):
        yield f"gray{depth}.png", png(depth, 0, b"\x5a" * (8 * depth)), VECTOR
    for depth in (1, 2, 4, 8):
        row, colors = (
            b"\x5a" * (8 * depth),
            chunk(b"PLTE", bytes(range(3 * 2**depth % 256 or 192))),
        )
        yield f"palette{depth}.png", png(depth, 3, row, colors), VECTOR
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
            yield f"{dtype}-{name}.tif", samples(values, order), UNREADABLE_TIFF
    yield "u4-le.tif", samples((ramp * 1e9).astype("u4")), VECTOR
    yield "u4-be.tif", samples((ramp * 1e9).astype("u4"), ">"), UNREADABLE_TIFF
    yield "nan-and-infinity.tif", samples(odd.astype("f4")), VECTOR
    yield "all-nan.tif", samples(nan.astype("f4")), VECTOR
    yield "largest.tif", samples((ramp * 3e38).astype("f4")), VECTOR
    yield "negative.tif", samples((-ramp * 2**31).astype("i4")), VECTOR
    yield "float.png", png(16, 0, struct.pack("<64H", *range(64))), VECTOR


def transparency() -> Images:
    """Declare transparency in every way of every format, and in wrong ways."""
    palette = chunk(b"PLTE", bytes(range(48)))
    row = bytes(range(16)) * 4
    for name, table in {"table": bytes(range(16)), "one": b"\0", "none": b""}.items():
        yield f"palette-{name}.png", png(8, 3, row, palette, chunk(b"tRNS", table)), VECTOR
    yield "palette-too-long.png", png(8, 3, row, palette, chunk(b"tRNS", bytes(300))), REFUSED
    yield "beyond-the-palette.png", png(8, 3, bytes([200]) * 64, palette), VECTOR
    yield "no-palette.png", png(8, 3, row), REFUSED
    yield "palette-in-gray.png", png(8, 0, row, palette), VECTOR
    for depth in (1, 2, 4, 8, 16):
        key = chunk(b"tRNS", b"\0\1")
        yield f"key-gray{depth}.png", png(depth, 0, b"\x11" * (8 * depth), key), VECTOR
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
    yield "gray-alpha.tif", encode(scene().convert("LA"), "TIFF"), VECTOR
    yield "alpha.heic", encode(scene().convert("RGBA"), "HEIF"), VECTOR
    yield "alpha.avif", encode(scene().convert("RGBA"), "AVIF", speed=10), VECTOR


def structure() -> Images:
    """Generate files with wrong, missing, repeated or misplaced parts."""
    idat, end = chunk(b"IDAT", zlib.compress(bytes(65 * 64))), chunk(b"IEND", b"")
    gray = header(64, 64, 8, 0)
    for name, content, expected in (
        ("wrong-crc", PNG + gray + chunk(b"IDAT", zlib.compress(bytes(65 * 64)), 1) + end, REFUSED),
        ("wrong-gamma-crc", PNG + gray + chunk(b"gAMA", bytes(4), 1) + idat + end, VECTOR),
        ("wrong-header-crc", PNG + gray[:-1] + b"\0" + idat + end, REFUSED),
        ("no-end", PNG + gray + idat, VECTOR),
        ("no-pixels", PNG + gray + end, REFUSED),
        ("header-twice", PNG + gray + header(32, 32, 8, 0) + idat + end, EITHER),
        ("trailing", PNG + gray + idat + end + b"trailing" * 99, VECTOR),
        ("unknown", PNG + gray + chunk(b"abCd", b"?") + idat + end, VECTOR),
        ("unknown-critical", PNG + gray + chunk(b"ABCD", b"?") + idat + end, VECTOR),
        ("too-few-rows", PNG + gray + chunk(b"IDAT", zlib.compress(bytes(650))) + end, EITHER),
        ("not-deflated", PNG + gray + chunk(b"IDAT", bytes(999)) + end, REFUSED),
        ("interlaced", PNG + header(64, 64, 8, 0, 1) + idat + end, REFUSED),
        ("filter-9", PNG + gray + chunk(b"IDAT", zlib.compress(b"\x09" * 4160)) + end, REFUSED),
        ("long-chunk", PNG + gray + struct.pack(">I", 2**31) + b"IDAT", REFUSED),
    ):
        yield f"{name}.png", content, expected
    jpeg = plain("jpg")
    yield "trailing.jpg", jpeg + bytes(9_999), VECTOR
    yield "no-end.jpg", jpeg[:-2], VECTOR
    yield "within-the-scan.jpg", jpeg[:-40], REFUSED
    yield "restart.jpg", encode(scene(), "JPEG", restart_marker_blocks=1), VECTOR
    yield "filled.jpg", jpeg[:2] + b"\xff" * 500 + jpeg[2:], VECTOR
    yield "comment.jpg", after_start(jpeg, *[segment(0xFE, bytes(65_000))] * 20), VECTOR
    yield "no-tables.jpg", strip_markers(jpeg, b"\xc4"), VECTOR  # the standard tables
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
    yield "5-bit.tif", tiff([*tags, *data], whole), UNREADABLE_TIFF
    gif = plain("gif")
    yield "no-trailer.gif", gif[:-1], VECTOR
    size = gif.index(b"\x2c\0\0\0\0") + 10
    yield "codes-of-20-bits.gif", gif[:size] + b"\x14" + gif[size + 1 :], REFUSED
    webp = plain("webp")
    yield "size.webp", webp[:4] + b"\xff" * 4 + webp[8:], REFUSED
    yield "chunk-size.webp", webp[:16] + b"\xff" * 4 + webp[20:], REFUSED


KINDS: dict[str, Callable[[], Images]] = {
    "cut off": cut_off,
    "damaged bytes": damaged,
    "misnamed": misnamed,
    "not an image": no_images,
    "not a listed format": unlisted,
    "odd sizes": odd_sizes,
    "no size": no_sizes,
    "over the limit": over_the_limit,
    "at the limit": at_the_limit,
    "decompression bombs": decompression_bombs,
    "several pictures": animated,
    "corrupt EXIF": bad_exif,
    "broken profiles": bad_profiles,
    "print colors": print_colors,
    "depths": depths,
    "transparency": transparency,
    "structure": structure,
}


@functools.cache
def cases() -> list[Case]:
    """Return every image."""
    return [
        Case(kind, name, content, expected, MEDIA_TYPES.get(name.rpartition(".")[2], "x/x"))
        for kind, made in KINDS.items()
        for name, content, expected in made()
    ]
