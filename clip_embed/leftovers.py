"""The copies of images that Cog makes for a prediction, and does not always remove.

Cog 0.23 writes an image that arrives as a URI to a temporary file. predict.py has it removed once
it is read; that of a prediction cancelled before it began stays. A service with impatient clients
would fill its disk. (Seen on 0.23.1, by `scripts/soak.py`.) What Cog has written of a URL when the
download fails stays, too, under a name that ends as the URL does. So this process makes its
temporary files in a directory of its own, where whatever is old may go.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

OLD_SECONDS = 300.0
"""Nobody waits so long for an image to be read."""

SWEEP_SECONDS = 60.0


def own_directory() -> tempfile.TemporaryDirectory[str]:
    """A new directory, in which this process, and so Cog, makes its temporary files from now on."""
    own = tempfile.TemporaryDirectory(prefix="clip-embed-")
    tempfile.tempdir = own.name
    return own


class Leftovers:
    """Removes them from `directory`, which holds nothing else; used from one thread at a time."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._swept = time.monotonic()

    def discard(self, path: str | os.PathLike[str]) -> None:
        """Remove `path`, which has been read, if it lies here; and now and then, old ones."""
        if Path(path).parent == self._directory:
            with contextlib.suppress(OSError):
                os.unlink(path)
        if time.monotonic() - self._swept >= SWEEP_SECONDS:
            self._swept = time.monotonic()
            self.sweep()

    def sweep(self) -> None:
        """Remove all that are so old that nobody can be waiting for them."""
        oldest = time.time() - OLD_SECONDS
        for path in self._directory.glob("*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
