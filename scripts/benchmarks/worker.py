"""Measure in child processes, so that each contender has its own memory settings and threads.

A worker reads requests from stdin, one JSON list of arguments per line, and answers each one with a
line `value NUMBER` on stdout. Other lines on stdout are ignored.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from scripts.lib.cog_server import ROOT, image_environment

TUNABLES = "GLIBC_TUNABLES"


def memory_settings() -> dict[str, str]:
    """Return the part of the image's environment that concerns memory."""
    return {TUNABLES: image_environment()[TUNABLES]}


class Worker:
    """A child process that measures on request; use it as a context manager.

    arguments: of this Python. environment: variables to add to this process's.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # ends the worker's loop
        self._process.wait()

    def measure(self, *arguments: object) -> float:
        """Return the value of one measurement. Raises RuntimeError if the worker has exited."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(arguments), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("value "):
                return float(line.removeprefix("value "))
        raise RuntimeError(f"{self._process.args!r} exited with status {self._process.wait()}")


def serve(measure: Callable[..., float]) -> None:
    """Be a worker: call `measure` with the arguments of each request."""
    for line in sys.stdin:
        print("value", measure(*json.loads(line)), flush=True)
