"""The health check of examples/compose.yaml reports the state of a real Cog server.

scripts/check_image.py runs it in a container.
"""

from __future__ import annotations

import os
import subprocess

from scripts.image.check import health_check
from scripts.lib.cog_server import CogServer, venv_path


def passes(server: CogServer) -> bool:
    """Run the health check like Docker, and return whether the container is healthy.

    A proxy that the container has for downloads is not used.
    """
    command = [
        part.replace("127.0.0.1:5000", f"127.0.0.1:{server.port}") for part in health_check()
    ]
    environment = {**os.environ, "PATH": venv_path(), "http_proxy": "http://127.0.0.1:9"}
    completed = subprocess.run(command, env=environment, capture_output=True, timeout=10)
    return completed.returncode == 0


def test_ready_server_is_healthy(server: CogServer) -> None:
    assert passes(server)


def test_server_with_failed_setup_is_unhealthy() -> None:
    """/health-check answers 200, so its status must be read."""
    with CogServer({"CLIP_WEIGHTS": "/nowhere"}) as server:
        assert server.wait()["status"] == "SETUP_FAILED"
        assert not passes(server)


def test_stopped_server_is_unhealthy() -> None:
    assert not passes(CogServer({}))
