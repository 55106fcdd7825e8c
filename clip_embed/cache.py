"""Verified files kept on this machine's disk, so that the next start need not fetch them.

Knows files by what is in them (size and crc32c), never by name alone; nothing of where they came
from. What it hands out is not trusted: the caller verifies it, and has it discarded if it is wrong.
Several processes may share a directory: a file appears whole, under its final name, or not at all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clip_embed.manifest import PublishedFile, decode_checksum


class Cache:
    """A directory (CLIP_WEIGHTS_CACHE), made when something is first kept in it."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).expanduser()

    def path(self, file: PublishedFile) -> Path:
        """Where `file` is, or would be."""
        checksum = f"{decode_checksum(file.crc32c):08x}"
        return self.directory / f"{checksum}-{file.size}-{file.name}"

    def holds(self, file: PublishedFile) -> bool:
        """Whether a file of the right name and size is there; its bytes are another matter."""
        try:
            return self.path(file).stat().st_size == file.size
        except OSError:
            return False

    def read(self, file: PublishedFile, start: int, end: int) -> memoryview | None:
        """Bytes start to end of `file`, unverified; None if they are not to be had."""
        try:
            with open(self.path(file), "rb", buffering=0) as kept:
                data = os.pread(kept.fileno(), end - start, start)
        except OSError:
            return None
        return memoryview(data) if len(data) == end - start else None

    def discard(self, file: PublishedFile) -> None:
        """Forget `file`, whose bytes were wrong."""
        with contextlib.suppress(OSError):
            self.path(file).unlink()

    def sweep(self) -> None:
        """Remove what processes that were killed left half-written more than an hour ago."""
        with contextlib.suppress(OSError):
            for partial in self.directory.glob(".partial-*"):
                if time.time() - partial.stat().st_mtime > 3600:
                    partial.unlink()

    @contextlib.contextmanager
    def writer(self, file: PublishedFile) -> Iterator[BinaryIO]:
        """A new copy of `file`, to be written from its start to its end.

        It takes its place when the block ends well and the size is right, and leaves nothing
        behind otherwise. Raises OSError if the disk is full or may not be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=".partial-", dir=self.directory)
        try:
            with open(descriptor, "wb") as output:
                yield output
                output.flush()
                os.fsync(output.fileno())
                if output.tell() != file.size:
                    raise OSError(f"{file.name}: {output.tell()} bytes written of {file.size}")
            os.replace(partial, self.path(file))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
