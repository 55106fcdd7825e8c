"""Switch the workarounds on in Cog's worker. Elsewhere, as in tests, every method does nothing."""

from __future__ import annotations

import os
import time
from typing import Any

import coglet
import numpy as np
import numpy.typing as npt
from cog import Path, URLPath

from clip_embed.cog_workarounds import output
from clip_embed.cog_workarounds.cancel_safe_executor import CancelSafeExecutor
from clip_embed.cog_workarounds.temp_files import TempFiles, use_own_directory

PREPARE_THREADS = 64
"""Images downloaded at once: as many as there are slots, so that a slow web server delays no other
request."""

LOG_PAUSE_SECONDS = 0.03


class CogWorker:
    """The workarounds of this process. Make one at the beginning of setup."""

    def __init__(self) -> None:
        # cog.yaml sets it for Cog's HTTP server, which runs by now. obstore obeys it too, and may
        # use every core.
        os.environ.pop("TOKIO_WORKER_THREADS", None)
        self._active: bool = coglet.server.active
        self._one_message = self._active and output.one_message_stays_flat()
        self._temp_files: TempFiles | None = None

    def end_setup(self) -> None:
        """Take over the preparation of images, and let the log of setup reach /health-check."""
        if not self._active:
            return
        _prepare_images_in(CancelSafeExecutor(PREPARE_THREADS))
        self._temp_directory = use_own_directory()
        self._temp_files = TempFiles(self._temp_directory.name)
        time.sleep(LOG_PAUSE_SECONDS)

    def discard(self, image: str | os.PathLike[str]) -> None:
        """Remove the temporary file of an image that has been read."""
        if self._temp_files is not None:
            self._temp_files.discard(image)

    def output(self, vector: npt.NDArray[np.float32]) -> Any:
        """Return float32 [D] in the form that Cog sends fastest, or as a list of floats."""
        return output.as_one_message(vector) if self._one_message else output.as_list(vector)


def _prepare_images_in(executor: CancelSafeExecutor) -> None:
    """Have Cog convert URLs and data URIs to files in threads of `executor`.

    Cog would start a thread for each, in a thread that it interrupts when the client hangs up.
    """
    validate = Path.validate

    def to_file(value: object) -> object:
        path = validate(value)
        return path.convert() if isinstance(path, URLPath) else path

    Path.validate = staticmethod(lambda value: executor.call(to_file, value))
