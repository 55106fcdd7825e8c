"""predict.py for a test: lost slots are noticed at once, and directories removed soon."""

import predict
from clip_embed.cog_workarounds import lost_slots, prediction_dirs


class Predictor(predict.Predictor):
    def setup(self) -> None:
        lost_slots.CHECK_SECONDS = 0.5
        prediction_dirs.SWEEP_SECONDS = 0.5
        prediction_dirs.OLD_SECONDS = 2.0
        super().setup()
