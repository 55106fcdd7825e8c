"""Run the real Cog server on this machine, without Docker.

Used by the demo, `scripts/predict`, tests and benchmarks. It starts and stops the server, and knows
nothing of the model that is served. Few imports: benchmarks time what runs beside them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from scripts.lib.process_guard import ProcessGuard

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "openapi.json"
CACHE = ROOT / ".cache"

POLL_SECONDS = 0.01
"""Pause between two looks at /health-check: the resolution of measured start times."""


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def check_address(host: str, port: int) -> None:
    """Raise ValueError with a sentence unless a server can listen on `host`, an IP address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        with socket.socket(family, kind) as listener:
            # As Cog does it: the port of a server that has just ended is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} is in use; choose another with --port N") from None
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(
                f"--host is {host!r}; give an IP address of this machine, or 0.0.0.0 for all"
            ) from None
        raise ValueError(
            f"port {port} cannot be used: {error.strerror}; choose another with --port N"
        ) from None


def new_directory() -> Path:
    """Return the path of a directory for a server, which does not exist yet.

    Cog 0.23.1 makes sockets below TMPDIR, but not on Linux, where they have no files (coglet:
    bridge/transport.rs). macOS allows them 103 bytes of path, too few below many checkouts.
    """
    name = uuid.uuid4().hex[:8]
    if sys.platform == "linux":
        return CACHE / f"server-{name}"
    return Path(tempfile.gettempdir(), f"clip-embed-{name}")


def venv_path() -> str:
    """Return PATH with this interpreter first: Cog starts its worker as plain `python`."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def image_environment() -> dict[str, str]:
    """Return the environment variables that the image sets, for a server outside of it.

    They are those of cog.yaml, and the concurrency limit that `cog build` reads from @concurrent.
    Settings of pip and uv are for the build only.
    """
    config = yaml.safe_load((ROOT / "cog.yaml").read_text())
    [limit] = re.findall(r"@concurrent\(max=(\d+)\)", (ROOT / "predict.py").read_text())
    variables = dict(line.split("=", 1) for line in config["environment"])
    kept = {n: v for n, v in variables.items() if not n.startswith(("PIP_", "UV_"))}
    return {**kept, "COG_MAX_CONCURRENCY": limit}


def bypass_proxies() -> None:
    """Let this process and its children reach this machine without a proxy of the environment."""
    here = "127.0.0.1,localhost"
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    # Some programs read the one variable first, some the other.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{hosts},{here}" if hosts else here


class CogServer:
    """`python -m cog.server.http` in a temporary directory; use it as a context manager.

    environment: variables to add to this process's; None removes one. schema: the file to copy to
    `.cog/openapi_schema.json`; None for a server that was built without a schema. predictor: as Cog
    writes it, file:class. port: default, a free one. log: receives the server's output. wrapper: a
    command that is given the server's command as further arguments.

    If this process is killed, the server is killed too.
    """

    def __init__(
        self,
        environment: Mapping[str, str | None],
        *,
        schema: Path | str | None = SCHEMA,
        predictor: str = f"{ROOT / 'predict.py'}:Predictor",
        port: int | None = None,
        log: Any = subprocess.DEVNULL,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # To this machine, without TLS: no proxy of the environment, and no certificates to load.
        self._http = httpx.Client(base_url=self.url, trust_env=False, verify=False)
        self._guard: ProcessGuard | None = None
        self._environment = environment
        self._schema = schema
        self._predictor = predictor
        self._log = log
        self._wrapper = wrapper
        self.process: subprocess.Popen[bytes] | None = None
        self.directory = Path()

    def __enter__(self) -> CogServer:
        self.directory = new_directory()
        # Before the directory is made, so that it is removed even if this process is killed.
        self._guard = ProcessGuard(str(self.directory))
        (self.directory / ".cog").mkdir(parents=True)
        (self.directory / "tmp").mkdir()
        if self._schema is not None:
            shutil.copyfile(self._schema, self.directory / ".cog" / "openapi_schema.json")
        variables = {
            **os.environ,
            **image_environment(),
            "PATH": venv_path(),
            "PYTHONPATH": str(ROOT),
            "PORT": str(self.port),
            "TMPDIR": str(self.directory / "tmp"),
            "COG_PREDICT_TYPE_STUB": self._predictor,
            **self._environment,
        }
        self.process = self._guard.start(
            [*self._wrapper, sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"],
            cwd=self.directory,
            env={name: value for name, value in variables.items() if value is not None},
            stdout=self._log,
            stderr=self._log,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process is not None
        assert self._guard is not None
        self._http.close()
        self.process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        finally:
            # The worker is in the same process group, and may outlive the server.
            # macOS answers EPERM for a group of processes that have all ended.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            shutil.rmtree(self.directory, ignore_errors=True)
            self._guard.close()  # last: if a signal ends this process before, the guard cleans up

    def health(self) -> dict[str, Any]:
        """Return the answer of /health-check. Raises OSError if the server does not answer."""
        return self._json("GET", "/health-check", timeout=10)

    def wait(self, timeout: float = 120.0) -> dict[str, Any]:
        """Wait until setup has succeeded or failed, and return the health then.

        Raises TimeoutError, and RuntimeError if the server exits.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the server exited with status {self.process.returncode}")
            with contextlib.suppress(OSError):
                health = self.health()
                if health["status"] != "STARTING":
                    return health
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"the server was not ready after {timeout:.0f} s")

    def wait_ready(self, timeout: float = 120.0) -> dict[str, Any]:
        """Call `wait`, and raise RuntimeError with the setup log unless the status is READY."""
        health = self.wait(timeout)
        if health["status"] != "READY":
            raise RuntimeError(f"{health['status']}: {self.setup_log()}")
        return health

    def setup_log(self, timeout: float = 10.0) -> str:
        """Return what setup printed. Call it after setup: Cog adds the log after the status."""
        deadline = time.monotonic() + timeout
        while True:
            log = str(self.health().get("setup", {}).get("logs", ""))
            if log or time.monotonic() > deadline:
                return log
            time.sleep(2 * POLL_SECONDS)

    def predict(self, **inputs: Any) -> dict[str, Any]:
        """Request a prediction and return Cog's response, also that of a failed prediction.

        Raises httpx.HTTPStatusError if Cog refuses the request, and OSError if it does not answer.
        """
        return self._json("POST", "/predictions", timeout=120, json={"input": inputs})

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise ConnectionError(f"{self.url}{path}: {error}") from error
        return dict(response.raise_for_status().json())
