"""The service needs no package that the image leaves out.

scripts/check_image.py builds and runs the image itself, which needs root.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.image.build import expected_packages
from scripts.image.check import IMPORTS
from scripts.lib.cog_server import CogServer
from scripts.lib.debian_root import package_volumes
from tests.helpers.paths import DEMO_MODEL, PHOTOS, ROOT

HIDING = ROOT / "tests" / "helpers" / "image_packages"


@pytest.fixture(scope="module")
def image_packages() -> dict[str, str]:
    """Return variables with which Python finds the packages of the image only."""
    names = [pin.partition("==")[0] for pin in expected_packages(ROOT)]
    return {"PYTHONPATH": f"{HIDING}:{ROOT}", "IMAGE_PACKAGES": " ".join(names)}


def imports(modules: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_packages_that_are_left_out_are_hidden(image_packages: dict[str, str]) -> None:
    """Otherwise the tests below would prove nothing."""
    for module in ("triton", "huggingface_hub", "google.cloud.storage"):
        completed = imports(module, image_packages)
        assert "ModuleNotFoundError" in completed.stderr, module


def test_all_parts_can_be_imported(image_packages: dict[str, str]) -> None:
    """A plain `import torch`, every kind of Google credentials, metrics, downloads."""
    completed = imports(IMPORTS, image_packages)
    assert completed.returncode == 0, completed.stderr


def test_server_embeds_text_and_images(image_packages: dict[str, str]) -> None:
    photo = base64.b64encode(PHOTOS[0].read_bytes()).decode()
    with CogServer({"CLIP_WEIGHTS": str(DEMO_MODEL), **image_packages}) as server:
        server.wait_ready()
        for inputs in ({"text": "a cat"}, {"image": f"data:image/jpeg;base64,{photo}"}):
            assert server.predict(**inputs)["status"] == "succeeded"
        assert server.health()["status"] == "READY"


def test_pip_in_a_build_finds_what_pip_here_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings and the files that they name are mounted; a local index with the files beside it."""
    wheels, index, certificates = tmp_path / "wheels", tmp_path / "index", tmp_path / "ca.pem"
    (index / "simple").mkdir(parents=True)
    wheels.mkdir()
    certificates.touch()
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"https://pypi.example/ file://{index}/simple")
    monkeypatch.setenv("PIP_CERT", str(certificates))
    volumes = package_volumes(tmp_path)
    for path in (wheels, index, certificates):
        assert f"--volume={path}:{path}:ro" in volumes
    assert f"--volume={certificates}:/etc/ssl/certs/ca-certificates.crt:ro" in volumes
    assert f"--volume={tmp_path / 'pip.conf'}:/etc/pip.conf:ro" in volumes
    settings = (tmp_path / "pip.conf").read_text().splitlines()
    assert settings[0] == "[global]"
    assert f"find-links = {wheels}" in settings
    assert f"extra-index-url = https://pypi.example/ file://{index}/simple" in settings
