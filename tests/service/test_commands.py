"""Options of scripts/serve and scripts/demo, and how scripts/predict ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from scripts.lib.cog_server import free_port
from tests.helpers.paths import ROOT


@contextlib.contextmanager
def started(*command: str, **environment: str) -> Iterator[psutil.Popen]:
    """Run a command of scripts/ in the background, and kill it with all its children."""
    process = psutil.Popen(
        [str(ROOT / "scripts" / command[0]), *command[1:]],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in process.children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def wait_until_healthy(address: str) -> None:
    """Wait until Cog answers at `address`; its setup may have failed."""
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"http://{address}/health-check", trust_env=False).raise_for_status()
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "no answer after 60 s"
            time.sleep(0.05)


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_help_prints_usage_and_does_nothing_else(command: str) -> None:
    with started(command, "--help", PATH="/nowhere:/usr/bin:/bin") as process:
        stdout, stderr = process.communicate(timeout=5)
    assert process.returncode == 0
    assert f"scripts/{command}" in stdout.decode().splitlines()[0]
    assert stderr == b""


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_unknown_argument_is_an_error(command: str) -> None:
    with started(command, "--prot") as process:
        _, stderr = process.communicate(timeout=5)
    assert process.returncode == 2
    assert f"scripts/{command}: unknown argument: --prot" in stderr.decode()


def test_serve_listens_on_the_given_host_only() -> None:
    port = free_port()
    with started("serve", "--port", str(port), "--host", "127.0.0.2", CLIP_WEIGHTS=""):
        wait_until_healthy(f"127.0.0.2:{port}")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health-check", trust_env=False)


def test_serve_listens_on_this_machine_only_by_default() -> None:
    port = free_port()
    with started("serve", f"--port={port}", CLIP_WEIGHTS=""):
        wait_until_healthy(f"127.0.0.1:{port}")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.2:{port}/health-check", trust_env=False)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name
)
def test_predict_stops_its_server_when_it_is_killed(number: signal.Signals) -> None:
    """No process and no temporary directory is left, whatever signal ends the command."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # weights that never arrive
        weights = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with started("predict", "-i", "text=a cat", CLIP_WEIGHTS=weights) as process:
            silent.settimeout(60)
            silent.accept()  # by the worker, so that all processes have started
            children = process.children(recursive=True)
            assert len(children) >= 3  # guard, server, worker
            [server] = [child for child in children if "cog.server.http" in child.cmdline()]
            directory = Path(server.cwd())
            process.send_signal(number)
            process.wait(20)
            _, alive = psutil.wait_procs(children, timeout=10)
            assert alive == []
            deadline = time.monotonic() + 5
            while directory.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not directory.exists()


def test_emulator_ends_with_the_process_that_started_it() -> None:
    """Also if that process is killed."""
    code = (
        "import time; from scripts.lib.gcs_emulator import gcs_emulator\n"
        "with gcs_emulator('models'): print('running', flush=True); time.sleep(60)"
    )
    process = psutil.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "running\n"
    children = process.children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert children
