"""Prometheus metrics: what is counted, and that nothing is unless it is asked for."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import weights
from clip_embed.errors import DownloadError, SettingError, TextError
from clip_embed.metrics import Observer, PrometheusMetrics, make_observer
from clip_embed.service import Service
from clip_embed.settings import Settings
from clip_embed.startup.timing import StageTimer
from scripts.lib.cog_server import free_port
from scripts.lib.hostile_web_server import HostileWebServer
from tests.helpers.paths import PHOTOS

SETTINGS = Settings(device="cpu", metrics_port=free_port(), image_urls="any")


def scrape(port: int) -> dict[str, float]:
    """Return the samples at `port`: name with labels → value."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


@pytest.fixture(scope="module")
def service(tiny_model: Path) -> Iterator[Service]:
    with weights.pull(str(tiny_model)) as pull:
        yield Service.load(pull, SETTINGS, StageTimer())


def test_predictions_are_counted(service: Service) -> None:
    """By kind and outcome, with the seconds of each stage and the sizes of batches."""

    async def predict() -> None:
        await asyncio.gather(*(service.embed_text(f"{n} cats") for n in range(3)))
        await service.embed_image(PHOTOS[0])
        with pytest.raises(TextError):
            await service.embed_text("  ")
        with HostileWebServer() as web:
            await service.embed_image(f"{web.url}/picture.png")
            with pytest.raises(DownloadError):
                await service.embed_image(f"{web.url}/status-404")
            slow = asyncio.create_task(service.embed_image(f"{web.url}/trickle"))
            await asyncio.sleep(0.2)
            assert scrape(SETTINGS.metrics_port or 0)["clip_embed_downloads_in_progress"] == 1
            slow.cancel()
            await asyncio.wait([slow])

    asyncio.run(predict())
    samples = scrape(SETTINGS.metrics_port or 0)
    predictions = 'clip_embed_predictions_total{kind="%s",outcome="%s"}'
    assert samples[predictions % ("text", "succeeded")] == 3
    assert samples[predictions % ("text", "refused")] == 1
    assert samples[predictions % ("image", "succeeded")] == 2
    assert samples[predictions % ("image", "refused")] == 1
    assert samples[predictions % ("image", "canceled")] == 1
    stage = 'clip_embed_stage_seconds_count{kind="%s",stage="%s"}'
    assert samples[stage % ("text", "encode")] == 3
    assert samples[stage % ("image", "download")] == 1
    assert samples[stage % ("image", "prepare")] == 2
    assert samples['clip_embed_batch_size_sum{kind="text"}'] == 3
    assert samples['clip_embed_image_download_failures_total{reason="http_status"}'] == 1
    assert samples["clip_embed_downloads_in_progress"] == samples["clip_embed_queue_depth"] == 0


def test_start_is_measured(service: Service) -> None:
    samples = scrape(SETTINGS.metrics_port or 0)
    for stage in ("import torch", "load", "warm up"):
        assert samples[f'clip_embed_setup_seconds{{stage="{stage}"}}'] > 0
    assert samples["clip_embed_pulled_bytes"] > 1_000_000
    assert samples["clip_embed_pull_seconds"] > 0


def test_fault_is_counted_as_failed() -> None:
    metrics = PrometheusMetrics(port := free_port())
    with pytest.raises(RuntimeError), metrics.prediction("image"):
        raise RuntimeError("a fault")
    assert scrape(port)['clip_embed_predictions_total{kind="image",outcome="failed"}'] == 1


def test_port_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=rf"^CLIP_METRICS_PORT is {port}, which cannot be"):
            PrometheusMetrics(port)


def test_nothing_is_imported_or_wrapped_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    observer = make_observer(None)
    assert type(observer) is Observer
    assert observer.batches("text", list) is list
    assert dataclasses.replace(Settings()).metrics_port is None
