"""tests/data/tiny_model is what publishing random:1 writes, so that it cannot become outdated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from scripts.lib.storage import open_storage
from scripts.publishing.model import read_model
from scripts.publishing.publish import publish
from tests.helpers.paths import TINY, TINY_MODEL


def read_manifest(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "manifest.json").read_bytes()))


def test_tiny_model_is_the_published_form_of_random_1(tmp_path: Path) -> None:
    """Weights may differ in float16's last digits: torch's random numbers depend on the CPU."""
    publish(read_model("random:1", str(TINY)), open_storage(str(tmp_path)))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in TINY_MODEL.iterdir()}
    for name in names - {"manifest.json"}:
        committed, published = TINY_MODEL / name, tmp_path / name
        if name.endswith(".safetensors"):
            torch.testing.assert_close(
                safetensors.torch.load_file(committed),
                safetensors.torch.load_file(published),
                rtol=2e-3,
                atol=1e-6,
            )
        else:
            assert committed.read_bytes() == published.read_bytes(), name
    committed, published = read_manifest(TINY_MODEL), read_manifest(tmp_path)
    for manifest in (committed, published):
        for file in manifest["files"]:
            if file["name"].endswith(".safetensors"):
                del file["crc32c"], file["blocks"]
    assert committed == published
