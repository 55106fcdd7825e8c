"""Write, upload and compare a published model of two shards, for the tests of `weights.pull`.

The manifest is written here, independently of `clip_embed.checkpoint.manifest`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import google_crc32c
import httpx
import numpy as np
import pytest
import safetensors.numpy

import weights
from clip_embed.errors import WeightsError

BLOCK = 8 * 2**20
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SMALL = ("open_clip_config.json", "tokenizer.json")
INDEX = "model.safetensors.index.json"
MANIFEST = "manifest.json"


def checksum(data: bytes) -> str:
    """Return the crc32c of `data` in base64."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def manifest_of(directory: Path, generations: Mapping[str, str]) -> bytes:
    """Return a manifest of the files in `directory`."""
    files = []
    for path in sorted(directory.iterdir()):
        if path.name != MANIFEST:
            data = path.read_bytes()
            blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
            files.append(
                {
                    "name": path.name,
                    "size": len(data),
                    "crc32c": checksum(data),
                    "generation": generations.get(path.name),
                    "blocks": [checksum(block) for block in blocks],
                }
            )
    document = {
        "format": "clip-embed-weights",
        "version": 1,
        "block_size": BLOCK,
        "model": "none",
        "source": "random",
        "files": files,
    }
    return json.dumps(document).encode()


def write_model(directory: Path) -> None:
    """Write shards of 40 MB (5 blocks) and 9 MB (2 blocks), small files and the manifest."""
    noise = np.random.default_rng(0)
    halves = noise.standard_normal(20_000_000, np.float32).astype(np.float16)
    (directory / FIRST).write_bytes(safetensors.numpy.save({"a": halves}))
    floats = noise.standard_normal(2_250_000, np.float32)
    (directory / SECOND).write_bytes(safetensors.numpy.save({"b": floats}))
    (directory / SMALL[0]).write_bytes(b'{"model_cfg": {}}')
    (directory / SMALL[1]).write_bytes(b'{"model": {}}' * 1000)
    (directory / INDEX).write_bytes(b"{}")
    (directory / MANIFEST).write_bytes(manifest_of(directory, {}))


class EmulatorBucket:
    """The emulator's bucket `models`."""

    def __init__(self, emulator: str) -> None:
        self._url = f"{emulator}/upload/storage/v1/b/models/o"

    def put(self, name: str, data: bytes) -> str:
        """Upload an object; return its generation."""
        parameters = {"uploadType": "media", "name": name}
        response = httpx.post(self._url, params=parameters, content=data, timeout=60)
        response.raise_for_status()
        return str(response.json()["generation"])

    def put_model(self, directory: Path, prefix: str) -> str:
        """Upload a published model, with the generations in its manifest; return its location."""
        manifest = json.loads((directory / MANIFEST).read_bytes())
        for file in manifest["files"]:
            name = file["name"]
            file["generation"] = self.put(f"{prefix}/{name}", (directory / name).read_bytes())
        self.put(f"{prefix}/{MANIFEST}", json.dumps(manifest).encode())
        return f"gs://models/{prefix}"


def collect(pull: weights.Pull) -> dict[str, bytes]:
    """Return the shards and small files of a pull. Fails if a block arrives twice."""
    shards: dict[str, dict[int, bytes]] = {}
    for block in pull.blocks():
        blocks = shards.setdefault(block.file.name, {})
        assert block.offset not in blocks, f"{block.file.name}, {block.offset} arrived twice"
        blocks[block.offset] = bytes(block.data)
    files = {
        name: b"".join(blocks[offset] for offset in sorted(blocks))
        for name, blocks in shards.items()
    }
    return files | {name: pull.file(name) for name in SMALL}


def pull_error(location: str | None) -> WeightsError:
    """Return the error that a pull of `location` ends in."""
    with weights.pull(location) as pull, pytest.raises(WeightsError) as caught:
        collect(pull)
    return caught.value


def published(directory: Path) -> dict[str, bytes]:
    """Return the files that a pull of `directory` must deliver."""
    return {name: (directory / name).read_bytes() for name in (FIRST, SECOND, *SMALL)}
