"""The Cog entry point: `setup` loads CLIP, `predict` embeds a text or an image."""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

from cog import BasePredictor, Input, Opaque, Path, concurrent

import weights
from clip_embed.cog_workarounds.worker import CogWorker
from clip_embed.errors import NoInputError
from clip_embed.settings import Settings
from clip_embed.startup.timing import StageTimer


class Predictor(BasePredictor):
    """Embeds text and images with OpenAI's CLIP ViT-L/14, or another published CLIP."""

    def setup(self) -> None:
        """Pull the weights named by CLIP_WEIGHTS and get ready to predict.

        Raises SettingError, WeightsError or ModelError; Cog shows the message in /health-check.
        """
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        timer = StageTimer()
        settings = Settings.from_environment()
        self._cog = CogWorker()
        with weights.pull(
            settings.weights,
            cache=settings.weights_cache,
            cache_bytes=settings.weights_cache_bytes,
        ) as pull:
            # Imported here, not above: the weights are being downloaded meanwhile.
            from clip_embed.service import Service

            self._service = Service.load(pull, settings, timer)
        pull.fill_cache()
        self._cog.activate(self)

    async def healthcheck(self) -> bool:
        """Check that the network still gives the vectors that it gave at setup."""
        return self._cog.is_healthy and await self._service.is_healthy()

    # Batches form from the requests in flight, so this number bounds memory, not speed. Cog frees a
    # slot a little after its response has left, so clients that fill all slots meet 409 again and
    # again: hence 64 slots for 32 busy clients. Cog reads the number when it builds an image;
    # COG_MAX_CONCURRENCY overrides it.
    @concurrent(max=64)
    async def predict(
        self,
        text: str | None = Input(
            description="Text to embed, if no image is sent. CLIP reads 75 tokens, about 50 words.",
            default=None,
        ),
        image: Path | None = Input(
            description="Image to embed: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC.",
            default=None,
            accept="image/*",
        ),
    ) -> Annotated[Sequence[float], Opaque]:  # a list; cog_workarounds/output.py says why Opaque
        """Embed the image, or the text: CLIP's projected feature, 768 floats, not normalized.

        Raises InputError if the input cannot be embedded, EmbeddingError if the network fails.
        """
        with self._cog.prediction():
            if image:
                if text:
                    print("text is ignored: an image was sent too")
                embedding = await self._service.embed_image(image)
            elif text:
                embedding = await self._service.embed_text(text)
            else:
                raise NoInputError(
                    "nothing to embed: send text, such as 'a red bicycle', or an image, within"
                    ' "input", with Content-Type: application/json'
                )
        for name, value in embedding.metrics.items():
            self.record_metric(name, value)
        return self._cog.output(embedding.vector)  # type: ignore[no-any-return]
