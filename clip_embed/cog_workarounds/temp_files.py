"""Remove the temporary files of images that Cog leaves behind.

Cog 0.23.1 writes an image that arrives as a URI to a temporary file. The file stays if its
prediction is cancelled before it begins, and so does a partial download (seen by
`scripts/soak.py`). Clients that hang up often would fill the disk. So this process makes its
temporary files in a directory of its own, where everything old may be removed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

OLD_SECONDS = 300.0
"""Age at which a file is removed: no request waits so long for its image to be read."""

SWEEP_SECONDS = 60.0
"""Interval between two sweeps."""


def use_own_directory() -> tempfile.TemporaryDirectory[str]:
    """Make a directory, and have this process, and so Cog, make its temporary files there."""
    own = tempfile.TemporaryDirectory(prefix="clip-embed-")
    tempfile.tempdir = own.name
    return own


class TempFiles:
    """Removes files from `directory`, which holds no others. Use it from one thread at a time."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._swept = time.monotonic()

    def discard(self, path: str | os.PathLike[str]) -> None:
        """Remove `path` if it is in the directory, and sweep every SWEEP_SECONDS."""
        if Path(path).parent == self._directory:
            with contextlib.suppress(OSError):
                os.unlink(path)
        if time.monotonic() - self._swept >= SWEEP_SECONDS:
            self._swept = time.monotonic()
            self.sweep()

    def sweep(self) -> None:
        """Remove every file older than OLD_SECONDS."""
        oldest = time.time() - OLD_SECONDS
        for path in self._directory.glob("*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
