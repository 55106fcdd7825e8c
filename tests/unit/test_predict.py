"""Test predict.py without Cog's server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import predict


def test_setup_removes_the_thread_limit_of_cogs_server(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cog.yaml limits Cog's server to one thread; obstore, in the worker, may use every core."""
    monkeypatch.setenv("CLIP_WEIGHTS", str(tiny_model))
    monkeypatch.setenv("TOKIO_WORKER_THREADS", "1")
    predict.Predictor().setup()
    assert "TOKIO_WORKER_THREADS" not in os.environ
