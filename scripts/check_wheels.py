"""Check that every pinned package has a wheel for every supported platform and Python.

    .venv/bin/python scripts/check_wheels.py                    all of them, some minutes
    .venv/bin/python scripts/check_wheels.py --platform macos-arm64 --python 3.13
    .venv/bin/python scripts/check_wheels.py --table >table.md  the wheels, as in docs/platforms.md

It asks pip what it would install from constraints.txt. It downloads descriptions of packages, not
the packages, and installs nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.needs import packages_of

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


class MissingWheelError(Exception):
    """A pinned package cannot be installed on a platform. The message is pip's."""


@dataclass(frozen=True)
class Platform:
    """A kind of machine. tags: the platform tags of the wheels that it accepts."""

    name: str
    sys_platform: str
    system: str
    machine: str
    tags: tuple[str, ...]

    def markers(self, python: str) -> dict[str, str]:
        """Return the variables of environment markers that constraints.txt may name."""
        return {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": self.system,
            "python_full_version": f"{python}.0",
            "python_version": python,
            "sys_platform": self.sys_platform,
        }


def _linux(machine: str) -> Platform:
    # torch needs glibc 2.28.
    versions = [f"manylinux_2_{minor}" for minor in range(28, 4, -1)]
    names = [*versions, "manylinux2014", "manylinux2010", "manylinux1", "linux"]
    tags = tuple(f"{name}_{machine}" for name in names)
    return Platform(f"linux-{machine}", "linux", "Linux", machine, tags)


PLATFORMS = (
    _linux("x86_64"),
    _linux("aarch64"),
    # pip adds the tags of older releases itself.
    Platform("macos-arm64", "darwin", "Darwin", "arm64", ("macosx_14_0_arm64",)),
)


def pins(platform: Platform, python: str) -> list[str]:
    """Return the lines of constraints.txt that apply there, as name==version."""
    from packaging.requirements import Requirement  # so that --help works without it

    found = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        pin = Requirement(text)
        if pin.marker is None or pin.marker.evaluate(platform.markers(python)):
            found.append(f"{pin.name}{pin.specifier}")
    return found


def wheels(platform: Platform, python: str) -> dict[str, str]:
    """Return the name of the wheel that pip chooses for each pinned package.

    Raises MissingWheelError if a package has none, or does not support this Python.
    """
    from packaging.specifiers import SpecifierSet

    with tempfile.TemporaryDirectory() as directory:
        requirements = Path(directory, "requirements.txt")
        requirements.write_text("\n".join(pins(platform, python)))
        report = Path(directory, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        # Markers are for the Python that runs pip; `pins` has evaluated them for the target.
        command += ["--no-deps", "--only-binary", ":all:", "--quiet", "--report", str(report)]
        command += ["--disable-pip-version-check", "--target", str(Path(directory, "target"))]
        command += ["--implementation", "cp", "--python-version", python]
        # pip 26.3 compares Requires-Python with the Python that runs it: checked below instead.
        command += ["--ignore-requires-python"]
        command += [f"--platform={tag}" for tag in platform.tags]
        command += ["--requirement", str(requirements)]
        pip = subprocess.run(command, capture_output=True, text=True)
        if pip.returncode:
            errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
            raise MissingWheelError("\n".join(errors) or pip.stderr)
        installs = json.loads(report.read_text())["install"]
    found = {}
    for install in installs:
        metadata = install["metadata"]
        required = metadata.get("requires_python", "")
        if f"{python}.0" not in SpecifierSet(required):
            raise MissingWheelError(f"{metadata['name']} needs Python {required}")
        file = install["download_info"]["url"].rpartition("/")[2]
        found[metadata["name"].lower().replace("_", "-")] = file.removesuffix(".whl")
    return found


def describe(wheels: Sequence[str]) -> str:
    """Return the tags of one package's wheels, as `cp311–cp314 manylinux2014_x86_64`.

    Of several platform tags of a wheel, the first, which is the oldest.
    """
    pythons: dict[str, list[str]] = {}
    for wheel in wheels:
        python, abi, platform = wheel.split("-")[-3:]
        tag = f"{python}-abi3" if abi == "abi3" else python
        pythons.setdefault(platform.partition(".")[0], []).append(tag)
    cells = []
    for platform, tags in pythons.items():
        span = list(dict.fromkeys(tags))
        cells.append("–".join(dict.fromkeys([span[0], span[-1]])) + " " + platform)
    return ", ".join(cells) or "–"


def table(found: dict[tuple[str, str], dict[str, str]]) -> Iterator[str]:
    """Write a row for each package with native code, and a last one for the others."""
    platforms = list(dict.fromkeys(platform for platform, _ in found))
    yield "| package | " + " | ".join(platforms) + " |"
    yield "|---|" + "---|" * len(platforms)
    pure = []
    for name in sorted({name for row in found.values() for name in row}):
        if all(row.get(name, "-none-any").endswith("-none-any") for row in found.values()):
            pure.append(name)
            continue
        cells = [
            describe(
                [row[name] for (place, _), row in found.items() if place == on and name in row]
            )
            for on in platforms
        ]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield f"| {', '.join(pure)} | " + " | ".join(["py3 any"] * len(platforms)) + " |"


def _report(platform: Platform, python: str) -> dict[str, str] | str:
    """Return the wheels, or what is missing."""
    try:
        return wheels(platform, python)
    except MissingWheelError as error:
        return str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each platform and Python. Return 1 if a wheel is missing, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--platform",
        choices=[platform.name for platform in PLATFORMS],
        help="check this platform only",
    )
    parser.add_argument("--python", choices=PYTHONS, help="check this version of Python only")
    parser.add_argument("--table", action="store_true", help="print a table of the wheels, too")
    options = parser.parse_args(arguments)
    with packages_of("test"):
        import packaging  # noqa: F401
    targets = [
        (platform, python)
        for platform in PLATFORMS
        if options.platform in (None, platform.name)
        for python in PYTHONS
        if options.python in (None, python)
    ]
    found = {}
    missing = 0
    with ThreadPoolExecutor(2) as pool:
        for (platform, python), outcome in zip(
            targets, pool.map(lambda target: _report(*target), targets), strict=True
        ):
            if isinstance(outcome, str):
                missing += 1
                print(f"{platform.name}, Python {python}: {outcome}", file=sys.stderr)
            else:
                found[platform.name, python] = outcome
                count = f"{len(outcome)} packages, a wheel for each"
                print(f"{platform.name}, Python {python}: {count}", file=sys.stderr)
    if options.table and found:
        print("\n".join(table(found)))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
