"""Fixtures of the tests of `weights.pull`: a web server with a published model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_embed.checkpoint import download_queue, fetch
from tests.helpers.published_model import FIRST, MANIFEST, manifest_of
from tests.helpers.range_server import RangeServer


@pytest.fixture(autouse=True)
def _no_cloud_environment(no_cloud_environment: None) -> None:
    """Hide this machine's credentials and emulators from every test here."""


@pytest.fixture(autouse=True)
def _no_hedged_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make no hedged request on a busy machine: these tests count requests. test_faults.py tests
    hedged requests."""
    monkeypatch.setattr(download_queue, "HEDGE_MIN_SECONDS", 60.0)
    monkeypatch.setattr(download_queue, "HEDGE_DEFAULT_SECONDS", 60.0)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after a tenth of the usual pauses: these tests wait for hundreds of retries."""
    for name in ("RETRY", "BUSY_RETRY"):
        policy = getattr(fetch, name)
        shorter = fetch.RetryPolicy(policy.attempts, policy.first_pause / 10, policy.max_pause / 10)
        monkeypatch.setattr(fetch, name, shorter)


@pytest.fixture
def web_server(web_root: Path) -> Iterator[RangeServer]:
    """Run a web server with the model at bucket/clip."""
    with RangeServer(web_root) as running:
        yield running


@pytest.fixture
def url(web_server: RangeServer) -> str:
    """Return the location of the model on the web server."""
    return f"{web_server.url}/bucket/clip"


@pytest.fixture
def small_model(model: Path, tmp_path: Path) -> Path:
    """Return a copy of the model without its first shard, which the test may change."""
    copy = tmp_path / "clip"
    shutil.copytree(model, copy, ignore=shutil.ignore_patterns(FIRST))
    (copy / MANIFEST).write_bytes(manifest_of(copy, {}))
    return copy
