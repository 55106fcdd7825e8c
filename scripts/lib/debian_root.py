"""Make bare Debian systems, and let pip in a container use what pip on this host uses.

For checks of what users install. Needs root, and Debian's packages debootstrap, podman and runc.
Standard library only.
"""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# podman asks for higher limits by default, which fails if this host is a container itself.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")

# What pip on this host must share with pip in a container so that it finds the same packages.
PIP_SETTINGS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "proxy",
    "cert",
    "timeout",
    "default-timeout",
    "retries",
)


def require_tools(*programs: str) -> None:
    """Raise SystemExit with one sentence unless this is root and the programs are installed."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise SystemExit(f"{Path(sys.argv[0]).name} needs root on Debian or Ubuntu")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise SystemExit(
            f"{Path(sys.argv[0]).name} needs {', '.join(missing)}: apt install {' '.join(missing)}"
        )


def run(*command: str | Path, quiet: bool = False) -> str:
    """Print the command, run it, and return its output. Raises SystemExit if it fails.

    quiet: do not print the output.
    """
    print(f"$ {shlex.join(map(str, command))}", flush=True)
    lines = []
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if not quiet:
                print(f"  {line}", end="", flush=True)
    if process.returncode != 0:
        output = "" if not quiet else "".join(lines)
        raise SystemExit(f"{output}exit status {process.returncode} of {command[0]}")
    return "".join(lines)


def make_root(suite: str, packages: Sequence[str], directory: Path) -> None:
    """Make `directory` a minimal system of Debian `suite` with `packages`. Keeps one that is there.

    Package lists and downloaded packages are removed, as from images of containers.
    """
    if directory.exists():
        return
    unfinished = directory.with_name(directory.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    run(
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        suite,
        unfinished,
        quiet=True,
    )
    for package_files in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(unfinished / package_files)
        (unfinished / package_files / "partial").mkdir(parents=True)
    unfinished.rename(directory)


def package_volumes(directory: Path) -> list[str]:
    """Return podman's options that let pip and uv find the packages that pip on this host finds.

    Writes pip's and uv's settings to `directory`. They are mounted, so that no image contains them,
    and so are local indexes, directories of wheels and certificates that they name.
    """
    settings = _pip_settings()
    pip, uv = directory / "pip.conf", directory / "uv.toml"
    lines = ["[global]", "progress-bar = off", *(f"{n} = {v}" for n, v in settings.items())]
    pip.write_text("\n".join(lines) + "\n")
    # uv has its own certificates unless it is told to use the system's.
    uv.write_text("native-tls = true\n")
    if "index-url" in settings:
        with uv.open("a") as file:
            file.write(f'index-url = "{settings["index-url"]}"\n')
    mounts = {"/etc/pip.conf": pip, "/etc/uv/uv.toml": uv}
    mounts |= {str(path): path for path in _local_paths(settings)}
    if "cert" in settings:
        mounts["/etc/ssl/certs/ca-certificates.crt"] = Path(settings["cert"])
    return [f"--volume={source}:{target}:ro" for target, source in mounts.items()]


def _pip_settings() -> dict[str, str]:
    """Return pip's settings on this host; those of the environment come first, and count."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings: dict[str, str] = {}
    for line in sorted(listed.stdout.splitlines(), key=lambda line: not line.startswith(":env:")):
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in PIP_SETTINGS:
            settings.setdefault(name, " ".join(str(ast.literal_eval(value)).split()))
    return settings


def _local_paths(settings: dict[str, str]) -> list[Path]:
    """Return the files and directories of this host that the settings name."""
    paths = []
    for word in " ".join(settings.values()).split():
        path = Path(word.removeprefix("file://"))
        if word.startswith("file://"):
            path = path.parent  # an index refers to files beside it
        if path.is_absolute() and path.exists() and path != Path("/"):
            paths.append(path)
    return paths
