"""The network on its device: CUDA graphs, and what happens when a GPU fails.

There is no GPU here. Graphs are replaced by a fake with the properties that matter: it computes
late, and from all rows of inputs at fixed addresses. scripts/check_gpu.py checks the real ones.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import weights
from clip_embed import embedder as embedder_module
from clip_embed.embedder import Embedder
from clip_embed.errors import DeviceError, DeviceLostError
from clip_embed.inputs.preprocess import Pixels
from clip_embed.inputs.tokenizer import Tokens
from clip_embed.model import cuda_graphs
from clip_embed.service import load_embedder


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Embedder:
    with weights.pull(str(tiny_model)) as pull:
        return load_embedder(pull, "cpu").embedder


@pytest.fixture
def embedder(loaded: Embedder) -> Embedder:
    return Embedder(loaded._model, loaded.preprocess_config)


def make_texts(*lengths: int) -> list[Tokens]:
    """Return texts of these lengths, all different."""
    return [
        Tokens(np.arange(row, row + length, dtype=np.int64), length - 1, truncated=False)
        for row, length in enumerate(lengths)
    ]


def make_images(count: int, size: int) -> list[Pixels]:
    generator = np.random.default_rng(0)
    arrays = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return [Pixels(array, size, size) for array in arrays]


class FakeGraph:
    """Computes as late as CUDA may: when it is waited for, from all rows of its inputs."""

    replayed: ClassVar[list[int]] = []
    """Rows of each replay."""

    def __init__(
        self, function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], pool: object
    ) -> None:
        self._function, self._inputs = function, inputs
        self.inputs = [np.zeros(each.shape, each.numpy().dtype) for each in inputs]
        self.output = function(*inputs).numpy()
        self._running = False

    def replay(self) -> None:
        assert not self._running, "replayed again before its output was read"
        self._running = True
        self.replayed.append(len(self.output))

    def wait(self) -> None:
        assert self._running
        self._running = False
        for target, staged in zip(self._inputs, self.inputs, strict=True):
            target.copy_(torch.from_numpy(staged))
        self.output[:] = self._function(*self._inputs).numpy()


def replace_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `ClipGraphs` run on a CPU."""
    monkeypatch.setattr(cuda_graphs, "CudaGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_cuda(monkeypatch)


def limit_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be few graphs: all of them take a while on a CPU."""
    monkeypatch.setattr(cuda_graphs, "IMAGE_BATCHES", (1, 4))
    monkeypatch.setattr(cuda_graphs, "TEXT_BATCHES", (1, 4))


@pytest.fixture(scope="module")
def captured(loaded: Embedder) -> Embedder:
    embedder = Embedder(loaded._model, loaded.preprocess_config)
    with pytest.MonkeyPatch.context() as monkeypatch, torch.inference_mode():
        replace_cuda(monkeypatch)
        limit_batches(monkeypatch)
        embedder._capture_graphs()
    return embedder


@pytest.fixture
def with_graphs(captured: Embedder, monkeypatch: pytest.MonkeyPatch) -> Embedder:
    limit_batches(monkeypatch)
    captured.use_graphs = True
    FakeGraph.replayed.clear()
    return captured


@pytest.mark.parametrize(
    ("lengths", "replayed"),
    [
        pytest.param([5], [1], id="one"),
        pytest.param([77], [1], id="the longest"),
        pytest.param([16, 17, 32, 33], [4], id="several lengths"),
        pytest.param([70, 3, 40, 2, 16, 9] * 3, [4] * 5, id="more than a graph holds"),
    ],
)
def test_graphs_give_the_vectors_of_the_plain_network_for_texts(
    lengths: list[int], replayed: list[int], with_graphs: Embedder
) -> None:
    """In the given order, whatever is left in the graph's memory."""
    texts = make_texts(*lengths)
    with_graphs.embed_texts(make_texts(77, 77, 77, 77, 20, 20, 20, 20, 9, 9, 9, 9))
    FakeGraph.replayed.clear()
    vectors = with_graphs.embed_texts(texts)
    assert FakeGraph.replayed == replayed
    with_graphs.use_graphs = False
    np.testing.assert_allclose(vectors, with_graphs.embed_texts(texts), atol=1e-5)
    assert FakeGraph.replayed == replayed


@pytest.mark.parametrize(("count", "replayed"), [(1, [1]), (3, [4]), (4, [4]), (13, [4, 4, 4, 1])])
def test_graphs_give_the_vectors_of_the_plain_network_for_images(
    count: int, replayed: list[int], with_graphs: Embedder
) -> None:
    images = make_images(count, with_graphs.config.image_size)
    vectors = with_graphs.embed_images(images)
    assert FakeGraph.replayed == replayed
    with_graphs.use_graphs = False
    np.testing.assert_allclose(vectors, with_graphs.embed_images(images), atol=1e-5)


def test_catalogs_run_more_images_per_graph(
    embedder: Embedder, fake_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_batches(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "CATALOG_IMAGE_BATCHES", (1, 4, 8))
    images = make_images(10, embedder.config.image_size)
    expected = embedder.embed_images(images)
    with torch.inference_mode():
        embedder._capture_graphs(for_catalogs=True)
    FakeGraph.replayed.clear()
    np.testing.assert_allclose(embedder.embed_images(images), expected, atol=1e-5)
    assert FakeGraph.replayed == [8, 4]


def test_graphs_use_the_kernel(
    loaded: Embedder, fake_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_batches(monkeypatch)
    calls = 0

    def add_layer_norm(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        x, update, weight, bias = tensors
        return x + update, torch.nn.functional.layer_norm(x + update, weight.shape, weight, bias)

    embedder = Embedder(loaded._model, loaded.preprocess_config, add_layer_norm)
    with torch.inference_mode():
        embedder._capture_graphs()
    assert calls
    calls = 0
    embedder.use_graphs = False
    embedder.embed_texts(make_texts(5))
    assert not calls  # the plain network is the reference


def test_text_that_overflows_does_not_affect_a_later_one(with_graphs: Embedder) -> None:
    """Its tokens do not stay in the row: zero times infinity is not zero."""
    graph = next(with_graphs._graphs._texts[1, 16])  # type: ignore[union-attr]
    with_graphs.embed_texts(make_texts(12))
    with_graphs.embed_texts(make_texts(5))
    assert graph.inputs[0][0, 5:].tolist() == [0] * 11


def test_vectors_do_not_change_with_the_next_call(with_graphs: Embedder) -> None:
    """A graph's output is overwritten by its next replay."""
    first = with_graphs.embed_texts(make_texts(5))
    kept = first.copy()
    with_graphs.embed_texts(make_texts(7))
    assert (first == kept).all()


def test_graph_keeps_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels read the memory of every tensor that was used in the capture, without a reference
    to it."""
    monkeypatch.setattr(cuda_graphs, "page_locked", lambda *shape, dtype: torch.zeros(*shape))
    for name in ("current_stream", "Event", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())

    def make() -> tuple[cuda_graphs.CudaGraph, weakref.ref[torch.Tensor]]:
        constant = torch.ones(3)
        graph = cuda_graphs.CudaGraph(lambda x: x + constant, [torch.zeros(3)], (0, 0))
        return graph, weakref.ref(constant)

    graph, constant = make()
    assert constant() is not None
    assert graph.output.tolist() == [1, 1, 1]


def test_network_without_graphs_is_used_if_none_can_be_captured(
    embedder: Embedder,
    fake_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore advice")

    monkeypatch.setattr(cuda_graphs, "CudaGraph", fail)
    with torch.inference_mode():
        embedder._capture_graphs()
    assert embedder._graphs is None
    assert "no CUDA graphs, so small batches are slower: CUDA out of memory." in caplog.text
    assert "More advice" not in caplog.text
    assert embedder.embed_texts(make_texts(5)).shape == (1, 768)


@contextlib.contextmanager
def memory_for(
    embedder: Embedder,
    count: int,
    error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory"),  # noqa: B008
) -> Iterator[list[int]]:
    """Let the network of `embedder` run out of memory for more than `count` images."""
    encode, batches = embedder._encode_images, []

    def limited(images: Sequence[Pixels]) -> Any:
        if len(images) > count:
            raise error
        batches.append(len(images))
        return encode(images)

    embedder._encode_images = limited  # type: ignore[method-assign]
    yield batches
    embedder._encode_images = encode  # type: ignore[method-assign]


def test_batch_is_halved_until_it_fits(
    embedder: Embedder, fake_gpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    images = make_images(7, embedder.config.image_size)
    expected = embedder.embed_images(images)
    with memory_for(embedder, 2) as batches:
        np.testing.assert_allclose(embedder.embed_images(images), expected, atol=1e-5)
    assert batches == [1, 2, 2, 2]
    assert "out of GPU memory: a batch of 7 is embedded in halves" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_missing_memory_is_recognized_in_other_errors(
    error: RuntimeError, embedder: Embedder, fake_gpu: None
) -> None:
    images = make_images(3, embedder.config.image_size)
    with memory_for(embedder, 1, error) as batches:
        assert embedder.embed_images(images).shape == (3, 768)
    assert batches == [1, 1, 1]


def test_one_input_without_memory_is_an_error_and_the_next_succeeds(
    embedder: Embedder, fake_gpu: None
) -> None:
    [image] = make_images(1, embedder.config.image_size)
    with memory_for(embedder, 0), pytest.raises(DeviceError, match="no memory left"):
        embedder.embed_images([image])
    assert embedder.embed_images([image]).shape == (1, 768)


@pytest.fixture
def failing(
    embedder: Embedder, fake_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[bool], Embedder]]:
    """Return an embedder whose network fails once; `lost`: the GPU fails for ever."""

    def fail(lost: bool) -> Embedder:
        embedder.warm_up()
        encode = embedder._encode_texts

        def encode_texts(texts: Sequence[Tokens]) -> Any:
            embedder._encode_texts = encode  # type: ignore[method-assign]
            raise torch.AcceleratorError("CUDA error: an illegal memory access\nMore advice")

        def synchronize(device: object) -> None:
            if lost:
                raise torch.AcceleratorError("CUDA error: an illegal memory access\nMore advice")

        embedder._encode_texts = encode_texts  # type: ignore[method-assign]
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        monkeypatch.setattr(embedder, "device", torch.device("cuda"))
        return embedder

    return fail


def test_lost_gpu_fails_every_call_and_the_health_check(
    failing: Callable[[bool], Embedder], caplog: pytest.LogCaptureFixture
) -> None:
    """The message says what failed and what to do. It is logged once."""
    embedder = failing(True)
    message = (
        r"the GPU has failed \(CUDA error: an illegal memory access\), and this process cannot use"
        " it again: restart the service"
    )
    for call in (
        lambda: embedder.embed_texts(make_texts(5, 6)),
        lambda: embedder.embed_images(make_images(1, 56)),
        embedder.is_healthy,
    ):
        with pytest.raises(DeviceLostError, match=message):
            call()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_error_of_a_gpu_that_works_is_not_taken_for_a_lost_one(
    failing: Callable[[bool], Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = failing(False)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        embedder.embed_texts(make_texts(5))
    monkeypatch.setattr(embedder, "device", torch.device("cpu"))
    assert embedder.embed_texts(make_texts(5)).shape == (1, 768)
    assert embedder.is_healthy()


def test_cpu_is_never_reported_as_lost() -> None:
    assert embedder_module._error_of_lost_device(torch.device("cpu")) is None
