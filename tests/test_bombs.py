"""Scans of a JPEG and tiles of a TIFF are counted as decoders would meet them."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

import hurtful
from clip_embed import bombs
from clip_embed.bombs import jpeg_scans, tiff_tile
from hurtful import BYTE, LONG, SHORT, after_start, plain, scans, segment, tiff


def test_scans_of_ordinary_photos() -> None:
    """One, or the ten of libjpeg's progressive script: far from the limit."""
    assert jpeg_scans(plain("jpg")) == 1
    assert jpeg_scans(plain("progressive.jpg")) == 10 < bombs.MAX_SCANS


def test_scans_are_counted_up_to_the_limit() -> None:
    """Every scan counts, and no more than one beyond the limit is looked for."""
    assert jpeg_scans(scans(plain("progressive.jpg"), 50)) == 59
    assert jpeg_scans(scans(plain("progressive.jpg"), 9_999)) == bombs.MAX_SCANS + 1


@pytest.mark.parametrize("marker", [0xFE, 0xE1, 0xE2])
def test_what_stands_in_a_segment_is_no_scan(marker: int) -> None:
    """Neither a thumbnail's scans count, nor does an end of image in a comment end the count."""
    inside = segment(marker, plain("progressive.jpg") + b"\xff\xd9" + b"\xff\xda" * 200)
    assert jpeg_scans(after_start(plain("jpg"), inside)) == 1


def test_what_stands_behind_the_picture_is_no_scan() -> None:
    """A phone's video behind its photo holds any bytes."""
    assert jpeg_scans(plain("jpg") + b"\xff\xda" * 200) == 1


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff" * 999])
def test_next_to_nothing_has_next_to_no_scans(data: bytes) -> None:
    """A file that ends anywhere is counted as far as it goes."""
    assert jpeg_scans(data) <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "width"), [(SHORT, 64), (LONG, 70_000)])
def test_tiles(order: str, kind: int, width: int) -> None:
    """The two sides, in either byte order and in whichever type they are stored."""
    assert tiff_tile(tiff([(322, kind, 1, width), (323, kind, 1, 48)], order=order)) == (width, 48)


def test_a_picture_without_tiles_has_none() -> None:
    """Strips are not tiles."""
    assert tiff_tile(plain("tif")) is None


def test_of_two_the_first_counts() -> None:
    """As it does for libtiff, which allocates the tile; Pillow shows the last."""
    tags = [(322, LONG, 1, 9_000), (323, LONG, 1, 9_000), (322, LONG, 1, 16), (323, LONG, 1, 16)]
    assert tiff_tile(tiff(tags)) == (9_000, 9_000)


def test_a_side_that_is_missing_or_no_number_is_0() -> None:
    """Which no decoder accepts, either."""
    assert tiff_tile(tiff([(322, LONG, 1, 64)])) == (64, 0)
    assert tiff_tile(tiff([(322, 5, 1, 8), (323, LONG, 1, 64)])) == (0, 64)
    assert tiff_tile(tiff([(322, BYTE, 1, 16), (323, BYTE, 1, 32)])) == (16, 32)


def test_tiles_of_a_big_tiff() -> None:
    """With offsets of 64 bits, and sides of 64 bits in the directory itself."""
    entries = struct.pack("<HHQQ", 322, 16, 1, 2**33) + struct.pack("<HHQH6x", 323, 3, 1, 48)
    big = b"II" + struct.pack("<HHHQ", 43, 8, 0, 16) + struct.pack("<Q", 2) + entries + bytes(8)
    assert tiff_tile(big) == (2**33, 48)


def test_sides_of_64_bits_in_a_small_tiff() -> None:
    """They stand where their entry says."""
    data = struct.pack("<QQ", 2**33, 48)
    tags = [(322, 16, 1, 8), (323, 16, 1, 16)]
    assert tiff_tile(tiff(tags, data)) == (2**33, 48)


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_tiff_that_ends_too_early(length: int) -> None:
    """The reader says so, and `image.prepare` that the file is damaged."""
    whole = hurtful.tiles((9, 9), (16, 16), b"")
    with pytest.raises(struct.error):
        tiff_tile(whole[:length])


def test_tiles_that_one_may_have() -> None:
    """A file that is cut from small tiles is one that decoders read."""
    tiled = hurtful.tiles((40, 40), (32, 32), hurtful.zlib.compress(bytes(3 * 32 * 32)), count=4)
    assert tiff_tile(tiled) == (32, 32)
    with Image.open(hurtful.BytesIO(tiled)) as opened:
        opened.load()
        assert opened.size == (40, 40)
