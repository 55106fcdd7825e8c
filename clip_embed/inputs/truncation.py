"""Detect image files that end too early, by the layout of their container.

A decoder may fill the missing part with a color of its own: libheif leaves the missing tiles of a
HEIC grid green. Covers ISO/IEC 14496-12 (HEIC, AVIF), RIFF (WebP) and TIFF 6.0. Pillow itself
refuses a JPEG, PNG, GIF, BMP or uncompressed TIFF that ends within the pixels of its first picture.
Also finds the first frame of an animated WebP.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping

from clip_embed.inputs.decode_limits import FileBytes

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""

# The boxes that a picture needs. A file may end with other data, such as the video of a motion
# photo, whose first bytes only look like a box.
_PICTURE_BOXES = (b"ftyp", b"meta", b"mdat", b"moov")
_TO_END_OF_FILE, _64_BIT_SIZE = 0, 1

# Of more boxes, items and chunks than this, the rest is left to the decoder: a small file could
# declare millions. Phones write about 100 items.
_MAX_PARTS = 10_000

# How the offsets of an item are meant (ISO/IEC 14496-12, 8.11.3).
_FROM_FILE, _FROM_IDAT = 0, 1


def find_truncation(data: FileBytes) -> str | None:
    """Say where a HEIC, AVIF or WebP ends too early. None if it does not, or is of another kind.

    Bytes after the end are allowed. Reads headers only.
    """
    if data[4:8] == b"ftyp":
        return _find_truncated_box(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _describe_truncation(
            "its RIFF chunk", 8 + int.from_bytes(data[4:8], "little"), len(data)
        )
    return None


def _describe_truncation(part: str, end: int, length: int) -> str | None:
    return f"{part} ends at byte {end:,}, the file at byte {length:,}" if end > length else None


def _boxes(data: FileBytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start of the content and end of each box (ISO/IEC 14496-12, 4.2)."""
    for _ in range(_MAX_PARTS):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == _64_BIT_SIZE:
            if start + 16 > end:
                yield kind, end, end + 1
                return
            [size] = struct.unpack_from(">Q", data, content)
            content += 8
        elif size == _TO_END_OF_FILE:
            size = end - start
        if size < content - start:  # not a box
            return
        yield kind, content, start + size
        start += size


def _find_truncated_box(data: FileBytes) -> str | None:
    has_items = False
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind in _PICTURE_BOXES and (
            cut := _describe_truncation(f"its {kind.decode()} box", end, len(data))
        ):
            return cut
        if kind == b"meta" and not has_items:  # a file has one; more are not read
            has_items = True
            if cut := _find_truncated_item(data, start + 4, end):
                return cut
    return None


def _find_truncated_item(data: FileBytes, start: int, end: int) -> str | None:
    """Check that the data of all items of a `meta` box is in the file."""
    parts = {kind: (first, last) for kind, first, last in _boxes(data, start, end)}
    first, last = parts.get(b"idat", (0, 0))
    if b"iloc" not in parts:
        return None
    try:
        ends = _item_ends(data, *parts[b"iloc"])
        for method, item_end in itertools.islice(ends, _MAX_PARTS):
            length = {_FROM_FILE: len(data), _FROM_IDAT: last - first}[method]
            if cut := _describe_truncation("the data of its pictures", item_end, length):
                return cut
    except struct.error:
        pass  # damaged, not cut: for the decoder to say
    return None


def _item_ends(data: FileBytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the construction method and the end of each extent of an `iloc` box.

    Source: ISO/IEC 14496-12, 8.11.3.
    """
    version, sizes = data[start], struct.unpack_from(">H", data, start + 4)[0]
    offset_size, length_size = sizes >> 12, sizes >> 8 & 15
    base_size, index_size = sizes >> 4 & 15, sizes & 15 if version else 0
    extent_size = index_size + offset_size + length_size
    number = ">I" if version >= 2 else ">H"
    [items] = struct.unpack_from(number, data, start + 6)
    position = start + 6 + struct.calcsize(number)
    for _ in range(min(items, _MAX_PARTS)):
        position += struct.calcsize(number)  # the item's ID
        method = 0
        if version:
            method = struct.unpack_from(">H", data, position)[0] & 15
            position += 2
        reference, base = struct.unpack_from(">H", data, position)[0], position + 2
        position = base + base_size
        [extents] = struct.unpack_from(">H", data, position)
        position += 2
        if position + extents * extent_size > end:
            return
        # An item in another file, or made from other items, has no end in this one.
        is_here = reference == 0 and method in (_FROM_FILE, _FROM_IDAT)
        for _ in range(extents if extent_size and is_here else 0):
            offset = position + index_size
            length = offset + offset_size
            yield (
                method,
                (
                    int.from_bytes(data[base : base + base_size], "big")
                    + int.from_bytes(data[offset:length], "big")
                    + int.from_bytes(data[length : length + length_size], "big")
                ),
            )
            position = length + length_size
        if not is_here:
            position += extents * extent_size


_COMPRESSION = 259
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325


def find_tiff_truncation(tags: Mapping[int, object], length: int) -> str | None:
    """Say where a compressed TIFF ends too early. None if it does not, or is not compressed.

    tags: of its first picture (TIFF 6.0, sections 8 and 15). length: of the file, in bytes. Some
    writers declare the last of several uncompressed strips longer than it is: those are left to
    the decoder, which knows how many bytes it needs.
    """
    if tags.get(_COMPRESSION, 1) == 1:
        return None
    for offsets, counts in ((_STRIP_OFFSETS, _STRIP_BYTES), (_TILE_OFFSETS, _TILE_BYTES)):
        starts, sizes = tags.get(offsets), tags.get(counts)
        if isinstance(starts, tuple) and isinstance(sizes, tuple):
            ends = map(sum, zip(starts, sizes, strict=False))
            if cut := _describe_truncation("its last strip or tile", max(ends, default=0), length):
                return cut
    return None


def webp_first_frame(data: FileBytes) -> Box | None:
    """Return where the first frame of an animated WebP lies on its canvas, None without frames.

    Source: RFC 9649, section 2.7.1.1 (ANMF).
    """
    position = 12
    for _ in range(_MAX_PARTS):
        if position + 24 > len(data):
            break
        kind, size = struct.unpack_from("<4sI", data, position)
        if kind == b"ANMF":
            x, y, width, height = (
                int.from_bytes(data[at : at + 3], "little")
                for at in range(position + 8, position + 20, 3)
            )
            return 2 * x, 2 * y, 2 * x + width + 1, 2 * y + height + 1
        position += 8 + size + size % 2
    return None
