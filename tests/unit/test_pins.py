"""pyproject.toml, constraints.txt, requirements.txt and .venv have the same versions."""

from __future__ import annotations

import importlib.metadata
import re
import sysconfig
import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# pip and the project itself are not pinned there.
NOT_LOCKED = {"pip", "clip-embed"}


def read(name: str) -> Iterator[Requirement]:
    """Read the lines of a requirements file."""
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line)


def versions(name: str) -> dict[str, str]:
    """Return the versions that a requirements file has for this platform."""
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in read(name)
        if pin.marker is None or pin.marker.evaluate()
    }


def direct_pins() -> list[Requirement]:
    groups = PYPROJECT["dependency-groups"].values()
    lines = [line for group in groups for line in group if isinstance(line, str)]
    return [Requirement(line) for line in [*PYPROJECT["project"]["dependencies"], *lines]]


def test_every_dependency_is_pinned_and_locked() -> None:
    locked = {canonicalize_name(pin.name): str(pin.specifier) for pin in read("constraints.txt")}
    for pin in direct_pins():
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin
        assert locked[canonicalize_name(pin.name)] == str(pin.specifier), "run scripts/lock"


def test_installed_packages_are_the_locked_ones() -> None:
    locked = versions("constraints.txt")
    # Not sys.path: other tests add packages that ray and setuptools contain.
    for package in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")]):
        name = canonicalize_name(package.name)
        if name not in NOT_LOCKED:
            # A CPU build of torch has a local version: 2.14.1+cpu.
            assert package.version.partition("+")[0] == locked.get(name), f"{name}: scripts/setup"


def test_the_image_has_what_the_service_imports() -> None:
    """Cog installs itself and coglet, which cog.yaml pins."""
    image = {canonicalize_name(pin.name) for pin in read("requirements.txt")}
    lines = PYPROJECT["project"]["dependencies"]
    service = {canonicalize_name(Requirement(line).name) for line in lines}
    assert service - image == {"cog", "coglet"}


@pytest.mark.parametrize("group", PYPROJECT["dependency-groups"])
def test_setup_knows_every_group(group: str) -> None:
    script = (ROOT / "scripts" / "setup").read_text()
    assert re.search(rf"\| {group}\b|\b{group} \|", script)
