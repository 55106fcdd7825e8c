"""Embed preprocessed inputs. Owns the network, its warm-up and its self-test.

Independent of files, Cog and requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_embed.errors import EmbeddingError
from clip_embed.inputs.preprocess import Pixels, PreprocessConfig
from clip_embed.inputs.tokenizer import Tokens
from clip_embed.model.clip import Clip, Packing
from clip_embed.model.config import read_config

Vectors = npt.NDArray[np.float32]


class Embedder:
    """The network on its device. Not thread-safe: one caller at a time (`batching.py`)."""

    def __init__(self, model: Clip, preprocess_config: PreprocessConfig) -> None:
        self.config = model.config
        self.preprocess_config = preprocess_config
        self._model = model.eval()
        parameter = next(model.parameters())
        self.device = parameter.device
        self.dtype = parameter.dtype
        self._mean = torch.tensor(preprocess_config.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(preprocess_config.std, device=self.device).view(3, 1, 1)

    @classmethod
    def build(cls, open_clip_config: bytes, tensors: Mapping[str, Tensor]) -> Embedder:
        """Build the network that `open_clip_config.json` describes, with `tensors` as its weights.

        The tensors are not copied. Raises ModelError if they do not fit.
        """
        config, preprocess_config = read_config(open_clip_config)
        model = Clip(config)
        model.load(tensors)
        return cls(model, preprocess_config)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[Tokens]) -> Vectors:
        """Return float32 [B, D], one row per text, not normalized.

        Raises EmbeddingError if a value is not finite.
        """
        packing = Packing([text.eot_index + 1 for text in texts], self.device)
        ids = np.concatenate([text.ids[: text.eot_index + 1] for text in texts])
        features = self._model.encode_text(torch.from_numpy(ids).to(self.device), packing)
        return _finish(features)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Pixels]) -> Vectors:
        """Return float32 [B, D], one row per image, not normalized.

        Raises EmbeddingError if a value is not finite.
        """
        batch = torch.from_numpy(np.stack([image.array for image in images]))
        return _finish(self._model.encode_image(self.normalize_pixels(batch)))

    def normalize_pixels(self, batch: Tensor) -> Tensor:
        """Normalize pixels with the model's mean and standard deviation.

        batch: uint8 [B, S, S, 3] on the host. Returns [B, 3, S, S] on the device, in the model's
        dtype. Computed in float32 and in torchvision's order (divide by 255, subtract, divide), so
        that on a CPU the values equal those of its transforms bit for bit.
        """
        # Bytes are copied to the device: a quarter of the size of float32.
        pixels = batch.to(self.device).permute(0, 3, 1, 2).contiguous()
        values = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return values.to(self.dtype)

    def warm_up(self) -> None:
        """Run known inputs, so that the first prediction is as fast as any other: this starts
        thread pools, and loads kernels and memory.

        Their vectors are kept for `is_healthy`.
        """
        self._known = self._embed_known()

    def is_healthy(self) -> bool:
        """Return whether the known inputs still give the vectors of `warm_up`, which comes first.

        Detects a device that computes garbage, and overwritten weights, though not every wrong bit:
        a cosine similarity below 0.9999 is more than rounding explains.
        """
        try:
            pairs = zip(self._known, self._embed_known(), strict=True)
            return all(_cosine(old, new) > 0.9999 for old, new in pairs)
        except EmbeddingError:
            return False

    @torch.inference_mode()
    def _embed_known(self) -> tuple[Vectors, Vectors]:
        """Return vectors [1, D] of a text, and of an image after one block of the image tower.

        One block is enough to warm up, because all are alike; on a CPU the other 23 would take most
        of a second. The text tower, a twentieth of the work, runs completely.
        """
        size = self.config.image_size
        ramp = (torch.arange(size) % 256).to(torch.uint8).view(1, size, 1, 1)
        pixels = self.normalize_pixels(ramp.expand(1, size, size, 3))
        ids = np.arange(16, dtype=np.int64) % self.config.vocab_size
        tokens = Tokens(ids, eot_index=15, truncated=False)
        image = _finish(self._model.encode_image(pixels, depth=1))
        return self.embed_texts([tokens]), image


def _cosine(a: Vectors, b: Vectors) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def _finish(features: Tensor) -> Vectors:
    """Copy to the host as float32. Raises EmbeddingError if a value is not finite."""
    vectors: Vectors = features.float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise EmbeddingError(
            "the network returned a value that is not finite; this should not happen with"
            " verified weights: restart the service and report the input"
        )
    return vectors
