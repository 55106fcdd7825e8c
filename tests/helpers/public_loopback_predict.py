"""predict.py for a test: 127.0.0.1 counts as a public address, and no other does."""

import predict
from clip_embed.inputs import public_address


class Predictor(predict.Predictor):
    def setup(self) -> None:
        public_address.is_public = lambda address: address == "127.0.0.1"
        super().setup()
