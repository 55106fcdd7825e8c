"""Detect decompression bombs before decoding.

The number of pixels bounds the cost of decoding, with two exceptions. Each scan of a progressive
JPEG passes over the whole image once more, and may be a dozen bytes long; and a TIFF may cut a
single pixel out of a tile of any size. Knows the layout of both files, and nothing of Pillow.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Collection

FileBytes = bytes | memoryview | mmap.mmap
"""The bytes of a file, in memory or mapped."""

MAX_SCANS = 100
"""Encoders write about ten scans. libtiff has the same limit for a JPEG inside a TIFF."""

MAX_MARKERS = 10_000
"""Segments that are looked at: each takes microseconds, and may be two bytes long."""

MAX_TAGS = 65_535
"""The most that a TIFF can hold; a BigTIFF could declare more."""

# A marker with a segment after it: not a stuffed or fill byte, and none of the markers that stand
# alone (TEM, RST0–7, SOI). Source: ITU-T T.81, B.1.1.
JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])", re.DOTALL)
_END_OF_IMAGE, _START_OF_SCAN = b"\xd9", b"\xda"

MAX_VALUES = 8
"""How many values of a tag of a TIFF are read."""

_TILE_WIDTH, _TILE_LENGTH = 322, 323
# Bytes per value of the integer types of a TIFF (TIFF 6.0, section 2; BigTIFF's 16 and 17).
_INTEGERS = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 16: 8, 17: 8}


def count_jpeg_scans(data: FileBytes) -> int:
    """Count the scans of the first image of a JPEG, up to MAX_SCANS + 1, or MAX_MARKERS segments.

    Segments are skipped as a decoder skips them: scans of a thumbnail, or of a video behind the
    image, do not count, and a comment cannot hide one.
    """
    scans, position = 0, 2
    for _ in range(MAX_MARKERS):
        marker = JPEG_MARKER.search(data, position)
        if marker is None or marker[1] == _END_OF_IMAGE or scans > MAX_SCANS:
            return scans
        scans += marker[1] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return MAX_SCANS + 1  # as good as too many: no encoder writes so many segments


def read_tiff_tags(data: FileBytes, wanted: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Return the `wanted` tags of a TIFF's first image, with up to MAX_VALUES values each.

    Reads the tags as libtiff does: of a repeated tag the first counts, and a value that is not an
    integer is 0. Raises struct.error if the file ends too early.
    """
    order, names = (">", "big") if data[:2] == b"MM" else ("<", "little")
    is_big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    offset_at, offset, count, entry, inline = (
        (8, "Q", "Q", "HHQ", 8) if is_big else (4, "I", "H", "HHI", 4)
    )
    [start] = struct.unpack_from(order + offset, data, offset_at)
    [entries] = struct.unpack_from(order + count, data, start)
    start += struct.calcsize(f"={count}")
    tags: dict[int, tuple[int, ...]] = {}
    for _ in range(min(entries, MAX_TAGS)):
        tag, kind, values = struct.unpack_from(order + entry, data, start)
        start += struct.calcsize(f"={entry}")
        if tag in wanted and tag not in tags:
            size, at, values = _INTEGERS.get(kind, 0), start, min(values, MAX_VALUES)
            if size * values > inline:
                [at] = struct.unpack_from(order + offset, data, start)
            tags[tag] = tuple(
                int.from_bytes(data[at + size * n : at + size * (n + 1)], names)  # type: ignore[arg-type]
                for n in range(values)
            )
        start += inline
    return tags


def tiff_tile_size(data: FileBytes) -> tuple[int, int] | None:
    """Return the width and height of the tiles of a TIFF's first image, None if it has no tiles.

    libtiff allocates a tile of this size. Raises struct.error if the file ends too early.
    """
    sides = read_tiff_tags(data, (_TILE_WIDTH, _TILE_LENGTH))
    if not sides:
        return None
    [width, *_], [length, *_] = (sides.get(tag) or (0,) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    return width, length
