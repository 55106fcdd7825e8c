"""Fixtures of tests that need an emulator or a Cog server; each is started once per session."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clip_embed.checkpoint import fetch
from scripts.lib.cog_server import CogServer
from scripts.lib.gcs_emulator import gcs_emulator
from tests.helpers.published_model import EmulatorBucket, write_model

Webhooks = queue.Queue[dict[str, Any]]


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """Run a Cloud Storage emulator with an empty bucket `models`; return its URL."""
    with gcs_emulator("models") as url:
        yield url


@pytest.fixture(scope="session")
def server(emulator: str, tiny_model: Path) -> Iterator[CogServer]:
    """Run the real Cog server with weights from the emulator's gs://models/tiny."""
    location = EmulatorBucket(emulator).put_model(tiny_model, "tiny")
    environment = {
        "CLIP_WEIGHTS": location,
        "STORAGE_EMULATOR_HOST": emulator,
        "CLIP_IMAGE_URLS": "any",  # the web servers of tests are on loopback
    }
    with CogServer(environment) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="session")
def web_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the model of `write_model` at bucket/clip."""
    root = tmp_path_factory.mktemp("web")
    (root / "bucket" / "clip").mkdir(parents=True)
    write_model(root / "bucket" / "clip")
    return root


@pytest.fixture(scope="session")
def model(web_root: Path) -> Path:
    """Return the directory of the model in `web_root`."""
    return web_root / "bucket" / "clip"


@pytest.fixture
def no_cloud_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide this machine's credentials and emulators."""
    for name in list(os.environ):
        if name.startswith("GOOGLE_") or name == "STORAGE_EMULATOR_HOST":
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture
def limit_attempts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that limits the attempts of every request for a published object."""

    def limit(attempts: int) -> None:
        for name in ("RETRY", "BUSY_RETRY"):
            policy = dataclasses.replace(getattr(fetch, name), attempts=attempts)
            monkeypatch.setattr(fetch, name, policy)

    return limit


@pytest.fixture
def bucket(
    no_cloud_environment: None, emulator: str, monkeypatch: pytest.MonkeyPatch
) -> EmulatorBucket:
    """Return the emulator's bucket, with STORAGE_EMULATOR_HOST set."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    return EmulatorBucket(emulator)


@pytest.fixture
def webhooks() -> Iterator[tuple[str, Webhooks]]:
    """Return a webhook URL and a queue of the bodies sent to it."""
    received: Webhooks = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/hook", received
        running.shutdown()
