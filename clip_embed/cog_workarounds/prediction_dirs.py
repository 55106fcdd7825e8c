"""Remove the directories that Cog makes for each prediction and never removes.

Cog 0.23.1 makes PREDICTIONS/ID/{inputs,outputs} for each prediction. If it cannot, the slot of that
prediction is lost until the process ends, so setup fails if the place cannot be written to.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

from clip_embed.errors import SettingError

PREDICTIONS = Path("/tmp/coglet/predictions")
"""A constant of coglet."""

OLD_SECONDS = 60.0
"""Age at which a directory is removed: Cog makes it, and uses it, as a prediction begins."""

SWEEP_SECONDS = 10.0


def check_writable() -> None:
    """Raise SettingError if Cog will not be able to make its directories."""
    try:
        PREDICTIONS.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(prefix="check-", dir=PREDICTIONS))
    except OSError as error:
        raise SettingError(
            f"{PREDICTIONS} cannot be written to: {error.strerror}; Cog needs it for every"
            " prediction: give the container a writable /tmp, such as `docker run --tmpfs /tmp`"
        ) from error


def start_sweeping() -> None:
    """Start a thread that removes old directories, every SWEEP_SECONDS."""
    threading.Thread(target=_sweep_forever, name="sweep-predictions", daemon=True).start()


def _sweep_forever() -> None:
    while True:
        time.sleep(SWEEP_SECONDS)
        sweep(PREDICTIONS, OLD_SECONDS)


def sweep(predictions: Path, old_seconds: float) -> None:
    """Remove what predictions of more than `old_seconds` ago have left.

    Nothing but what Cog makes is removed: empty directories, and inputs that it wrote to disk
    because they were large.
    """
    oldest = time.time() - old_seconds
    with contextlib.suppress(OSError), os.scandir(predictions) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False) and entry.stat().st_mtime < oldest:
                    _remove(entry.path)


def _remove(prediction: str) -> None:
    # Strings, not paths: at 100 predictions per second it matters.
    for directory in (f"{prediction}/inputs", f"{prediction}/outputs"):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError:  # not empty
            for spilled in Path(directory).glob("spill_*.json"):
                spilled.unlink()
            os.rmdir(directory)
    os.rmdir(prediction)
