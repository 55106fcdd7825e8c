"""Drop the chunks of a PNG that do not affect its pixels, and verify the checksums of the others.

Pillow 13 does not verify the checksum of IDAT, where changed bits can give other pixels; but it
refuses a wrong checksum in any other chunk, and more than a megabyte of compressed text or color
profile. libpng ignores a chunk that is not critical if its checksum is wrong. Source: PNG
Specification (Third Edition), 5.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from clip_embed.errors import ImageError
from clip_embed.inputs.decode_limits import FileBytes

MAX_CHUNKS = 100_000
"""Encoders write chunks of 8 KiB and more. 20 MB of empty ones would take five seconds."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT_LIMIT = 2**20  # as Pillow's MAX_TEXT_CHUNK

# What ImageMagick writes instead of eXIf.
_EXIF_AS_TEXT = b"Raw profile type exif\0"


def drop_unused_chunks(file: BinaryIO, data: FileBytes, name: str) -> BinaryIO:
    """Return a file with the chunks of a PNG that matter: critical ones, transparency and EXIF.

    Chunks are left out, never changed. Those of an animation are left out, too: the default image
    is a PNG of its own. Of the others an ancillary chunk with a wrong checksum is left out, as by
    libpng. data: the bytes of `file`. name: for messages.

    Raises ValueError if the checksum of a pixel chunk is wrong, and ImageError if there are more
    than MAX_CHUNKS.
    """
    with memoryview(data) as view:  # its slices are no copies
        parts = list(_kept_ranges(view, name))
    if len(parts) == 1:
        return file
    return _RangesFile(file, parts)  # type: ignore[return-value]  # a BinaryIO as far as Pillow needs


def _kept_ranges(data: memoryview, name: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of bytes that matters, in order."""
    start, position, seen = 0, len(SIGNATURE), set[bytes]()
    for number in itertools.count(1):
        if position + 12 > len(data):
            break
        if number > MAX_CHUNKS:
            raise ImageError(
                f"{name} consists of more than {MAX_CHUNKS:,} chunks; save it anew as PNG or JPEG"
            )
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data) or not kind.isalpha():
            break  # for Pillow to judge
        if kind == b"IDAT" and not _is_intact(data, position, end):
            raise ValueError("the checksum of its pixels is wrong")
        if kind[:1].islower():
            # The first of its kind counts, which also bounds the work.
            is_first = _may_be_needed(data, kind, position) and kind not in seen
            if is_first:
                seen.add(kind)
            if not is_first or not _is_usable(data, kind, position, end):
                if position > start:
                    yield start, position
                start = end
        position = end
        if kind == b"IEND":
            break
    if start < len(data):
        yield start, len(data)


def _may_be_needed(data: memoryview, kind: bytes, start: int) -> bool:
    """Return whether an ancillary chunk is transparency or EXIF."""
    if kind in (b"tEXt", b"zTXt"):
        return data[start + 8 : start + 8 + len(_EXIF_AS_TEXT)] == _EXIF_AS_TEXT
    return kind in (b"tRNS", b"eXIf")


def _is_usable(data: memoryview, kind: bytes, start: int, end: int) -> bool:
    """Return whether an ancillary chunk is intact, and small also when it is decompressed."""
    if end - start > _TEXT_LIMIT or not _is_intact(data, start, end):
        return False
    return kind != b"zTXt" or _is_small(data[start + 8 + len(_EXIF_AS_TEXT) + 1 : end - 4])


def _is_intact(data: memoryview, start: int, end: int) -> bool:
    return zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _is_small(compressed: memoryview) -> bool:
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(compressed, _TEXT_LIMIT)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail


class _RangesFile:
    """A file made of parts of another one, read in order. Has what Pillow's PNG reader uses."""

    def __init__(self, file: BinaryIO, parts: list[tuple[int, int]]) -> None:
        self._file, self._parts = file, parts
        self._ends = []
        total = 0
        for start, end in parts:
            total += end - start
            self._ends.append(total)
        self._position = self._part = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._ends[-1]}[whence]
        self._position, self._part = base + offset, 0
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        size = self._ends[-1] - self._position if size < 0 else size
        pieces = []
        while size > 0 and self._part < len(self._parts):
            left = self._ends[self._part] - self._position
            if left <= 0:
                self._part += 1
                continue
            self._file.seek(self._parts[self._part][1] - left)
            piece = self._file.read(min(size, left))
            if not piece:  # the file became shorter
                break
            pieces.append(piece)
            self._position += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
