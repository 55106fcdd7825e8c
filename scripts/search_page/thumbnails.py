"""Draw the thumbnails of indexed pictures: the square that CLIP sees, with the service's limits."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from clip_embed.errors import ImageError
from clip_embed.inputs.preprocess import PreprocessConfig, preprocess_image
from clip_embed.settings import DEFAULT_MAX_IMAGE_BYTES

SIZE = 320  # pixels per side
QUALITY = 85
MEDIA_TYPE = "image/webp"
CACHE_BYTES = 64_000_000  # some thousand thumbnails
# Only size and filter matter here: mean and std belong to CLIP's input.
CONFIG = PreprocessConfig(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), Image.Resampling.BICUBIC)


class NoThumbnailError(Exception):
    """There is no such row, or its file is gone, replaced, or not a picture any more."""


class Thumbnails:
    """Thumbnails by row, with the latest ones in memory. Safe to use from several threads.

    paths: the file of each row. No other file is ever opened.
    """

    def __init__(self, paths: Mapping[int, str], cache_bytes: int = CACHE_BYTES) -> None:
        self._paths = paths
        self._cache: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._free_bytes = cache_bytes
        self._lock = threading.Lock()

    def get(self, row: int) -> bytes:
        """Return a thumbnail, encoded as MEDIA_TYPE. Raises NoThumbnailError."""
        try:
            with _open_indexed(Path(self._paths[row])) as file:
                status = os.fstat(file.fileno())
                # A file that has changed gets a new thumbnail.
                key = (row, status.st_size, status.st_mtime_ns)
                return self._cached(key) or self._store(key, _draw(file))
        except (KeyError, OSError, ImageError) as error:
            raise NoThumbnailError from error

    def _cached(self, key: tuple[int, int, int]) -> bytes | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _store(self, key: tuple[int, int, int], thumbnail: bytes) -> bytes:
        with self._lock:
            self._free_bytes += len(self._cache.pop(key, b"")) - len(thumbnail)
            self._cache[key] = thumbnail
            while self._free_bytes < 0:
                _, oldest = self._cache.popitem(last=False)
                self._free_bytes += len(oldest)
        return thumbnail


def _open_indexed(path: Path) -> BinaryIO:
    """Open an indexed file. Raises OSError if it is too large, or cannot be read without waiting.

    A symbolic link, also as a folder on the way, could lead to a file that was never indexed.
    """
    if os.path.realpath(path) != str(path):
        raise FileNotFoundError(path)
    # Not blocking: opening a named pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    if os.fstat(descriptor).st_size > DEFAULT_MAX_IMAGE_BYTES:
        file.close()
        raise FileNotFoundError(path)
    return file


def _draw(file: BinaryIO) -> bytes:
    """Return the thumbnail of an open picture. Raises ImageError."""
    pixels = preprocess_image(file, CONFIG, fast_jpeg=True)
    encoded = io.BytesIO()
    Image.fromarray(pixels.array).save(encoded, "WEBP", quality=QUALITY, method=2)
    return encoded.getvalue()
