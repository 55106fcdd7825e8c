"""tests/data/tiny_model holds what publishing random:1 writes, so that it cannot become outdated.

It has format version 1, whose files lie under their own names: every test that pulls it shows that
old publications can be read.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from clip_embed.checkpoint.manifest import Manifest
from scripts.lib.storage import open_storage
from scripts.publishing.model import read_model
from scripts.publishing.publish import publish
from tests.helpers.paths import TINY, TINY_MODEL


def read_manifest(directory: Path) -> Manifest:
    return Manifest.parse((directory / "manifest.json").read_bytes(), str(directory))


def test_tiny_model_is_the_published_form_of_random_1(tmp_path: Path) -> None:
    """Weights may differ in float16's last digits: torch's random numbers depend on the CPU."""
    assert json.loads((TINY_MODEL / "manifest.json").read_bytes())["version"] == 1
    publish(read_model("random:1", str(TINY)), open_storage(str(tmp_path)))
    committed, published = read_manifest(TINY_MODEL), read_manifest(tmp_path)
    assert (committed.model, committed.source) == (published.model, published.source)
    old = {file.name: TINY_MODEL / file.stored_as for file in committed.files}
    new = {file.name: tmp_path / file.stored_as for file in published.files}
    # Version 1 lists the index, which only other tools read.
    assert old.keys() - new.keys() == {"model.safetensors.index.json"}
    for name, path in new.items():
        if name.endswith(".safetensors"):
            torch.testing.assert_close(
                safetensors.torch.load_file(old[name]),
                safetensors.torch.load_file(path),
                rtol=2e-3,
                atol=1e-6,
            )
        else:
            assert old[name].read_bytes() == path.read_bytes(), name
