"""The service with a fault in its network after set-up, for `test_service.py`."""

import os

import predict


class Predictor(predict.Predictor):
    """FAULT names what happens to one weight of the text tower, or of the image tower."""

    def setup(self) -> None:
        super().setup()
        tower, _, value = os.environ["FAULT"].partition(" ")
        model = self._embedder._model
        part = model.visual if tower == "image" else model
        weight = part.transformer.resblocks[0].mlp.c_fc.weight
        if value == "nan":
            weight.data[0, 0] = float("nan")
        elif value == "wrong":
            weight.data.copy_(weight.data.flip(0))
        self._checked -= predict.HEALTH_SECONDS  # as if set-up were over for some time
