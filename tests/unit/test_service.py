"""A model is loaded, and texts and images are embedded with it, without Cog."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import weights
from clip_embed import service as service_module
from clip_embed.errors import ImageError, SettingError, TextError, WeightsError
from clip_embed.model import cuda_kernels
from clip_embed.service import LoadedModel, Service, load_embedder
from clip_embed.settings import Settings
from clip_embed.startup.timing import StageTimer


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    with weights.pull(str(tiny_model)) as pull:
        return load_embedder(pull, "cpu")


@pytest.fixture
def service(model: LoadedModel) -> Iterator[Service]:
    return Service(model, Settings())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "ramp.png"
    Image.linear_gradient("L").convert("RGB").resize((300, 200)).save(path)
    return path


def test_load_embedder_returns_a_network_and_its_tokenizer(model: LoadedModel) -> None:
    tokens = model.tokenizer.tokenize("a red bicycle")
    [vector] = model.embedder.embed_texts([tokens])
    assert vector.shape == (768,)
    assert vector.dtype == np.float32


def test_load_embedder_reports_a_failed_pull(tmp_path: Path) -> None:
    with (
        weights.pull(str(tmp_path)) as pull,
        pytest.raises(WeightsError, match=r"holds no manifest\.json"),
    ):
        load_embedder(pull, "cpu")


def test_load_embedder_hands_over_the_kernel(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = object()
    monkeypatch.setattr(cuda_kernels, "compile_add_layer_norm", lambda config, device: kernel)
    with weights.pull(str(tiny_model)) as pull:
        assert load_embedder(pull, "cpu").embedder._add_layer_norm is kernel


def test_load_embedder_rejects_a_missing_device(tiny_model: Path) -> None:
    with weights.pull(str(tiny_model)) as pull, pytest.raises(SettingError, match="'tpu'"):
        load_embedder(pull, "tpu")


def test_load_logs_what_is_ready(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line: model, source, size, device, precision, seconds of each stage, and the download."""
    timer = StageTimer()
    with caplog.at_level(logging.INFO, "clip_embed"), weights.pull(str(tiny_model)) as pull:
        Service.load(pull, Settings(device="cpu"), timer)
    [line] = [m for m in caplog.messages if m.startswith("ready: ")]
    assert line.startswith("ready: tiny (random:1), 768 floats, cpu, float32; setup ")
    assert list(timer.stages) == ["import torch", "load", "warm up"]
    assert line.endswith(" MB from cache)")


def test_text_embedding_has_a_vector_and_metrics(service: Service) -> None:
    embedding = asyncio.run(service.embed_text("a red bicycle"))
    assert embedding.vector.shape == (768,)
    metrics = embedding.metrics
    assert (metrics["tokens"], metrics["truncated"]) == (5, False)
    assert list(metrics)[2:] == ["prepare_ms", "queue_ms", "encode_ms"]


def test_image_embedding_has_a_vector_and_metrics(service: Service, image: Path) -> None:
    embedding = asyncio.run(service.embed_image(image))
    assert embedding.vector.shape == (768,)
    metrics = embedding.metrics
    assert (metrics["image_width"], metrics["image_height"]) == (300, 200)
    assert list(metrics)[2:] == ["prepare_ms", "queue_ms", "encode_ms"]


@pytest.mark.parametrize("value", [5, ["a cat"], {"a": "cat"}])
def test_input_that_is_no_string_is_an_error(value: Any, service: Service) -> None:
    """Without a schema, Cog lets it through."""
    kind = type(value).__name__
    with pytest.raises(TextError, match=f"text is of type {kind}; send a string"):
        asyncio.run(service.embed_text(value))
    with pytest.raises(ImageError, match=f"image is of type {kind}; send a string"):
        asyncio.run(service.embed_image(value))


def test_truncated_text_is_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "clip_embed"):
        embedding = asyncio.run(service.embed_text("bicycle " * 1000))
    assert embedding.metrics["truncated"]
    assert "text is cut: CLIP reads its first 75 tokens" in caplog.messages


def test_bad_input_raises_and_the_service_goes_on(service: Service, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(TextError):
        asyncio.run(service.embed_text(" \n"))
    with pytest.raises(ImageError, match=r"page\.jpg is an HTML page"):
        asyncio.run(service.embed_image(tmp_path / "page.jpg"))
    with pytest.raises(ImageError, match="image is not a URL; send an http"):
        asyncio.run(service.embed_image("/etc/passwd"))
    with pytest.raises(ImageError, match=r"^image starts with 's3:'; send an http") as caught:
        asyncio.run(service.embed_image("s3://KEY:SECRET@bucket/x.png?Signature=SECRET"))
    assert "SECRET" not in str(caught.value)
    assert asyncio.run(service.embed_text("a red bicycle")).vector.shape == (768,)


def test_settings_reach_the_preprocessing(model: LoadedModel, image: Path) -> None:
    small = Service(model, Settings(max_image_pixels=59_999))
    with pytest.raises(ImageError, match="60,000 pixels; the limit is 59,999"):
        asyncio.run(small.embed_image(image))
    exact = Service(model, Settings(max_image_pixels=60_000))
    assert asyncio.run(exact.embed_image(image)).vector.shape == (768,)


def test_concurrent_requests_get_their_own_vectors(service: Service) -> None:
    texts = [f"text number {number}" for number in range(20)]

    async def embed_all() -> list[np.ndarray]:
        return [e.vector for e in await asyncio.gather(*map(service.embed_text, texts))]

    together = asyncio.run(embed_all())
    for text, vector in zip(texts, together, strict=True):
        alone = asyncio.run(service.embed_text(text)).vector
        np.testing.assert_allclose(vector, alone, atol=2e-5)


def test_long_text_is_tokenized_in_a_thread(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long text takes tenths of a second, during which the event loop stays free. A short text is
    tokenized faster than a thread can be used."""
    tokenize, threads = service._tokenizer.tokenize, []

    def watched(text: str) -> Any:
        threads.append(threading.current_thread())
        return tokenize(text)

    monkeypatch.setattr(service._tokenizer, "tokenize", watched)
    for text in ("a bicycle", "a bicycle " * service_module.SHORT_TEXT):
        asyncio.run(service.embed_text(text))
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


def test_health_check_result_is_cached(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setup counts as a check; no other runs until its result, good or bad, has expired."""
    checks = [False, True]
    monkeypatch.setattr(service._embedder, "is_healthy", lambda: checks.pop(0))
    results = []
    for seconds in (60, -1, 60, -1):
        monkeypatch.setattr(service_module, "HEALTH_CHECK_SECONDS", seconds)
        results.append(asyncio.run(service.is_healthy()))
    assert results == [True, False, False, True]
