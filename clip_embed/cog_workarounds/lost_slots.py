"""Notice that Cog has lost prediction slots, and end the process so that it is restarted.

Cog 0.23.1 loses the slot of a prediction whose directory it cannot make: on a full disk, or for an
id that no file system accepts. When all are lost, every request gets 409, for ever. Its worker
sees a server that is BUSY while few predictions are running.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable

log = logging.getLogger("clip_embed.cog")

CHECK_SECONDS = 15.0
CONSECUTIVE_CHECKS = 2
"""Checks in a row that must find slots lost: a slot is taken just before its prediction runs."""

FINISH_SECONDS = 10.0
"""Time for running predictions to finish before the process ends."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, without a proxy


class LostSlots:
    """Watches Cog's HTTP server. lost: whether it has lost more than half of its slots."""

    def __init__(self, url: str, slots: int, running: Callable[[], int]) -> None:
        """url: of the server. slots: in all. running: the number of predictions that run now."""
        self.lost = False
        self._url = url
        self._slots = slots
        self._running = running

    def start(self) -> None:
        """Start to watch, in a thread."""
        threading.Thread(target=self._watch, name="lost-slots", daemon=True).start()

    def _watch(self) -> None:
        found = 0
        while found < CONSECUTIVE_CHECKS:
            time.sleep(CHECK_SECONDS)
            found = found + 1 if self._are_lost() else 0
        self.lost = True
        log.error(
            "Cog has lost prediction slots: it is BUSY while %d of %d predictions are running. The"
            " disk may be full, or clients send ids that are not valid file names"
            " (docs/operations.md). The process ends, to be restarted.",
            self._running(),
            self._slots,
        )
        deadline = time.monotonic() + FINISH_SECONDS
        while self._running() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # for the last responses
        # The server, of which this is a child. Not SIGTERM: it would exit with status 0, which
        # Docker's `--restart on-failure` takes for success.
        os.kill(os.getppid(), signal.SIGKILL)

    def _are_lost(self) -> bool:
        """Return whether the server is busy while less than half of its slots are in use."""
        try:
            with _DIRECT.open(f"{self._url}/health-check", timeout=10) as response:
                busy = json.load(response)["status"] == "BUSY"
        except (OSError, ValueError, LookupError):
            return False
        return busy and self._running() < self._slots / 2
