"""Notice that Cog has lost prediction slots, and end the process so that it is restarted.

Cog 0.23.1 loses the slot of a prediction whose directory it cannot make: on a full disk, or for an
id that no file system accepts. When all are lost, every request gets 409, for ever. Its worker
sees a server that stays BUSY while no prediction starts or runs.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import urllib.request
from dataclasses import dataclass

log = logging.getLogger("clip_embed.cog")

CHECK_SECONDS = 15.0
CONSECUTIVE_CHECKS = 3
"""Checks in a row that must find the server BUSY and nothing running. A slot is taken before its
prediction starts: while a large input is on its way, nothing may start for a while."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, without a proxy


@dataclass
class PredictionCount:
    """Predictions in this process. running: now. started: so far."""

    running: int = 0
    started: int = 0


class LostSlots:
    """Watches Cog's HTTP server. lost: whether it has lost all of its slots."""

    def __init__(self, url: str, predictions: PredictionCount) -> None:
        """url: of the server. predictions: in this process."""
        self.lost = False
        self._url = url
        self._predictions = predictions

    def start(self) -> None:
        """Start to watch, in a thread."""
        threading.Thread(target=self._watch, name="lost-slots", daemon=True).start()

    def _watch(self) -> None:
        found = started = 0
        while found < CONSECUTIVE_CHECKS:
            time.sleep(CHECK_SECONDS)
            idle = not self._predictions.running and self._predictions.started == started
            started = self._predictions.started
            found = found + 1 if idle and self._is_busy() else 0
        self.lost = True
        log.error(
            "Cog has lost its prediction slots: it is BUSY, and no prediction is running. The disk"
            " may be full, or clients send ids that are not valid file names (docs/operations.md)."
            " The process ends, to be restarted."
        )
        time.sleep(0.5)  # for the log
        # The server, of which this is a child. Not SIGTERM: it would exit with status 0, which
        # Docker's `--restart on-failure` takes for success.
        os.kill(os.getppid(), signal.SIGKILL)

    def _is_busy(self) -> bool:
        try:
            with _DIRECT.open(f"{self._url}/health-check", timeout=10) as response:
                return bool(json.load(response)["status"] == "BUSY")
        except (OSError, ValueError, LookupError):
            return False
