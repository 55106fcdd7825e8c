"""The real Cog server on this machine, without Docker: for the demo, `scripts/predict`, tests and
benchmarks. Knows how to start it, wait for it and end it; nothing of what it serves.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "openapi.json"
CACHE = ROOT / ".cache"


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def venv_path() -> str:
    """PATH with this interpreter first: Cog starts its worker as plain `python`."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def image_environment() -> dict[str, str]:
    """What cog.yaml sets in the image, and the places `cog build` reads from @concurrent there, so
    that a server outside one runs alike."""
    config = yaml.safe_load((ROOT / "cog.yaml").read_text())
    [places] = re.findall(r"@concurrent\(max=(\d+)\)", (ROOT / "predict.py").read_text())
    variables = dict(line.split("=", 1) for line in config["environment"])
    return {**variables, "COG_MAX_CONCURRENCY": places}


class CogServer:
    """`python -m cog.server.http` in a directory of its own; use as a context manager.

    environment: added to this process's; None removes a variable. schema: what stands in
    `.cog/openapi_schema.json`, None for nothing, as after a build without one. predictor: Cog's
    reference, file:class. log: where the server's output goes.
    """

    def __init__(
        self,
        environment: Mapping[str, str | None],
        *,
        schema: Path | str | None = SCHEMA,
        predictor: str = f"{ROOT / 'predict.py'}:Predictor",
        port: int | None = None,
        log: Any = subprocess.DEVNULL,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = environment
        self._schema = schema
        self._predictor = predictor
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.directory = Path()

    def __enter__(self) -> CogServer:
        CACHE.mkdir(exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="server-", dir=CACHE))
        (self.directory / ".cog").mkdir()
        (self.directory / "tmp").mkdir()
        if self._schema is not None:
            shutil.copyfile(self._schema, self.directory / ".cog" / "openapi_schema.json")
        wanted = {
            **os.environ,
            **image_environment(),
            "PATH": venv_path(),
            "PYTHONPATH": str(ROOT),
            "PORT": str(self.port),
            "TMPDIR": str(self.directory / "tmp"),
            "COG_PREDICT_TYPE_STUB": self._predictor,
            **self._environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"],
            cwd=self.directory,
            env={name: value for name, value in wanted.items() if value is not None},
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        finally:
            # The worker is in the server's session: nothing of it may stay behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            shutil.rmtree(self.directory, ignore_errors=True)

    def health(self) -> dict[str, Any]:
        """What /health-check answers; raises OSError while nobody listens."""
        with urllib.request.urlopen(f"{self.url}/health-check", timeout=10) as response:
            return dict(json.load(response))

    def wait(self, timeout: float = 120.0) -> dict[str, Any]:
        """Wait until set-up has succeeded or failed; the health then.

        Raises TimeoutError, and RuntimeError if the server ends.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            try:
                health = self.health()
            except OSError:
                pass
            else:
                if health["status"] != "STARTING":
                    return health
            time.sleep(0.01)
        raise TimeoutError(f"the server was not ready after {timeout:.0f} s")

    def wait_ready(self, timeout: float = 120.0) -> dict[str, Any]:
        """`wait`, and RuntimeError with the set-up's log if it failed."""
        health = self.wait(timeout)
        if health["status"] != "READY":
            raise RuntimeError(f"{health['status']}: {self.setup_log()}")
        return health

    def setup_log(self, timeout: float = 10.0) -> str:
        """What set-up wrote, once it is over; in /health-check the log follows the status."""
        deadline = time.monotonic() + timeout
        while True:
            log = str(self.health().get("setup", {}).get("logs", ""))
            if log or time.monotonic() > deadline:
                return log
            time.sleep(0.02)

    def predict(self, **inputs: Any) -> dict[str, Any]:
        """POST a prediction and return the response; raises urllib.error.HTTPError."""
        request = urllib.request.Request(
            f"{self.url}/predictions",
            data=json.dumps({"input": inputs}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return dict(json.load(response))
