"""Build the image from cog.yaml with podman, and measure its layers."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tarfile
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from scripts.image.dockerfile import UV_VERSION, dockerfile, image_requirements
from scripts.lib.debian_root import LIMITS, make_root, package_volumes, run

BASE, IMAGE = "localhost/python-slim", "localhost/clip-embed"
SUITE = "bookworm"
"""Debian 12, whose Python is 3.11."""

PACKAGES = ("python3", "python3-pip", "ca-certificates", "curl", "tini")
"""What the image takes from python:3.11-slim and from Cog's first step."""


@dataclass
class Layer:
    """One layer of the image. Sizes are in bytes; parts: unpacked bytes of each group of files."""

    command: str
    compressed: int
    parts: Counter[str] = field(default_factory=Counter)

    @property
    def unpacked(self) -> int:
        return self.parts.total()


class Podman:
    """podman with runc, and with all of its files in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.command = (
            "podman",
            f"--root={directory / 'storage'}",
            f"--runroot={directory / 'run'}",
            "--runtime=runc",
        )

    def __call__(self, *arguments: str, quiet: bool = False) -> str:
        """Print and run `podman ARGUMENTS`, and return its output."""
        return run(*self.command, *arguments, quiet=quiet)


def build_image(podman: Podman, project: Path) -> None:
    """Build IMAGE from the cog.yaml of `project`."""
    directory = podman.directory
    _import_base(podman)
    config = yaml.safe_load((project / "cog.yaml").read_text())
    [limit] = re.findall(r"@concurrent\(max=(\d+)\)", (project / "predict.py").read_text())
    context, cache = directory / "cog_build", directory / "pip"
    for folder in (context, cache):
        folder.mkdir(exist_ok=True)
    requirements = (project / config["build"]["python_requirements"]).read_text()
    (context / "requirements.txt").write_text("\n".join(image_requirements(requirements)))
    shutil.copyfile(project / "openapi.json", context / "openapi_schema.json")
    (directory / "Dockerfile").write_text(dockerfile(config, int(limit), BASE))
    print((directory / "Dockerfile").read_text())
    podman(
        "build",
        *LIMITS,
        "--network=host",
        f"--tag={IMAGE}",
        f"--file={directory / 'Dockerfile'}",
        f"--build-context=cog_build={context}",
        f"--build-context=uv={_uv(directory)}",
        f"--volume={cache}:/root/.cache/pip",
        *package_volumes(directory),
        str(project),
    )


def _import_base(podman: Podman) -> None:
    """Make BASE like python:3.11-slim: Python without bytecode, open to pip, as `python`."""
    root = podman.directory / "debian"
    make_root(SUITE, PACKAGES, root)
    for marker in (root / "usr/lib").glob("python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    for bytecode in [*(root / "usr").rglob("__pycache__")]:
        shutil.rmtree(bytecode)
    for link, target in (
        ("usr/local/bin/python", "/usr/bin/python3"),
        ("sbin/tini", "/usr/bin/tini"),
    ):
        if not (root / link).is_symlink():
            (root / link).symlink_to(target)
    archive = podman.directory / "debian.tar"
    run("tar", "-C", root, "-cf", archive, ".")
    podman("import", "--change=ENV LANG=C.UTF-8", str(archive), BASE)
    archive.unlink()


def _uv(directory: Path) -> Path:
    """Return a directory with the programs uv and uvx, from uv's wheel."""
    folder = directory / "uv"
    if not folder.exists():
        wheels = directory / "wheels"
        download = (sys.executable, "-m", "pip", "download", "--no-deps", f"--dest={wheels}")
        run(*download, f"uv=={UV_VERSION}")
        [wheel] = wheels.glob("uv-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(("/scripts/uv", "/scripts/uvx")):
                    program = folder / Path(name).name
                    program.parent.mkdir(exist_ok=True)
                    program.write_bytes(archive.read(name))
                    program.chmod(0o755)
    return folder


def installed_packages(podman: Podman) -> list[str]:
    """Return name==version of the packages in the image, with normalized names."""
    frozen = podman(
        "run", "--rm", *LIMITS, "--network=none", IMAGE, "python", "-m", "pip", "freeze"
    )
    return sorted(normalize(line) for line in frozen.splitlines() if "==" in line)


def expected_packages(project: Path) -> list[str]:
    """Return name==version of the packages that the image should have: the lock, Cog and coglet."""
    config = yaml.safe_load((project / "cog.yaml").read_text())
    requirements = (project / config["build"]["python_requirements"]).read_text()
    coglet = re.findall(r"coglet==\S+", "\n".join(config["build"]["run"]))
    pins = [*image_requirements(requirements), f"cog=={config['build']['sdk_version']}", *coglet]
    return sorted(map(normalize, pins))


def normalize(pin: str) -> str:
    """Return name==version with the name as package indexes write it."""
    name, _, version = pin.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def layers(podman: Podman) -> list[Layer]:
    """Return the image's layers as a registry has them, compressed with gzip."""
    pushed = podman.directory / "pushed"
    shutil.rmtree(pushed, ignore_errors=True)
    podman("push", "--compress", "--quiet", IMAGE, f"dir:{pushed}")
    manifest = json.loads((pushed / "manifest.json").read_text())
    config = json.loads((pushed / manifest["config"]["digest"].partition(":")[2]).read_text())
    commands = [step["created_by"] for step in config["history"] if not step.get("empty_layer")]
    measured = []
    for command, blob in zip(commands, manifest["layers"], strict=True):
        layer = Layer(command, blob["size"])
        with tarfile.open(pushed / blob["digest"].partition(":")[2], "r|gz") as archive:
            for member in archive:
                layer.parts[part_of(member.name)] += member.size
        measured.append(layer)
    shutil.rmtree(pushed)
    return measured


def part_of(path: str) -> str:
    """Return the group of files that `path` belongs to."""
    if path.endswith(".pyc"):
        return "bytecode"
    package = re.search(r"/(?:site|dist)-packages/([^/]+)", path)
    if package is None:
        return "system"
    return package[1] if package[1] in ("nvidia", "torch", "triton") else "other packages"
