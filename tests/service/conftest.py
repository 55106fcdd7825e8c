"""Fixtures of tests that need an emulator or a Cog server; each is started once per session."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clip_embed.checkpoint import fetch
from scripts.lib.cog_server import CogServer
from scripts.lib.gcs_emulator import gcs_emulator
from tests.helpers.published_model import EmulatorBucket, write_model


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """Run a Cloud Storage emulator with an empty bucket `models`; return its URL."""
    with gcs_emulator("models") as url:
        yield url


@pytest.fixture(scope="session")
def server(emulator: str, tiny_model: Path) -> Iterator[CogServer]:
    """Run the real Cog server with weights from the emulator's gs://models/tiny."""
    location = EmulatorBucket(emulator).put_model(tiny_model, "tiny")
    environment = {"CLIP_WEIGHTS": location, "STORAGE_EMULATOR_HOST": emulator}
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
