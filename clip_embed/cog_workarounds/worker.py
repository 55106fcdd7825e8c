"""Activate the workarounds in Cog's worker. In other processes nothing is started, and `output`
returns a plain list."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import coglet
import numpy as np
import numpy.typing as npt

from clip_embed.cog_workarounds import output, prediction_dirs
from clip_embed.cog_workarounds.drain import start_draining_on_exit
from clip_embed.cog_workarounds.lost_slots import LostSlots, PredictionCount

log = logging.getLogger("clip_embed.cog")

LOG_PAUSE_SECONDS = 0.03


class CogWorker:
    """The workarounds of this process. Make one at the beginning of setup."""

    def __init__(self) -> None:
        """Check that Cog can write its directories. Raises SettingError."""
        # cog.yaml sets it for Cog's HTTP server, which runs by now. obstore obeys it too, and may
        # use every core.
        os.environ.pop("TOKIO_WORKER_THREADS", None)
        self._active: bool = coglet.server.active
        if self._active:
            prediction_dirs.check_writable()
        self._one_message = self._active and output.one_message_stays_flat()
        self._predictions = PredictionCount()
        self._lost_slots: LostSlots | None = None

    def activate(self, predictor: Any) -> None:
        """Start the workarounds that need a finished setup."""
        if not self._active:
            return
        # Cog would download and decode images itself, in threads that it interrupts at any point
        # when a client hangs up. It finds them by the annotations of `predict`, which it evaluates
        # for each prediction. Without annotations, `predict` receives the string.
        type(predictor).predict.__annotations__ = {}
        prediction_dirs.start_sweeping()
        port = int(os.environ.get("PORT", "5000"))
        start_draining_on_exit(port, lambda: self._predictions.running)
        self._lost_slots = LostSlots(f"http://127.0.0.1:{port}", self._predictions)
        self._lost_slots.start()
        if self._one_message:
            json.dumps = output.dumps
        else:
            log.warning(output.SLOW_SCHEMA)
        time.sleep(LOG_PAUSE_SECONDS)  # lets the log of setup reach /health-check

    @contextlib.contextmanager
    def prediction(self) -> Iterator[None]:
        """Count a prediction as running."""
        self._predictions.running += 1
        self._predictions.started += 1
        try:
            yield
        finally:
            self._predictions.running -= 1

    @property
    def is_healthy(self) -> bool:
        """Return whether Cog's server can still serve."""
        return self._lost_slots is None or not self._lost_slots.lost

    def output(self, vector: npt.NDArray[np.float32]) -> Any:
        """Return float32 [D] in the form that Cog sends fastest, or as a list of floats."""
        return output.as_one_message(vector) if self._one_message else output.as_list(vector)
