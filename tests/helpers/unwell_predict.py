"""predict.py for a test: a weight of the network changes while the server runs."""

from __future__ import annotations

import os
from pathlib import Path

import predict
from clip_embed import service

ENVIRONMENT_VARIABLE = "FAULT_FILE"
"""Names a file with the fault: "none", or a tower and the new value, such as "text nan"."""

FAULTS = ("text nan", "text wrong", "image nan", "image wrong")


class Predictor(predict.Predictor):
    """Reads the fault at every health check, and applies it to the network of setup."""

    def setup(self) -> None:
        super().setup()
        model = self._service._embedder._model
        self._weights = {
            tower: part.transformer.resblocks[0].mlp.c_fc.weight.data
            for tower, part in (("text", model), ("image", model.visual))
        }
        self._originals = {tower: weight.clone() for tower, weight in self._weights.items()}

    async def healthcheck(self) -> bool:
        fault = Path(os.environ[ENVIRONMENT_VARIABLE]).read_text()
        for tower, weight in self._weights.items():
            weight.copy_(self._originals[tower])
            if fault == f"{tower} nan":
                weight[0, 0] = float("nan")
            elif fault == f"{tower} wrong":
                weight.copy_(self._originals[tower].flip(0))
        # The result of the last check must not be cached.
        self._service._health_checked -= service.HEALTH_CHECK_SECONDS
        return await super().healthcheck()
