"""Replay forward passes on a GPU as CUDA graphs.

A forward pass is some 100 to 250 small kernels. Launched one by one from Python, those of a lone
text take six times as long as the GPU needs for them. A graph is captured once for each shape, and
replayed with one launch. Inputs are padded to the next larger shape.

Without this module, `Clip` gives the same vectors, more slowly.
Source: PyTorch documentation, "CUDA semantics", CUDA graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip_embed.model.batch_limits import (
    LARGEST_CATALOG_IMAGE_GRAPH,
    LARGEST_IMAGE_GRAPH,
    LARGEST_TEXT_GRAPH,
)
from clip_embed.model.clip import AddLayerNorm, Clip, Packing

IMAGE_BATCHES = (1, 2, 4, 8, LARGEST_IMAGE_GRAPH)
"""Images per graph. More images run as several graphs."""

CATALOG_IMAGE_BATCHES = (*IMAGE_BATCHES, 32, LARGEST_CATALOG_IMAGE_GRAPH)
"""Each new size costs cuDNN some 0.1 s of planning. Graphs of 128 images are not faster."""

TEXT_BATCHES = (1, 8, 16, 32, LARGEST_TEXT_GRAPH)
TEXT_LENGTHS = (16, 32)
"""Tokens of each text, besides the context length of the model."""

WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
WITH_CUDNN = [SDPBackend.CUDNN_ATTENTION, *WITHOUT_CUDNN]

Pixels = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Pool = Any
"""What torch.cuda.graph_pool_handle returns; torch does not name its type in public."""


class CudaGraph:
    """A captured function of tensors of fixed shapes. Use all graphs on one stream, one at a time.

    inputs: one NumPy array each, in page-locked memory, written by the caller before `replay`.
    output: the same, read by the caller after `wait`.
    """

    def __init__(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor], pool: Pool
    ) -> None:
        """Capture `function(*inputs)` and the copies from and to page-locked memory.

        inputs: on the GPU. pool: GPU memory that is shared with other graphs.
        """
        # The graph reads and writes this memory whenever it runs, so it must not be released. The
        # same holds for tensors that `function` refers to.
        self._function, self._inputs = function, inputs
        self._staged = [page_locked(*each.shape, dtype=each.dtype) for each in inputs]
        # Run once before the capture, which must not load kernels or allocate workspaces.
        self._result = page_locked(*function(*inputs).shape, dtype=torch.float32)
        self.inputs = [staged.numpy() for staged in self._staged]
        self.output = self._result.numpy()
        torch.cuda.current_stream().synchronize()
        self._finished = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            self._copy_and_compute()
        finally:
            self._graph.capture_end()

    def _copy_and_compute(self) -> None:
        for target, staged in zip(self._inputs, self._staged, strict=True):
            target.copy_(staged, non_blocking=True)
        self._result.copy_(self._function(*self._inputs), non_blocking=True)

    def replay(self) -> None:
        """Start to compute `output`. Returns at once; `inputs` must not change until `wait`."""
        self._graph.replay()
        self._finished.record()

    def wait(self) -> None:
        """Wait for the last replay."""
        self._finished.synchronize()


class ClipGraphs:
    """The graphs of both towers. Not thread-safe."""

    def __init__(
        self,
        model: Clip,
        normalize_pixels: Callable[[Tensor], Tensor],
        add_layer_norm: AddLayerNorm | None,
        for_catalogs: bool,
    ) -> None:
        """Capture all graphs.

        normalize_pixels: uint8 [B, S, S, 3] to the input of the image tower. add_layer_norm: a
        kernel for both towers. for_catalogs: see `Embedder.warm_up`.

        Raises RuntimeError if that fails, torch.OutOfMemoryError among others.
        """
        self._model = model
        self._normalize_pixels = normalize_pixels
        self._device = next(model.parameters()).device
        context_length = model.config.context_length
        self._lengths = [n for n in TEXT_LENGTHS if n < context_length] + [context_length]
        torch.cuda.synchronize(self._device)  # the weights come from another stream
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._image_batches = CATALOG_IMAGE_BATCHES if for_catalogs else IMAGE_BATCHES
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self._stream), model.fusing(add_layer_norm):
            # The largest first: smaller graphs reuse its memory in the pool.
            with sdpa_kernel(WITH_CUDNN if for_catalogs else WITHOUT_CUDNN, set_priority=True):
                self._images = {
                    batch: self._capture(batch, self._image_batches, self._image_graph, pool)
                    for batch in reversed(self._image_batches)
                }
            self._texts = {
                (batch, length): self._capture(batch, TEXT_BATCHES, self._text_graph, length, pool)
                for length in reversed(self._lengths)
                for batch in reversed(TEXT_BATCHES)
            }

    def encode_images(self, images: Sequence[Pixels]) -> Vectors:
        """Return the projected features of images [S, S, 3], float32 [B, D]."""

        def replay(rows: slice) -> CudaGraph:
            some = images[rows]
            graph = next(self._images[_smallest_that_holds(len(some), self._image_batches)])
            np.stack(some, out=graph.inputs[0][: len(some)])
            graph.replay()
            return graph

        return self._replay_in_turn(len(images), self._image_batches[-1], replay)

    def encode_texts(self, texts: Sequence[Ids]) -> Vectors:
        """Return the projected features of texts, float32 [B, D].

        texts: each up to its end-of-text token, at most context_length of them.
        """
        # Texts of similar lengths run together.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))

        def replay(rows: slice) -> CudaGraph:
            some = [texts[row] for row in order[rows]]
            length = _smallest_that_holds(len(some[-1]), self._lengths)
            graph = next(self._texts[_smallest_that_holds(len(some), TEXT_BATCHES), length])
            ids, ends = graph.inputs
            for row, text in enumerate(some):
                ids[row, : len(text)] = text
                # Any token, since attention is causal, but not one of an earlier text: if that
                # overflows, its values multiplied by zero are not zero.
                ids[row, len(text) :] = 0
                ends[row] = len(text) - 1
            graph.replay()
            return graph

        vectors = self._replay_in_turn(len(texts), TEXT_BATCHES[-1], replay)
        in_given_order = np.empty_like(vectors)
        in_given_order[order] = vectors
        return in_given_order

    def _replay_in_turn(
        self, count: int, most: int, replay: Callable[[slice], CudaGraph]
    ) -> Vectors:
        """Return the outputs of `replay` for `count` rows, at most `most` at a time.

        While one graph runs, the inputs of the next are written.
        """
        vectors = np.empty((count, self._model.config.embed_dim), np.float32)
        running: list[tuple[slice, CudaGraph]] = []
        with torch.cuda.stream(self._stream):
            for start in range(0, count, most):
                rows = slice(start, min(start + most, count))
                running.append((rows, replay(rows)))
                if len(running) == 2:
                    _collect(vectors, *running.pop(0))
            _collect(vectors, *running.pop())
        return vectors

    def _capture(
        self, batch: int, batches: Sequence[int], make: Callable[..., CudaGraph], *arguments: Any
    ) -> Iterator[CudaGraph]:
        """Return an endless iterator over the graphs of one shape: two for the largest batch, so
        that the inputs of one are written while the other runs."""
        copies = 2 if batch == batches[-1] else 1
        return itertools.cycle([make(batch, *arguments) for _ in range(copies)])

    def _image_graph(self, batch: int, pool: Pool) -> CudaGraph:
        size = self._model.config.image_size
        pixels = torch.zeros(batch, size, size, 3, dtype=torch.uint8, device=self._device)

        def encode(pixels: Tensor) -> Tensor:
            return self._model.encode_image(self._normalize_pixels(pixels)).float()

        return CudaGraph(encode, [pixels], pool)

    def _text_graph(self, batch: int, length: int, pool: Pool) -> CudaGraph:
        packing = Packing([length] * batch, self._device)
        ids = torch.zeros(batch, length, dtype=torch.int64, device=self._device)

        def encode(ids: Tensor, ends: Tensor) -> Tensor:
            return self._model.encode_text(ids.flatten(), packing).float()

        return CudaGraph(encode, [ids, packing.ends], pool)


def page_locked(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return zeros in host memory that the GPU reads and writes by itself."""
    return torch.zeros(shape, dtype=dtype, pin_memory=True)


def _smallest_that_holds(count: int, sizes: Sequence[int]) -> int:
    """Return the smallest of the ascending `sizes` that holds `count`."""
    return next(size for size in sizes if size >= count)


def _collect(vectors: Vectors, rows: slice, graph: CudaGraph) -> None:
    """Copy the output of a graph that was replayed for `rows`."""
    graph.wait()
    vectors[rows] = graph.output[: rows.stop - rows.start]
