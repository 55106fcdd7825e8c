"""Prepared inputs become vectors. Owns the network and its warm-up.

Knows nothing of files, of Cog, or of who is waiting for the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_embed.config import read_config
from clip_embed.errors import EmbeddingError
from clip_embed.image import Pixels, Preprocessing
from clip_embed.model import Clip, Packing
from clip_embed.text import Tokens

Vectors = npt.NDArray[np.float32]


class Embedder:
    """The network on its device, with what its inputs need.

    Not meant for concurrent calls: one caller at a time owns the device (`batching.py`).
    """

    def __init__(self, model: Clip, preprocessing: Preprocessing) -> None:
        self.config = model.config
        self.preprocessing = preprocessing
        self._model = model.eval()
        parameter = next(model.parameters())
        self.device = parameter.device
        self.dtype = parameter.dtype
        self._mean = torch.tensor(preprocessing.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=self.device).view(3, 1, 1)

    @classmethod
    def build(cls, open_clip_config: bytes, tensors: Mapping[str, Tensor]) -> Embedder:
        """The network that `open_clip_config.json` describes, around `tensors`.

        The tensors are adopted, not copied. Raises ModelError if the two do not fit.
        """
        config, preprocessing = read_config(open_clip_config)
        model = Clip(config)
        model.load(tensors)
        return cls(model, preprocessing)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[Tokens]) -> Vectors:
        """float32 [B, D], one row per text, not normalised.

        Raises EmbeddingError if a value is not finite.
        """
        packing = Packing([text.end + 1 for text in texts], self.device)
        ids = np.concatenate([text.ids[: text.end + 1] for text in texts])
        features = self._model.encode_text(torch.from_numpy(ids).to(self.device), packing)
        return _finish(features)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Pixels]) -> Vectors:
        """float32 [B, D], one row per image, not normalised.

        Raises EmbeddingError if a value is not finite.
        """
        batch = torch.from_numpy(np.stack([image.array for image in images]))
        return _finish(self._model.encode_image(self.normalise(batch)))

    def normalise(self, batch: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] on the host → [B, 3, S, S] on the device, in the model's dtype.

        In float32, and in torchvision's order of operations (divide by 255, subtract, divide), so
        that on a CPU the values equal those of its transforms bit for bit.
        """
        # The bytes cross to the device as they are: a quarter of what float32 would be.
        pixels = batch.to(self.device).permute(0, 3, 1, 2).contiguous()
        values = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return values.to(self.dtype)

    def warm_up(self) -> None:
        """Make the first prediction an ordinary one: thread pools, kernels, the allocator.

        What the network says of the known inputs is remembered for `is_healthy`.
        """
        self._known = self._embed_known()

    def is_healthy(self) -> bool:
        """Whether the network says of the known inputs what it said when it was warmed up.

        A device that computes nonsense and weights that were overwritten are seen, though not every
        wrong bit: cosine similarity below 0.9999 is more than rounding explains. Call `warm_up`
        before.
        """
        try:
            pairs = zip(self._known, self._embed_known(), strict=True)
            return all(_cosine(then, now) > 0.9999 for then, now in pairs)
        except EmbeddingError:
            return False

    @torch.inference_mode()
    def _embed_known(self) -> tuple[Vectors, Vectors]:
        """Vectors [1, D] of a text, and of an image as one block of the tower sees it.

        One block is enough to warm up, because all are alike; on a CPU the other 23 would cost most
        of a second. The text tower, a twentieth of the work, runs whole.
        """
        size = self.config.image_size
        ramp = (torch.arange(size) % 256).to(torch.uint8).view(1, size, 1, 1)
        pixels = self.normalise(ramp.expand(1, size, size, 3))
        ids = np.arange(16, dtype=np.int64) % self.config.vocab_size
        tokens = Tokens(ids, end=15, truncated=False)
        image = _finish(self._model.encode_image(pixels, depth=1))
        return self.embed_texts([tokens]), image


def _cosine(a: Vectors, b: Vectors) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def _finish(features: Tensor) -> Vectors:
    """Back to the host as float32, checked."""
    vectors: Vectors = features.float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise EmbeddingError(
            "the network returned a value that is not finite; this should not happen with"
            " verified weights: restart the service and report the input"
        )
    return vectors
