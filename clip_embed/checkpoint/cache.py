"""Cache published files on this machine's disk, for the next start.

Files are identified by their content (size and crc32c), never by name alone. Bytes that are read
from the cache are not trusted: the caller verifies them, and discards the file if they are wrong.
Several processes may share a directory: a file appears whole, under its final name, or not at all.
Several users may share it, too: every user may read the files, and the directory's permissions
control write access.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from clip_embed.checkpoint.manifest import PublishedFile, decode_checksum

_CACHED_NAME = re.compile(
    r"[0-9a-f]{8}-(\d+)-(open_clip_config\.json|tokenizer\.json|.+\.safetensors)"
)
"""The name of a cached file with its size; see `Cache.path`."""


class Cache:
    """A directory (CLIP_WEIGHTS_CACHE), created when a file is first written to it.

    max_bytes: of all files in it, None for no limit; see `evict`.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self.directory = Path(os.path.expanduser(directory))
        self.max_bytes = max_bytes

    def path(self, file: PublishedFile) -> Path:
        """Return the path of `file` in the cache, whether it exists or not."""
        checksum = f"{decode_checksum(file.crc32c):08x}"
        return self.directory / f"{checksum}-{file.size}-{file.name}"

    def holds(self, file: PublishedFile) -> bool:
        """Return whether a file of this name and size exists. Its bytes are not verified."""
        try:
            return self.path(file).stat().st_size == file.size
        except OSError:
            return False

    def read(self, file: PublishedFile, start: int, end: int) -> memoryview | None:
        """Return bytes start to end of `file`, unverified; None if they cannot be read."""
        try:
            # O_NONBLOCK: something else than a file, such as a pipe, must not stop a start.
            descriptor = os.open(self.path(file), os.O_RDONLY | os.O_NONBLOCK)
            try:
                data = os.pread(descriptor, end - start, start)
            finally:
                os.close(descriptor)
        except OSError:
            return None
        return memoryview(data) if len(data) == end - start else None

    def discard(self, file: PublishedFile) -> None:
        """Remove `file`, whose bytes were wrong."""
        with contextlib.suppress(OSError):
            self.path(file).unlink()

    def sweep(self) -> None:
        """Remove partial files older than an hour, which killed processes have left."""
        for partial in self.directory.glob(".partial-*"):
            with contextlib.suppress(OSError):
                if time.time() - partial.stat().st_mtime > 3600:
                    partial.unlink()

    def evict(self, used: Collection[PublishedFile]) -> None:
        """Remove the files that were not used for longest, until `max_bytes` are left.

        Marks the files of `used` as used now, and keeps them whatever their size. Removes no file
        that the cache has not written.
        """
        kept = {self.path(file) for file in used}
        for path in kept:
            with contextlib.suppress(OSError):  # another user's file cannot be marked
                os.utime(path)
        if self.max_bytes is None:
            return
        sizes: dict[Path, os.stat_result] = {}
        for path in self.directory.glob("*"):
            with contextlib.suppress(OSError):  # removed by another process
                named, status = _CACHED_NAME.fullmatch(path.name), path.stat()
                if named and status.st_size == int(named[1]):
                    sizes[path] = status
        excess = sum(status.st_size for status in sizes.values()) - self.max_bytes
        for path in sorted(sizes.keys() - kept, key=lambda path: sizes[path].st_mtime):
            if excess <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                excess -= sizes[path].st_size

    @contextlib.contextmanager
    def writer(self, file: PublishedFile) -> Iterator[BinaryIO]:
        """Write `file`, from its start to its end.

        The file appears in the cache if the block succeeds and the size is right; otherwise
        nothing is left. Raises OSError if the disk is full or not writable.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=".partial-", dir=self.directory)
        try:
            with open(descriptor, "wb") as output:
                yield output
                output.flush()
                os.fchmod(output.fileno(), 0o644)  # mkstemp lets only this user read it
                os.fsync(output.fileno())
                if output.tell() != file.size:
                    raise OSError(f"{file.name}: {output.tell()} bytes written of {file.size}")
            os.replace(partial, self.path(file))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
