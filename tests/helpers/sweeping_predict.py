"""predict.py for a test: each request with an image removes all older temporary files."""

import predict
from clip_embed.cog_workarounds import temp_files


class Predictor(predict.Predictor):
    """Temporary files are old as soon as they are written."""

    def setup(self) -> None:
        temp_files.OLD_SECONDS = temp_files.SWEEP_SECONDS = 0.0
        super().setup()
