"""Run infinity-emb, a server for embedding models, in a virtual environment of its own.

Its pinned dependencies conflict with this project's.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from scripts.lib.cog_server import CACHE, free_port

ENVIRONMENT = CACHE / "infinity"
PACKAGES = (
    "infinity-emb[torch,server,vision]==0.0.78",
    "torch==2.14.1",
    "torchvision==0.29.1",
    "aiohttp==3.13.2",  # needed for images; only the documentation says so
)
START_SECONDS = 180


def install() -> None:
    """Create the virtual environment, if there is none. Takes some minutes."""
    done = ENVIRONMENT / "installed"
    if done.exists():
        return
    print("installing infinity-emb into .cache (once; some minutes) …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    pip = [str(ENVIRONMENT / "bin" / "pip"), "install", "--quiet", *PACKAGES]
    subprocess.run(pip, check=True)
    done.touch()


@contextlib.contextmanager
def infinity(model: Path, log: Path) -> Iterator[str]:
    """Serve the transformers directory `model`; yield the URL of the embeddings endpoint."""
    port = free_port()
    command = [str(ENVIRONMENT / "bin" / "infinity_emb"), "v2", "--model-id", str(model)]
    command += ["--served-model-name", "clip", "--engine", "torch", "--no-bettertransformer"]
    # Its warm-up embeds 32 images at once: minutes on a CPU.
    command += ["--no-model-warmup", "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "warning"]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/embeddings"
    finally:
        process.terminate()
        process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False, timeout=5) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if client.get(url).is_success:
                    return
            time.sleep(0.2)
    raise RuntimeError(f"infinity-emb did not start:\n{log.read_text()[-2000:]}")
