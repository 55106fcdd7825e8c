"""Make the real Cog server for a part."""

from __future__ import annotations

import os
import sys
from typing import Any

from scripts.gpu.part import Task
from scripts.lib.cog_server import ROOT, CogServer


def make_server(
    task: Task, location: str, emulator: str | None = None, *, log: Any = sys.stderr
) -> CogServer:
    """Return the server of the weights at `location`, not yet started. emulator: URL of the
    bucket that holds them.

    log: receives its output; default, stderr. Raises ModuleNotFoundError if Cog is not installed.
    """
    import cog  # noqa: F401 - otherwise the server would end without telling why
    import coglet  # noqa: F401

    environment = {
        "CLIP_WEIGHTS": location,
        "CLIP_DEVICE": task.device,
        # Packages may be in a folder of PYTHONPATH, which CogServer replaces.
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    if emulator:
        environment["STORAGE_EMULATOR_HOST"] = emulator
    return CogServer(environment, log=log)
