"""predict.py for a test: 127.0.0.1 counts as a public address, and no other does."""

import predict
from clip_embed.inputs import image_url


class Predictor(predict.Predictor):
    def setup(self) -> None:
        image_url.is_public = lambda address: address == "127.0.0.1"
        super().setup()
