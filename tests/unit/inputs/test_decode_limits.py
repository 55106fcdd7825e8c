"""Decompression bombs: counts of JPEG scans and sizes of TIFF tiles, as decoders read them."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from clip_embed.inputs import decode_limits
from clip_embed.inputs.decode_limits import (
    MAX_SCANS,
    count_jpeg_scans,
    read_tiff_tags,
    tiff_tile_size,
)
from tests.helpers.bad_inputs.files import (
    BYTE,
    LONG,
    SHORT,
    after_start,
    plain,
    scans,
    segment,
    tiff,
    tiles,
)


def test_ordinary_jpeg_has_far_fewer_scans_than_the_limit() -> None:
    """libjpeg writes one scan, or ten for a progressive JPEG."""
    assert count_jpeg_scans(plain("jpg")) == 1
    assert count_jpeg_scans(plain("progressive.jpg")) == 10 < decode_limits.MAX_SCANS


def test_scans_are_counted_up_to_one_more_than_the_limit() -> None:
    assert count_jpeg_scans(scans(plain("progressive.jpg"), 50)) == 59
    assert count_jpeg_scans(scans(plain("progressive.jpg"), 9_999)) == decode_limits.MAX_SCANS + 1


@pytest.mark.parametrize("marker", [0xFE, 0xE1, 0xE2], ids=["comment", "EXIF", "profile"])
def test_markers_inside_a_segment_are_ignored(marker: int) -> None:
    """Scans of a thumbnail do not count, and an end-of-image marker does not end the count."""
    inside = segment(marker, plain("progressive.jpg") + b"\xff\xd9" + b"\xff\xda" * 200)
    assert count_jpeg_scans(after_start(plain("jpg"), inside)) == 1


def test_bytes_after_the_image_are_ignored() -> None:
    """Phones append a video to a photo."""
    assert count_jpeg_scans(plain("jpg") + b"\xff\xda" * 200) == 1


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff" * 999])
def test_scans_of_a_truncated_jpeg_are_counted(data: bytes) -> None:
    assert count_jpeg_scans(data) <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "width"), [(SHORT, 64), (LONG, 70_000)], ids=["16-bit", "32-bit"])
def test_tile_size_is_read_in_both_byte_orders(order: str, kind: int, width: int) -> None:
    assert tiff_tile_size(tiff([(322, kind, 1, width), (323, kind, 1, 48)], order=order)) == (
        width,
        48,
    )


def test_tiff_of_strips_has_no_tile_size() -> None:
    assert tiff_tile_size(plain("tif")) is None


def test_first_of_repeated_tile_sizes_counts() -> None:
    """libtiff, which allocates the tile, reads the first; Pillow reports the last."""
    tags = [(322, LONG, 1, 9_000), (323, LONG, 1, 9_000), (322, LONG, 1, 16), (323, LONG, 1, 16)]
    assert tiff_tile_size(tiff(tags)) == (9_000, 9_000)


def test_tile_side_that_is_missing_or_not_an_integer_is_0() -> None:
    """No decoder accepts such a file."""
    assert tiff_tile_size(tiff([(322, LONG, 1, 64)])) == (64, 0)
    assert tiff_tile_size(tiff([(322, 5, 1, 8), (323, LONG, 1, 64)])) == (0, 64)
    assert tiff_tile_size(tiff([(322, BYTE, 1, 16), (323, BYTE, 1, 32)])) == (16, 32)


def test_tile_size_of_a_big_tiff_is_read() -> None:
    """BigTIFF has 64-bit offsets, and can hold 64-bit values in the directory itself."""
    entries = struct.pack("<HHQQ", 322, 16, 1, 2**33) + struct.pack("<HHQH6x", 323, 3, 1, 48)
    big = b"II" + struct.pack("<HHHQ", 43, 8, 0, 16) + struct.pack("<Q", 2) + entries + bytes(8)
    assert tiff_tile_size(big) == (2**33, 48)


def test_several_values_of_a_tag_are_read() -> None:
    """They stand behind the directory if they do not fit into it; at most eight are read."""
    data = tiff([(258, SHORT, 3, 8), (338, SHORT, 99, 14), (277, SHORT, 1, 3)], bytes([8, 0] * 20))
    assert read_tiff_tags(data, (258, 277)) == {258: (8, 8, 8), 277: (3,)}
    assert read_tiff_tags(data, (338,)) == {338: (8,) * decode_limits.MAX_VALUES}
    assert read_tiff_tags(tiff([(322, LONG, 0, 64)]), (322,)) == {322: ()}


def test_64_bit_tile_size_is_read_at_its_offset() -> None:
    """In a classic TIFF it does not fit into the directory."""
    data = struct.pack("<QQ", 2**33, 48)
    tags = [(322, 16, 1, 8), (323, 16, 1, 16)]
    assert tiff_tile_size(tiff(tags, data)) == (2**33, 48)


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_truncated_tiff_raises_struct_error(length: int) -> None:
    """`preprocess_image` reports such a file as damaged."""
    whole = tiles((9, 9), (16, 16), b"")
    with pytest.raises(struct.error):
        tiff_tile_size(whole[:length])


def test_tile_size_of_a_valid_tiff_is_read() -> None:
    """Pillow decodes the same file."""
    tiled = tiles((40, 40), (32, 32), zlib.compress(bytes(3 * 32 * 32)), count=4)
    assert tiff_tile_size(tiled) == (32, 32)
    with Image.open(BytesIO(tiled)) as opened:
        opened.load()
        assert opened.size == (40, 40)


def test_very_many_segments_count_as_too_many_scans() -> None:
    """Each takes microseconds, and may be two bytes long."""
    assert count_jpeg_scans(b"\xff\xd8" + b"\xff\xfe\0\2" * 20_000) > MAX_SCANS
