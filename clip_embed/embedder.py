"""Embed preprocessed inputs. Owns the network, its warm-up, its self-test and its failures.

Independent of files, Cog and requests.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_embed.errors import DeviceError, DeviceLostError, EmbeddingError
from clip_embed.inputs.preprocess import Pixels, PreprocessConfig
from clip_embed.inputs.tokenizer import Tokens
from clip_embed.model.clip import AddLayerNorm, Clip, Packing
from clip_embed.model.config import read_config
from clip_embed.model.cuda_graphs import ClipGraphs

log = logging.getLogger("clip_embed.embedder")

MIN_COSINE = 0.9999
"""Cosine similarity of two vectors of one input, below which rounding does not explain the
difference."""

Input = TypeVar("Input")
Vectors = npt.NDArray[np.float32]


class Embedder:
    """Run the network on its device. Not thread-safe: one caller at a time (`batching.py`).

    use_graphs: replay the CUDA graphs that `warm_up` captured. Otherwise the plain network runs:
    the same vectors except for rounding, several times slower for small batches.
    """

    def __init__(
        self,
        model: Clip,
        preprocess_config: PreprocessConfig,
        add_layer_norm: AddLayerNorm | None = None,
    ) -> None:
        self.config = model.config
        self.preprocess_config = preprocess_config
        self._model = model.eval()
        # For the whole process. cuDNN's attention plans each new shape of a batch for 50 to 100 ms,
        # the first for a second (torch 2.11, H100): see `warm_up`.
        torch.backends.cuda.enable_cudnn_sdp(False)
        parameter = next(model.parameters())
        self.device = parameter.device
        self.dtype = parameter.dtype
        self.use_graphs = True
        self._add_layer_norm = add_layer_norm
        self._graphs: ClipGraphs | None = None
        self._lost: str | None = None
        self._known: tuple[Vectors, Vectors] | None = None
        self._mean = torch.tensor(preprocess_config.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(preprocess_config.std, device=self.device).view(3, 1, 1)

    @classmethod
    def build(
        cls,
        open_clip_config: bytes,
        tensors: Mapping[str, Tensor],
        add_layer_norm: AddLayerNorm | None = None,
    ) -> Embedder:
        """Build the network that `open_clip_config.json` describes, with `tensors` as its weights.

        The tensors are not copied. add_layer_norm: a kernel for CUDA graphs.

        Raises ModelError if the tensors do not fit.
        """
        config, preprocess_config = read_config(open_clip_config)
        model = Clip(config)
        model.load(tensors)
        return cls(model, preprocess_config, add_layer_norm)

    def embed_texts(self, texts: Sequence[Tokens]) -> Vectors:
        """Return float32 [B, D], one row per text, not normalized.

        Raises EmbeddingError if a value is not finite, DeviceError if the GPU fails.
        """
        return self._embed(self._encode_texts, texts)

    def embed_images(self, images: Sequence[Pixels]) -> Vectors:
        """Return float32 [B, D], one row per image, not normalized.

        Raises EmbeddingError if a value is not finite, DeviceError if the GPU fails.
        """
        return self._embed(self._encode_images, images)

    @torch.inference_mode()
    def _embed(
        self, encode: Callable[[Sequence[Input]], Vectors], inputs: Sequence[Input]
    ) -> Vectors:
        """Return `encode(inputs)`, in two halves if the GPU has no memory for all at once."""
        if self._lost:
            raise DeviceLostError(self._lost)
        try:
            return _check_finite(encode(inputs))
        except RuntimeError as error:
            self._raise_if_lost(error)
            if not _is_out_of_memory(error):
                raise
            if len(inputs) == 1:
                raise DeviceError(
                    "the GPU has no memory left for a single input; another process may hold it:"
                    " try again, or see `nvidia-smi`"
                ) from error
        # Outside of `except`: the error keeps the tensors of its stack alive.
        torch.cuda.empty_cache()
        half = len(inputs) // 2
        log.warning("out of GPU memory: a batch of %d is embedded in halves", len(inputs))
        return np.concatenate(
            [self._embed(encode, inputs[:half]), self._embed(encode, inputs[half:])]
        )

    def _raise_if_lost(self, error: RuntimeError) -> None:
        """Raise DeviceLostError, now and in every later call, if the GPU no longer works.

        After an illegal memory access or a hardware error, CUDA refuses every call until the
        process ends.
        """
        if message := _error_of_lost_device(self.device):
            self._lost = (
                f"the GPU has failed ({message}), and this process cannot use it again: restart the"
                " service; if it fails again, check the GPU with `nvidia-smi` and `dmesg`"
            )
            log.error("%s", self._lost)
            raise DeviceLostError(self._lost) from error

    def _encode_texts(self, texts: Sequence[Tokens]) -> Vectors:
        ids = [text.ids[: text.eot_index + 1] for text in texts]
        if self._graphs and self.use_graphs:
            return self._graphs.encode_texts(ids)
        packing = Packing([len(each) for each in ids], self.device)
        packed = torch.from_numpy(np.concatenate(ids)).to(self.device)
        return _to_host(self._model.encode_text(packed, packing))

    def _encode_images(self, images: Sequence[Pixels]) -> Vectors:
        arrays = [image.array for image in images]
        if self._graphs and self.use_graphs:
            return self._graphs.encode_images(arrays)
        batch = torch.from_numpy(np.stack(arrays))
        return _to_host(self._model.encode_image(self.normalize_pixels(batch)))

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

    @torch.inference_mode()
    def warm_up(self, for_catalogs: bool = False) -> None:
        """Run known inputs, so that the first prediction does not pay for thread pools, kernels and
        memory allocation. On a GPU, capture CUDA graphs first.

        for_catalogs: on a GPU, use larger graphs and cuDNN's attention for images. This takes two
        seconds longer, and then batches of 64 images or more are 12 to 15% faster (H100).

        The vectors of the known inputs are kept for `is_healthy`.
        """
        if self.device.type == "cuda":
            self._capture_graphs(for_catalogs)
        self._known = self._embed_known()

    def is_healthy(self) -> bool:
        """Return whether the known inputs still give the vectors of `warm_up`. Call that first.

        Detects a device that computes garbage, and overwritten weights, though not every wrong bit.
        Raises DeviceLostError if the GPU has failed.
        """
        try:
            assert self._known is not None
            pairs = zip(self._known, self._embed_known(), strict=True)
            return all(_cosine(old, new) > MIN_COSINE for old, new in pairs)
        except DeviceLostError:
            raise
        except EmbeddingError:
            return False

    def _capture_graphs(self, for_catalogs: bool = False) -> None:
        try:
            started = time.perf_counter()
            self._graphs = ClipGraphs(
                self._model, self.normalize_pixels, self._add_layer_norm, for_catalogs
            )
            log.info("CUDA graphs captured in %.2f s", time.perf_counter() - started)
        except RuntimeError as error:
            self._raise_if_lost(error)
            first_line, _, _ = str(error).partition("\n")
            log.warning("no CUDA graphs, so small batches are slower: %s", first_line)
        if self._graphs is None:
            # Release the graphs that were captured before the error, which refer to one another.
            gc.collect()
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _embed_known(self) -> tuple[Vectors, Vectors]:
        """Return vectors [1, D] of a text, and of an image.

        On a CPU the image passes only two blocks of the image tower: the first is like all that
        follow, and the last is shorter. The other 22 would take most of a second. The text tower, a
        twentieth of the work, runs completely.
        """
        size = self.config.image_size
        ramp = (np.arange(size) % 256).astype(np.uint8).reshape(size, 1, 1)
        image = Pixels(np.ascontiguousarray(np.broadcast_to(ramp, (size, size, 3))), size, size)
        ids = np.arange(16, dtype=np.int64) % self.config.vocab_size
        text = Tokens(ids, eot_index=15, truncated=False)
        if self.device.type == "cuda":
            return self.embed_texts([text]), self.embed_images([image])
        pixels = self.normalize_pixels(torch.from_numpy(image.array[np.newaxis]))
        features = _to_host(self._model.encode_image(pixels, depth=2))
        return self.embed_texts([text]), _check_finite(features)


def _cosine(a: Vectors, b: Vectors) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether GPU memory is missing: torch, CUDA and cuBLAS say so in different ways."""
    message = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "CUDA error: out of memory" in message
        or "STATUS_ALLOC_FAILED" in message
    )


def _error_of_lost_device(device: torch.device) -> str | None:
    """Return the error with which CUDA refuses every call, None if the device still works."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def _to_host(features: Tensor) -> Vectors:
    vectors: Vectors = features.float().cpu().numpy()
    return vectors


def _check_finite(vectors: Vectors) -> Vectors:
    """Return `vectors`. Raises EmbeddingError if a value is not finite."""
    if not np.isfinite(vectors).all():
        raise EmbeddingError(
            "the network returned a value that is not finite; this should not happen with"
            " verified weights: restart the service and report the input"
        )
    return vectors
