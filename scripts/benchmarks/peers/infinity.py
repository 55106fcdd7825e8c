"""infinity-emb, a server for embedding models, in a virtual environment of its own: its pins clash
with ours."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from local_server import CACHE, free_port

ENVIRONMENT = CACHE / "infinity"
PACKAGES = (
    "infinity-emb[torch,server,vision]==0.0.78",
    "torch==2.14.1",
    "torchvision==0.29.1",
    "aiohttp==3.13.2",  # for images, though only its documentation asks for it
)


def install() -> None:
    """Once; some minutes."""
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
    """Serve the transformers directory `model`; yields the URL of its embeddings endpoint."""
    port = free_port()
    command = [str(ENVIRONMENT / "bin" / "infinity_emb"), "v2", "--model-id", str(model)]
    command += ["--served-model-name", "clip", "--engine", "torch", "--no-bettertransformer"]
    # Its warm-up is 32 images at once: minutes on a CPU.
    command += ["--no-model-warmup", "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "warning"]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 180
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"infinity-emb did not start:\n{log.read_text()[-2000:]}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/embeddings"
    finally:
        process.terminate()
        process.wait()
