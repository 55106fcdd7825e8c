"""Run scripts/demo and scripts/test --quick in a bare Debian, from a clone to the result.

    sudo .venv/bin/python scripts/check_platform.py                  Debian 12 and 13
    sudo .venv/bin/python scripts/check_platform.py --suite trixie   Debian 13, with Python 3.13

The Debian has nothing but Python with venv, git and certificates. debootstrap makes it, podman with
runc runs it, and an ordinary user runs the commands, with a read-only root file system. The last
commit of this checkout is cloned, and pip finds packages where it finds them on this host. The
script prints each command, and in the end a table of seconds and gigabytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from scripts.lib.debian_root import LIMITS, make_root, package_volumes, require_tools, run

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = ROOT / ".cache" / "platforms"
PACKAGES = ("ca-certificates", "git", "python3", "python3-venv")
SUITES = ("bookworm", "trixie")
USER = 1000
COMMANDS = (
    "git -c advice.detachedHead=false clone --quiet checkout.bundle clip-embed",
    "scripts/demo",
    "scripts/test --quick",
)


def check(suite: str) -> list[tuple[str, float, float]]:
    """Run COMMANDS in a bare Debian. Return command, seconds, and the size of the checkout in GB.

    Raises SystemExit if a command fails.
    """
    system = DIRECTORY / suite
    home = DIRECTORY / f"{suite}-home"
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    make_root(suite, PACKAGES, system)
    shutil.rmtree(home, ignore_errors=True)
    (home / "tmp").mkdir(parents=True)
    for folder in (home, home / "tmp"):
        os.chown(folder, USER, USER)
    # A bundle, since git clones no directory of another user.
    run("git", "-C", ROOT, "bundle", "create", "--quiet", home / "checkout.bundle", "HEAD")
    rows = []
    for command in COMMANDS:
        checkout = home / "clip-embed"
        started = time.monotonic()
        run(
            *("podman", "--runtime=runc", "run", "--rm", "--network=host", *LIMITS),
            *("--read-only", "--tmpfs=/tmp", f"--user={USER}:{USER}", "--env=HOME=/home/user"),
            # pip unpacks gigabytes there.
            *("--env=TMPDIR=/home/user/tmp", f"--volume={home}:/home/user"),
            *package_volumes(DIRECTORY),
            f"--workdir=/home/user{'/clip-embed' if checkout.exists() else ''}",
            *("--rootfs", system, *command.split()),
        )
        seconds = time.monotonic() - started
        used = run("du", "-sk", checkout, quiet=True).split()[0]
        rows.append((command, seconds, int(used) * 1024 / 1e9))
    return rows


def main() -> None:
    """Check each Debian that is asked for, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suite", choices=SUITES, help="release of Debian to check (default: each)"
    )
    options = parser.parse_args()
    require_tools("debootstrap", "podman", "runc")
    rows = [
        (suite, *row) for suite in SUITES if options.suite in (None, suite) for row in check(suite)
    ]
    print("\n| Debian | command | seconds | GB in the checkout |\n|---|---|---|---|")
    for suite, command, seconds, used in rows:
        print(f"| {suite} | `{command}` | {seconds:.0f} | {used:.1f} |")


if __name__ == "__main__":
    sys.exit(main())
