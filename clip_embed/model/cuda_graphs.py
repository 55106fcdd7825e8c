"""Replay forward passes on a GPU as CUDA graphs.

A forward pass is some 100 to 250 small kernels. Launched one by one from Python, a lone text takes
six times as long as the GPU works on it. A graph is captured once for each shape, and replayed with
one launch. Inputs are padded to the next larger shape.

The same vectors come from `Clip` without this module, later.
Source: PyTorch documentation, "CUDA semantics", CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip_embed.model.clip import Clip, Packing

IMAGE_BATCHES = (1, 2, 4, 8, 16)
"""Images per graph. More images run as several graphs: with 16 a GPU is busy."""

TEXT_BATCHES = (1, 8, 16, 32, 64)
TEXT_LENGTHS = (16, 32, 77)
"""Tokens of each text; the context length of the model replaces the last one."""

WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

Pixels = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Pool = Any
"""What torch.cuda.graph_pool_handle returns; torch does not name its type in public."""


class CudaGraph:
    """A function of tensors of fixed shapes, captured. All graphs must use one stream."""

    def __init__(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor], pool: Pool
    ) -> None:
        """Capture `function(*inputs)`. pool: memory that is shared with other graphs."""
        self._inputs = inputs
        function(*inputs)  # loads kernels and allocates workspaces, which a capture must not do
        torch.cuda.current_stream().synchronize()
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            self._output = function(*inputs)
        finally:
            self._graph.capture_end()

    def replay(self, *values: Tensor) -> Tensor:
        """Return the output for `values`, which replace the first rows of each input.

        values: B rows each, in page-locked memory. The output, B rows, is overwritten by the next
        replay.
        """
        for target, value in zip(self._inputs, values, strict=True):
            target[: len(value)].copy_(value, non_blocking=True)
        self._graph.replay()
        return self._output[: len(values[0])]


class ClipGraphs:
    """The graphs of both towers. For one thread only, the one that captures them."""

    def __init__(self, model: Clip, normalize_pixels: Callable[[Tensor], Tensor]) -> None:
        """Capture all graphs. normalize_pixels: uint8 [B, S, S, 3] to the input of the image tower.

        Raises RuntimeError if that fails, torch.OutOfMemoryError among others.
        """
        self._model = model
        self._normalize_pixels = normalize_pixels
        self._device = model.logit_scale.device
        torch.cuda.synchronize(self._device)  # the weights come from another stream
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._images: dict[int, CudaGraph] = {}
        self._texts: dict[tuple[int, int], CudaGraph] = {}
        context_length = model.config.context_length
        self._lengths = [n for n in TEXT_LENGTHS if n < context_length] + [context_length]
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self._stream):
            # The largest first: the others find room in its memory.
            for batch in sorted(IMAGE_BATCHES, reverse=True):
                self._images[batch] = self._capture_image_graph(batch, pool)
            for length in sorted(self._lengths, reverse=True):
                for batch in sorted(TEXT_BATCHES, reverse=True):
                    self._texts[batch, length] = self._capture_text_graph(batch, length, pool)

    def encode_images(self, images: Sequence[Pixels]) -> Vectors:
        """Return the projected features of images [S, S, 3], float32 [B, D]."""
        vectors = self._page_locked(len(images), self._model.config.embed_dim)
        with torch.cuda.stream(self._stream):
            for rows in _split(len(images), IMAGE_BATCHES[-1]):
                some = images[rows]
                graph = self._images[_at_least(len(some), IMAGE_BATCHES)]
                # torch uses this memory again, but not before it has been copied.
                staged = self._page_locked(len(some), *some[0].shape, dtype=torch.uint8)
                np.stack(some, out=staged.numpy())
                vectors[rows].copy_(graph.replay(staged), non_blocking=True)
            self._stream.synchronize()
        return vectors.numpy().copy()

    def encode_texts(self, texts: Sequence[Ids]) -> Vectors:
        """Return the projected features of texts, float32 [B, D].

        texts: each up to its end-of-text token, at most context_length of them.
        """
        vectors = self._page_locked(len(texts), self._model.config.embed_dim)
        # Texts of similar lengths run together.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        with torch.cuda.stream(self._stream):
            for rows in _split(len(texts), TEXT_BATCHES[-1]):
                some = [texts[row] for row in order[rows]]
                length = _at_least(len(some[-1]), self._lengths)
                graph = self._texts[_at_least(len(some), TEXT_BATCHES), length]
                ids, ends = self._pad(some, length)
                vectors[rows].copy_(graph.replay(ids, ends), non_blocking=True)
            self._stream.synchronize()
        in_given_order = np.empty(vectors.shape, np.float32)
        in_given_order[order] = vectors.numpy()
        return in_given_order

    def _pad(self, texts: Sequence[Ids], length: int) -> tuple[Tensor, Tensor]:
        """Return ids [B, length] and the position of each end-of-text token [B]."""
        ids = self._page_locked(len(texts), length, dtype=torch.int64)
        ends = self._page_locked(len(texts), dtype=torch.int64)
        rows = ids.numpy()
        rows[:] = 0  # any token: attention is causal, and padding follows the text
        for row, text in zip(rows, texts, strict=True):
            row[: len(text)] = text
        ends.numpy()[:] = [len(text) - 1 for text in texts]
        return ids, ends

    def _capture_image_graph(self, batch: int, pool: Pool) -> CudaGraph:
        size = self._model.config.image_size
        pixels = torch.zeros(batch, size, size, 3, dtype=torch.uint8, device=self._device)

        def encode(pixels: Tensor) -> Tensor:
            return self._model.encode_image(self._normalize_pixels(pixels)).float()

        return CudaGraph(encode, [pixels], pool)

    def _capture_text_graph(self, batch: int, length: int, pool: Pool) -> CudaGraph:
        packing = Packing([length] * batch, self._device)
        ids = torch.zeros(batch, length, dtype=torch.int64, device=self._device)

        def encode(ids: Tensor, ends: Tensor) -> Tensor:
            return self._model.encode_text(ids.flatten(), packing).float()

        # cuDNN's attention takes 50 ms to plan each new shape, and is no faster for short texts.
        with sdpa_kernel(
            [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        ):
            return CudaGraph(encode, [ids, packing.ends], pool)

    def _page_locked(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)


def _at_least(count: int, sizes: Sequence[int]) -> int:
    """Return the smallest of the ascending `sizes` that holds `count`."""
    return next(size for size in sizes if size >= count)


def _split(count: int, most: int) -> Iterator[slice]:
    """Split `count` rows into parts of `most` rows and a rest."""
    return (slice(start, min(start + most, count)) for start in range(0, count, most))
