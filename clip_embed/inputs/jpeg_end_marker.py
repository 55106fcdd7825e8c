"""Complete a JPEG that lacks only its end-of-image marker.

Some cameras and uploads leave out the last two bytes. libjpeg needs a few bytes after the last
block, so Pillow refuses such a file, although every pixel is in it. Sources: ITU-T T.81, B and G.
"""

from __future__ import annotations

import io
import zlib

from PIL import Image

from clip_embed.inputs.decode_limits import JPEG_MARKER, MAX_MARKERS, MAX_SCANS

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_START_OF_FRAME, _START_OF_SCAN = (b"\xc0", b"\xc1", b"\xc2"), b"\xda"

# Bits that may follow a complete file. Between them, and the zeros that libjpeg reads behind a
# marker, the first missing bits have every value.
_FILLERS = (b"\xa5\x3c" * 16, b"\x5a\xc3" * 16)

_COMPONENTS = 4  # at most (B.2.3)

_ROWS = 256  # to compare at once


def append_missing_eoi(data: bytes) -> io.BytesIO | None:
    """Return a JPEG with the marker that it lacks, None if it lacks more or nothing.

    It lacks no data if all scans are there and the pixels are the same whatever bits or restart
    interval follow: a decoder that still needs data takes what follows for it. So a file that lacks
    a few bits more is completed where these make no difference. Decodes the file up to four times,
    and stops at the first difference. Raises whatever Pillow raises.
    """
    if not data.startswith(_START) or data.endswith(_END):
        return None
    data = data.rstrip(b"\xff")  # the first half of the marker
    if not has_all_scans(data):
        return None
    completed = data + _END
    expected = _checksum(completed)
    fillers = [*_FILLERS, _next_restart(data) + _FILLERS[0]]
    if any(_checksum(data + filler + _END) != expected for filler in fillers):
        return None
    return io.BytesIO(completed)


def _next_restart(data: bytes) -> bytes:
    """Return the restart marker that follows the last one."""
    last = max(data.rfind(bytes((0xFF, 0xD0 + n))) for n in range(8))
    return bytes((0xFF, 0xD0 + (data[last + 1] + 1) % 8 if last >= 0 else 0xD0))


def has_all_scans(data: bytes) -> bool:
    """Return whether the scans of a JPEG transmit every coefficient of every component in full.

    False for more than MAX_SCANS scans or MAX_MARKERS segments, which would take long.
    """
    missing: set[tuple[int, int]] = set()
    seen_frame, position, scans = False, 2, 0
    for _ in range(MAX_MARKERS):
        marker = JPEG_MARKER.search(data, position)
        if marker is None:
            return seen_frame and not missing
        start = marker.end() + 2
        position = marker.end() + int.from_bytes(data[marker.end() : start], "big")
        segment = data[start:position]
        if marker[1] in _START_OF_FRAME and len(segment) >= 6 and segment[5] <= _COMPONENTS:
            components = segment[6 : 6 + 3 * segment[5] : 3]
            missing = {(component, k) for component in components for k in range(64)}
            seen_frame = True
        elif marker[1] == _START_OF_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                return False
            missing -= _completed(segment)
    return False


def _completed(scan: bytes) -> set[tuple[int, int]]:
    """Return the component and index of each coefficient that a scan transmits to its last bit."""
    if not scan or scan[0] > _COMPONENTS or len(scan) < 4 + 2 * scan[0]:
        return set()
    first, last, bits = scan[1 + 2 * scan[0] :][:3]
    if bits & 15 or last > 63:
        return set()
    return {(c, k) for c in scan[1 : 1 + 2 * scan[0] : 2] for k in range(first, last + 1)}


def _checksum(jpeg: bytes) -> int:
    """Return a checksum of the pixels, without a copy of them all."""
    checksum = 0
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        image.load()
        for top in range(0, image.height, _ROWS):
            rows = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
            checksum = zlib.crc32(rows.tobytes(), checksum)
    return checksum
