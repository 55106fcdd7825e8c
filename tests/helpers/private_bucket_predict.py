"""predict.py for a test: the server that the environment names is Cloud Storage."""

import os

import predict
from clip_embed.checkpoint import stores

ENVIRONMENT_VARIABLE = "TEST_CLOUD_STORAGE"


class Predictor(predict.Predictor):
    def setup(self) -> None:
        stores.CLOUD_STORAGE = os.environ[ENVIRONMENT_VARIABLE]
        super().setup()
