"""Emulate Google Cloud Storage on this machine, with the real fake-gcs-server binary.

    gcs_emulator.py BUCKET … [--port N]

Runs until it is interrupted. A process with STORAGE_EMULATOR_HOST=http://127.0.0.1:N in its
environment then reads and writes gs://BUCKET here. Objects are kept in memory and are lost when the
emulator ends.

Example, after which `scripts/serve` reads gs://your-bucket here:

    .venv/bin/python scripts/gcs_emulator.py your-bucket &
    export STORAGE_EMULATOR_HOST=http://127.0.0.1:4443
"""

from __future__ import annotations

import argparse
import signal
import threading

from scripts.lib.needs import packages_of


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("buckets", nargs="+", metavar="BUCKET", help="name of a bucket to create")
    parser.add_argument(
        "--port", type=int, metavar="N", default=4443, help="TCP port (default: 4443)"
    )
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    with packages_of("demo"):
        from scripts.lib.gcs_emulator import gcs_emulator

    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    try:
        with gcs_emulator(*arguments.buckets, port=arguments.port) as url:
            print(f"export STORAGE_EMULATOR_HOST={url}", flush=True)
            interrupted.wait()
    except OSError as error:
        raise SystemExit(
            f"gcs_emulator.py: port {arguments.port} cannot be used ({error}); give another --port"
        ) from error


if __name__ == "__main__":
    main()
