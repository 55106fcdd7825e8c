"""What several test files share: small published models, the emulator, the real Cog server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gcs_emulator import gcs_emulator
from local_server import CogServer

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "tiny.json"
PHOTOS = sorted((ROOT / "examples").glob("*.jpg"))


def publish(source: str, destination: str, model: str = str(TINY), **environment: str) -> str:
    """Run scripts/publish_weights.py as a user does; what it printed."""
    import os

    command = [sys.executable, str(ROOT / "scripts" / "publish_weights.py"), source, destination]
    done = subprocess.run(
        [*command, "--model", model],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random CLIP, published."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    publish("random:1", str(directory))
    return directory


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """The URL of a running Cloud Storage emulator with an empty bucket called `models`."""
    with gcs_emulator("models") as url:
        yield url


@pytest.fixture(scope="session")
def server(emulator: str) -> Iterator[CogServer]:
    """The real Cog server, its weights pulled from the emulator."""
    publish("random:1", "gs://models/tiny", STORAGE_EMULATOR_HOST=emulator)
    environment = {"CLIP_WEIGHTS": "gs://models/tiny", "STORAGE_EMULATOR_HOST": emulator}
    with CogServer(environment) as running:
        running.wait_ready()
        yield running


FAULTS: list[tuple[str, str, str, float]] = []
"""Fault, kind of place, outcome and seconds, as tests/test_faults.py found them."""

INPUTS: list[tuple[str, str, int, int, int, float]] = []
"""Where, kind of input, how many, vectors, errors, seconds, as tests/test_inputs.py found them."""

TABLES: dict[str, tuple[list[Any], str]] = {
    "faults: place, fault, outcome, seconds": (FAULTS, "{1:5} {0:38} {3:6.2f} s  {2}"),
    "inputs: where, kind, how many, vectors, errors, seconds": (
        INPUTS,
        "{0:7} {1:22} {2:4}  {3:4} vectors  {4:4} errors  {5:6.2f} s",
    ),
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tables of what tests found, for whoever reads the session."""
    for heading, (rows, line) in TABLES.items():
        if rows:
            terminalreporter.section(heading)
            for row in rows:
                terminalreporter.write_line(line.format(*row))
