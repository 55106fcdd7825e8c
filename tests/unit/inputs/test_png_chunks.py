"""Chunks of a PNG that its pixels do not need may have any fault."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_embed.errors import ImageError
from clip_embed.inputs.png_chunks import drop_unused_chunks
from clip_embed.inputs.preprocess import preprocess_image
from tests.helpers.bad_inputs.files import PNG, chunk, encode
from tests.helpers.sample_images import CONFIG, assert_equal, scene

PLAIN = encode(scene(), "PNG")
HEADER_END = len(PNG) + 25
END = len(PLAIN) - 12

ZEROS = zlib.compress(bytes(2_000_000))
ANIMATION = chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"damaged")


def with_chunks(before: bytes = b"", after: bytes = b"") -> BytesIO:
    """Return a PNG with chunks before and after its pixels."""
    return BytesIO(PLAIN[:HEADER_END] + before + PLAIN[HEADER_END:END] + after + PLAIN[END:])


@pytest.mark.parametrize(
    "unused",
    [
        pytest.param(chunk(b"iCCP", b"D\0\0" + ZEROS), id="profile of 2 MB"),
        pytest.param(chunk(b"zTXt", b"k\0\0" + ZEROS), id="text of 2 MB"),
        pytest.param(chunk(b"iTXt", b"k\0\1\0\0\0" + ZEROS), id="international text of 2 MB"),
        pytest.param(chunk(b"tEXt", b"k\0" + bytes(1_000_000)) * 70, id="70 MB of plain text"),
        pytest.param(chunk(b"iCCP", b"D\0\7"), id="unknown compression"),
        pytest.param(chunk(b"gAMA", bytes(4), crc=1), id="gamma with a wrong checksum"),
        pytest.param(chunk(b"gAMA", b""), id="gamma without a value"),
        pytest.param(chunk(b"tRNS", bytes(6), crc=1), id="transparency with a wrong checksum"),
        pytest.param(chunk(b"eXIf", b"MM\0*junk", crc=1), id="EXIF with a wrong checksum"),
        pytest.param(chunk(b"abCd", b"private", crc=1), id="unknown with a wrong checksum"),
        pytest.param(ANIMATION, id="damaged animation"),
    ],
)
def test_fault_of_an_unused_chunk_is_ignored(unused: bytes, tmp_path: Path) -> None:
    assert_equal(preprocess_image(with_chunks(before=unused), CONFIG), scene())
    (tmp_path / "x.png").write_bytes(with_chunks(after=unused).getvalue())
    assert_equal(preprocess_image(tmp_path / "x.png", CONFIG), scene())


def test_compressed_text_is_not_decompressed() -> None:
    """Python allocates the text that Pillow, or this service, decompresses."""
    bomb = zlib.compress(bytes(150_000_000), 1)
    raw_exif = chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb)
    file = with_chunks(chunk(b"zTXt", b"k\0\0" + bomb) + raw_exif)
    tracemalloc.start()
    try:
        assert_equal(preprocess_image(file, CONFIG), scene())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_wrong_checksum_of_a_critical_chunk_is_refused(kind: bytes) -> None:
    data = encode(scene().quantize(9), "PNG")
    start = data.index(kind)
    end = start + 4 + int.from_bytes(data[start - 4 : start], "big")
    with pytest.raises(ImageError, match="damaged"):
        preprocess_image(BytesIO(data[:end] + b"junk" + data[end + 4 :]), CONFIG)


def test_damaged_pixels_are_refused() -> None:
    """Pillow 13 ignores the checksum: a changed bit can give other pixels."""
    for position in range(HEADER_END + 30, END - 10, 97):
        damaged = bytearray(PLAIN)
        damaged[position] ^= 4
        with pytest.raises(ImageError, match=r"^image is damaged .*: the checksum of its pixels"):
            preprocess_image(BytesIO(damaged), CONFIG)


def test_orientation_and_transparency_are_kept() -> None:
    """EXIF may stand in its own chunk, or in a text chunk of ImageMagick."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = scene().transpose(Image.Transpose.ROTATE_270)
    own = chunk(b"eXIf", exif.tobytes()[6:])
    hexadecimal = exif.tobytes().hex()
    text = f"Raw profile type exif\0\nexif\n{len(hexadecimal) // 2:8}\n{hexadecimal}\n".encode()
    keyword, _, value = text.partition(b"\0")
    compressed = chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(value))
    for oriented in (own, chunk(b"tEXt", text), compressed):
        assert_equal(preprocess_image(with_chunks(before=oriented), CONFIG), turned)
        assert_equal(preprocess_image(with_chunks(after=oriented), CONFIG), turned)
    first = scene().getpixel((0, 0))
    key = chunk(b"tRNS", struct.pack(">3H", *first))  # type: ignore[misc]
    array = np.asarray(scene()).copy()
    array[(array == first).all(axis=2)] = 255
    assert_equal(preprocess_image(with_chunks(before=key), CONFIG), Image.fromarray(array))


def test_png_without_other_chunks_is_read_directly() -> None:
    file = BytesIO(PLAIN)
    assert drop_unused_chunks(file, PLAIN, "image") is file


def test_parts_read_like_a_file() -> None:
    info = PngInfo()
    info.add_text("key", "value")
    data = encode(scene(), "PNG", pnginfo=info, dpi=(72, 72))
    for size in (1, 7, 4096, -1):
        parts = drop_unused_chunks(BytesIO(data), data, "image")
        pieces = iter(lambda size=size, file=parts: file.read(size), b"")  # type: ignore[misc]
        assert b"".join(pieces) == PLAIN
        assert parts.tell() == len(PLAIN) == parts.seek(0, 2)
        parts.seek(HEADER_END - 2)
        assert parts.read(6) == PLAIN[HEADER_END - 2 :][:6]
        assert parts.seek(-2, 1) == HEADER_END + 2


def test_png_of_very_many_chunks_is_refused() -> None:
    """Each costs time in Python: 100 MB of them, half a minute."""
    chunk = b"\0\0\0\0abCd" + zlib.crc32(b"abCd").to_bytes(4, "big")
    data = PLAIN[:33] + chunk * 100_001 + PLAIN[33:]
    with pytest.raises(ImageError, match=r"^image consists of more than 100,000 chunks; save it"):
        drop_unused_chunks(BytesIO(data), data, "image")


def test_only_the_first_exif_is_decompressed() -> None:
    """A kilobyte may decompress to a megabyte, and a file hold thousands of them."""
    text = b"Raw profile type exif\0\0" + zlib.compress(bytes(1_000_000), 9)
    data = PLAIN[:33] + chunk(b"zTXt", text) * 500 + PLAIN[33:]
    begin = time.process_time()
    drop_unused_chunks(BytesIO(data), data, "image")
    assert time.process_time() - begin < 0.5
