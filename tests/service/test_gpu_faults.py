"""A GPU fails under the real server. The faults are injected: there is no GPU here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clip_embed.service import HEALTH_CHECK_SECONDS
from scripts.lib.cog_server import CogServer
from tests.helpers import failing_gpu_predict
from tests.helpers.paths import ROOT

PREDICTOR = f"{ROOT / 'tests' / 'helpers' / 'failing_gpu_predict.py'}:Predictor"


@pytest.fixture
def server(tiny_model: Path, tmp_path: Path) -> Iterator[CogServer]:
    environment = {"CLIP_WEIGHTS": str(tiny_model)}
    with (
        open(tmp_path / "log", "w") as log,
        CogServer(environment, predictor=PREDICTOR, log=log) as server,
    ):
        server.wait_ready()
        yield server


def test_batches_that_do_not_fit_into_memory_succeed(server: CogServer, tmp_path: Path) -> None:
    texts = [f"caption number {number}" for number in range(24)]
    with ThreadPoolExecutor(len(texts)) as threads:
        responses = list(threads.map(lambda text: server.predict(text=text), texts))
    assert [response["status"] for response in responses] == ["succeeded"] * len(texts)
    alone = server.predict(text=texts[-1])["output"]
    np.testing.assert_allclose(responses[-1]["output"], alone, atol=2e-5)
    assert server.health()["status"] == "READY"
    assert "out of GPU memory: a batch of" in (tmp_path / "log").read_text()


def test_lost_gpu_is_reported_by_predictions_and_by_the_health_check(server: CogServer) -> None:
    """Every later prediction fails at once, and an orchestrator restarts the service."""
    assert server.predict(text="a caption")["status"] == "succeeded"
    for text in ("word " * 100, "a caption"):
        response = server.predict(text=text)
        assert response["status"] == "failed"
        assert failing_gpu_predict.ERROR in response["error"]
        assert "restart the service" in response["error"]
    time.sleep(HEALTH_CHECK_SECONDS)  # so long a result is cached
    health = server.health()
    assert health["status"] == "UNHEALTHY"
    assert failing_gpu_predict.ERROR in health["user_healthcheck_error"]
