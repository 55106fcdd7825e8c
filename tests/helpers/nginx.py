"""Run the real nginx."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def running_nginx(config: str, directory: Path, port: int) -> Iterator[None]:
    """Run nginx with `config`, which listens on `port` and writes to `directory`.

    Without nginx the test is skipped, and in CI it fails.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("nginx is not installed, and in CI nothing is skipped")
        pytest.skip("nginx is not installed")
    path = directory / "nginx.conf"
    path.write_text(config)
    main = f"daemon off; pid {directory}/pid; error_log {directory}/error.log;"
    if os.geteuid() == 0:
        main += " user root;"  # its workers must use pytest's directories
    process = subprocess.Popen([program, "-p", str(directory), "-c", str(path), "-g", main])
    try:
        for _ in range(200):
            assert process.poll() is None, "nginx does not accept its configuration"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)
