"""Run the image's service in a container without a network, and talk to it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from scripts.image.build import IMAGE, Podman
from scripts.lib.debian_root import LIMITS

T = TypeVar("T")

USER = "1000:1000"
"""Not in the image's /etc/passwd: like `docker run --user 1000:1000`, and Kubernetes' runAsUser."""

SMALL_HOST = ("--memory=3g", "--cpus=1", "--shm-size=64m")
UNPRIVILEGED = (
    f"--user={USER}",
    "--env=HOME=/",  # as in Docker, where that user has no home; podman makes it /src
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
)
TMPFS = "--tmpfs=/tmp:size=512m"
CLONE_NEWNET = 0x40000000
METRICS_PORT = 9090


class Container:
    """The service in a container; use it as a context manager.

    weights: directory, mounted. Nothing outside of the container reaches its ports, and nothing in
    it reaches a network: it has the loopback interface only.
    """

    def __init__(
        self, podman: Podman, weights: Path, options: Sequence[str] = (*UNPRIVILEGED, TMPFS)
    ) -> None:
        self._podman = podman
        self._weights = weights
        self._options = options
        self.name = f"clip-embed-{os.getpid()}"

    def __enter__(self) -> Container:
        self._podman(
            "run",
            "--detach",
            f"--name={self.name}",
            "--network=none",
            "--http-proxy=false",
            *LIMITS,
            *SMALL_HOST,
            *self._options,
            f"--volume={self._weights}:/weights:ro",
            "--env=CLIP_WEIGHTS=/weights",
            f"--env=CLIP_METRICS_PORT={METRICS_PORT}",
            IMAGE,
        )
        self._started = time.monotonic()
        self._pid = int(self._inspect("{{.State.Pid}}"))
        return self

    def __exit__(self, *exception: object) -> None:
        self._podman("rm", "--force", "--time=0", self.name)

    def wait(self, timeout: float = 120.0) -> tuple[str, float]:
        """Return the status when setup is over, and how many seconds that took."""
        while time.monotonic() < self._started + timeout:
            with contextlib.suppress(OSError):
                status = self.health()["status"]
                if status != "STARTING":
                    return status, time.monotonic() - self._started
            time.sleep(0.05)
        raise SystemExit(f"the service was not ready after {timeout:.0f} s:\n{self.logs()}")

    def health(self) -> dict[str, Any]:
        """Return the answer of /health-check. Raises OSError if the server does not answer."""
        return dict(json.loads(self._inside(lambda: _get("http://127.0.0.1:5000/health-check"))))

    def metrics(self) -> str:
        """Return the metrics for Prometheus."""
        return self._inside(lambda: _get(f"http://127.0.0.1:{METRICS_PORT}/metrics"))

    def predict(self, **inputs: str) -> dict[str, Any]:
        """Return Cog's response to a prediction, also to one that fails."""
        body = json.dumps({"input": inputs}).encode()
        return dict(
            json.loads(self._inside(lambda: _get("http://127.0.0.1:5000/predictions", body)))
        )

    def execute(self, *command: str) -> str:
        """Run a command in the container, as a health check of Docker does."""
        return self._podman("exec", self.name, *command)

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM; return the exit status, and after how many seconds the service ended."""
        began = time.monotonic()
        self._podman("kill", "--signal=TERM", self.name)
        return int(self._podman("wait", self.name)), time.monotonic() - began

    def logs(self) -> str:
        return self._podman("logs", self.name, quiet=True)

    def killed_for_memory(self) -> bool:
        return self._inspect("{{.State.OOMKilled}}") == "true"

    def peak_megabytes(self) -> float:
        """Return the sum of the peak resident memory of all processes, in MB."""
        pids = self._podman("top", self.name, "hpid", quiet=True).split()[1:]
        lines = [x for pid in pids for x in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1e3

    def _inspect(self, template: str) -> str:
        return self._podman("inspect", f"--format={template}", self.name, quiet=True).strip()

    def _inside(self, function: Callable[[], T]) -> T:
        """Call the function in a thread that has the container's network.

        So requests use no memory and no CPU time of the container, as those of clients elsewhere.
        """
        future: Future[T] = Future()

        def call() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with Path(f"/proc/{self._pid}/ns/net").open() as namespace:
                    if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns failed")
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call, daemon=True).start()
        return future.result()


def _get(url: str, body: bytes | None = None) -> str:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as response:
        return str(response.read().decode())
