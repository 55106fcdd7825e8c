"""Build the container image without Docker, and check what runs in it.

    check_image.py [--directory DIR] [--sizes] [--no-build]

For root on Debian or Ubuntu with debootstrap, podman and runc. It writes the Dockerfile that Cog
writes for cog.yaml when it builds on python:3.11-slim, makes a base image from Debian's packages,
and builds with podman; pip finds the same indexes, wheels and certificates as pip on this machine.

Then it checks that exactly the packages of requirements.txt are installed, and runs the service
as an ordinary user without a home, with a read-only root, 64 MB of /dev/shm, 3 GB of memory, one
CPU and no network: READY, a text, an image, /health-check, Docker's health check, metrics, SIGTERM
while idle and with images in flight, memory, and the error without a writable /tmp.

Each command is printed before it runs, and a table in the end. The exit status is 0 if all checks
pass. The first run takes 10 minutes and 12 GB of disk. To remove its files, delete DIR.

Examples:

    sudo .venv/bin/python scripts/check_image.py
    sudo .venv/bin/python scripts/check_image.py --no-build --sizes
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.lib.needs import packages_of

CACHE = Path(__file__).resolve().parents[1] / ".cache"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=CACHE / "image",
        metavar="DIR",
        help="for the Debian system, pip's cache and the image (default: .cache/image)",
    )
    parser.add_argument(
        "--sizes",
        action="store_true",
        help="compress the layers, as for a registry, and print their sizes: some minutes",
    )
    parser.add_argument(
        "--no-build",
        dest="build",
        action="store_false",
        help="check the image that the last run has built",
    )
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    with packages_of("demo"):
        from scripts.image.check import run_checks
        from scripts.lib.debian_root import require_tools

        require_tools("debootstrap", "podman", "runc")
        directory = arguments.directory.resolve()
        if not run_checks(directory, build=arguments.build, sizes=arguments.sizes):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
