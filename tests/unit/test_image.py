"""The packages and the steps of the image, as Cog and scripts/check_image.py read them.

tests/service/test_image.py runs the service with these packages only, and scripts/check_image.py
builds and runs the image itself.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.image.build import expected_packages, normalize, part_of
from scripts.image.dockerfile import dockerfile, image_requirements
from scripts.lib.cog_server import image_environment
from scripts.lib.debian_root import require_tools
from tests.helpers.paths import ROOT

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cog.yaml").read_text())
REQUIREMENTS = (ROOT / CONFIG["build"]["python_requirements"]).read_text()


# Elsewhere torch brings no CUDA libraries, as on a Mac.
cuda_build = pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None, reason="torch is a CPU build here"
)


def test_requirements_are_pins_that_cog_passes_on() -> None:
    """Cog's reader drops markers, hashes and extras, and installs itself and coglet."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.splitlines()]
    pins = [line for line in lines if line]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[^\s;\[]+", pin)] == []
    assert image_requirements(REQUIREMENTS) == pins


def test_pip_adds_no_dependencies() -> None:
    """Otherwise the packages that the lock leaves out would be installed."""
    assert "PIP_NO_DEPS=1" in CONFIG["environment"]


@cuda_build
def test_each_package_that_is_left_out_has_a_reason() -> None:
    """The dependencies that the lock lacks are those of the table in docs/image.md."""
    page = (ROOT / "docs" / "image.md").read_text()
    table = page.partition("\n## What is left out\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    pinned = set(map(name_of, expected_packages(ROOT)))
    assert with_dependencies(pinned) - pinned == named


def with_dependencies(names: set[str]) -> set[str]:
    """Return the packages, and all that they require on Linux, as they are installed here."""
    found: set[str] = set()
    pending = [(name, "") for name in names]
    while pending:
        name, extra = pending.pop()
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            required = canonicalize_name(requirement.name)
            if needed and required not in found:
                pending += [(required, wanted) for wanted in ("", *requirement.extras)]
    return found


@cuda_build
def test_tests_run_with_the_versions_of_the_image() -> None:
    """Packages of requirements.txt, Cog and coglet; coglet is pinned although Cog pins none."""
    expected = expected_packages(ROOT)
    installed = [f"{name}=={importlib.metadata.version(name)}" for name in map(name_of, expected)]
    assert sorted(map(normalize, installed)) == expected
    assert {"cog", "coglet"} <= set(map(name_of, expected))


def name_of(pin: str) -> str:
    return pin.partition("==")[0]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("numpy==2.4.6             # via torch", ["numpy==2.4.6"]),
        ("# a comment", []),
        ("", []),
        ("tomli==2.0 ; python_version < '3.11'", ["tomli==2.0"]),
        ("cog==0.23.1", []),
        ("coglet==0.23.1", []),
    ],
)
def test_requirements_are_read_like_cog_reads_them(line: str, kept: list[str]) -> None:
    assert image_requirements(line) == kept


def test_dockerfile_has_the_steps_of_cog_in_their_order() -> None:
    text = dockerfile(CONFIG, 64, "a-base")
    steps = [
        "FROM a-base",
        "PIP_NO_DEPS=1",
        "pip install --cache-dir /root/.cache/pip -r /tmp/requirements.txt",
        f"cog=={CONFIG['build']['sdk_version']}",
        *(f"RUN {command}" for command in CONFIG["build"]["run"]),
        "COG_MAX_CONCURRENCY=64",
        "COPY . /src",
    ]
    positions = [text.index(step) for step in steps]
    assert positions == sorted(positions)


def test_settings_of_pip_and_uv_do_not_reach_servers_outside_of_the_image() -> None:
    """A test or command that installs something would install no dependencies."""
    variables = image_environment()
    assert [name for name in variables if name.startswith(("PIP_", "UV_"))] == []
    assert {"TOKIO_WORKER_THREADS", "COG_MAX_CONCURRENCY"} <= set(variables)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("usr/local/lib/python3.11/site-packages/nvidia/cudnn/lib/libcudnn.so.9", "nvidia"),
        ("usr/local/lib/python3.11/dist-packages/torch/lib/libtorch.so", "torch"),
        ("usr/local/lib/python3.11/site-packages/torch/__pycache__/x.cpython-311.pyc", "bytecode"),
        ("usr/local/lib/python3.11/site-packages/numpy/core.so", "other packages"),
        ("usr/bin/curl", "system"),
    ],
)
def test_sizes_are_grouped_by_part(path: str, part: str) -> None:
    assert part_of(path) == part


def test_missing_tools_are_a_sentence_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["scripts/check_image.py"])
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(SystemExit, match=r"^check_image.py needs no-such-tool: apt install no-"):
        require_tools("sh", "no-such-tool")
    require_tools("sh")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match=r"^check_image.py needs root on Debian or Ubuntu$"):
        require_tools("sh")
