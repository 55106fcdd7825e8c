"""Write a model to a storage, in the form that `weights.pull` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tqdm import tqdm

from clip_embed.checkpoint.manifest import (
    BLOCK_SIZE,
    CONFIG_NAME,
    MANIFEST_NAME,
    SHARD_SUFFIX,
    TOKENIZER_NAME,
    Manifest,
    PublishedFile,
)
from scripts.lib.storage import Storage, crc32c_base64
from scripts.publishing.model import Model
from scripts.publishing.shards import shards
from scripts.publishing.tokenizer_json import tokenizer_json

INDEX_NAME = "model.safetensors.index.json"


def publish(model: Model, storage: Storage) -> None:
    """Write all files of `model`, the manifest last. Skip files that are there already."""
    with tqdm(total=0, unit="B", unit_scale=True, desc="publish", dynamic_ncols=True) as bar:
        uploader = _Uploader(storage, bar)
        files = [
            uploader.put(CONFIG_NAME, json.dumps(model.config, indent=1).encode()),
            uploader.put(TOKENIZER_NAME, tokenizer_json()),
        ]
        weight_map: dict[str, str] = {}
        for shard in shards(model.tensors):
            files.append(uploader.put(shard.name, shard.data))
            weight_map |= dict.fromkeys(shard.tensor_names, shard.name)
        stored = sum(file.size for file in files if file.name.endswith(SHARD_SUFFIX))
        files.append(uploader.put(INDEX_NAME, _index_json(weight_map, stored)))
        # Public objects are cached for an hour by default (Cloud Storage, "Cache-Control"). An old
        # manifest names generations that no longer exist.
        document = Manifest(model.name, model.source, tuple(files)).to_json()
        uploader.put(MANIFEST_NAME, document, cache_control="no-store")
    full = sum(tensor.numel() * 4 for tensor in model.tensors.values())
    print(
        f"{storage.location}: {model.name} ({model.source}), {stored / 1e6:,.1f} MB of weights"
        f" instead of {full / 1e6:,.1f} MB in float32 ({1 - stored / full:.0%} saved);"
        f" {uploader.bytes_written / 1e6:,.1f} MB written,"
        f" {uploader.bytes_skipped / 1e6:,.1f} MB were there already"
    )


def _index_json(weight_map: Mapping[str, str], total_size: int) -> bytes:
    """Return Hugging Face's index of shards. weight_map: tensor name → shard name."""
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return json.dumps(index, indent=1).encode()


class _Uploader:
    """Writes files that are missing or different, and moves a progress bar."""

    def __init__(self, storage: Storage, bar: tqdm[None]) -> None:
        self._storage, self._bar = storage, bar
        self.bytes_written = self.bytes_skipped = 0

    def put(self, name: str, data: bytes, *, cache_control: str | None = None) -> PublishedFile:
        """Write `data` unless it is there already. Return its entry in the manifest."""
        self._bar.total += len(data)
        begin = self._bar.n
        checksum = crc32c_base64(data)
        present = self._storage.version(name)
        if present is not None and present.crc32c == checksum:
            generation = present.generation
            self.bytes_skipped += len(data)
            self._bar.update(len(data))
        else:
            generation = self._storage.write(
                name,
                data,
                cache_control=cache_control,
                on_progress=lambda sent: self._move_bar(begin + sent),
            )
            self.bytes_written += len(data)
        return PublishedFile(name, len(data), checksum, generation, _block_checksums(data))

    def _move_bar(self, position: int) -> None:
        self._bar.update(position - self._bar.n)


def _block_checksums(data: bytes) -> tuple[str, ...]:
    view = memoryview(data)
    starts = range(0, len(data), BLOCK_SIZE)
    return tuple(crc32c_base64(view[start : start + BLOCK_SIZE]) for start in starts)
