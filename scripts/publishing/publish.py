"""Write a model to a storage, in the form that `weights.pull` reads.

The name of every object that a service reads depends on its content, and the manifest, which names
these objects, is written last. So a prefix can be pulled at every moment: a pull that began before
reads the old objects, a later one the new ones. `scripts/remove_old_weights.py` removes old ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from tqdm import tqdm

from clip_embed.checkpoint.manifest import (
    BLOCK_SIZE,
    CONFIG_NAME,
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Manifest,
    PublishedFile,
)
from scripts.lib.storage import Storage, crc32c_base64
from scripts.publishing.errors import report
from scripts.publishing.model import Model
from scripts.publishing.shards import shards
from scripts.publishing.tokenizer_json import tokenizer_json

INDEX_NAME = "model.safetensors.index.json"
_CONTENT_NAME = re.compile(r".+-[0-9a-f]{16}\.safetensors")


def publish(model: Model, storage: Storage) -> None:
    """Write all files of `model`, the manifest last. Skip files that are there already.

    Raises AccessError or OSError, and FileExistsError if another model's files would be replaced.
    """
    config, tokenizer = json.dumps(model.config, indent=1).encode(), tokenizer_json()
    _check_free(storage, {CONFIG_NAME: config, TOKENIZER_NAME: tokenizer})
    with tqdm(total=0, unit="B", unit_scale=True, desc="publish", dynamic_ncols=True) as bar:
        uploader = _Uploader(storage, bar)
        files = [uploader.put_file(CONFIG_NAME, config)]
        files.append(uploader.put_file(TOKENIZER_NAME, tokenizer))
        weight_map: dict[str, str] = {}
        stored = 0
        for shard in shards(model.tensors):
            file = uploader.put_file(shard.name, shard.data)
            files.append(file)
            stored += file.size
            weight_map |= dict.fromkeys(shard.tensor_names, file.stored_as)
        # For other tools, under the names that they know. The service reads none of these.
        uploader.put(CONFIG_NAME, config)
        uploader.put(TOKENIZER_NAME, tokenizer)
        uploader.put(INDEX_NAME, _index_json(weight_map, stored))
        # Public objects are cached for an hour by default (Cloud Storage, "Cache-Control").
        document = Manifest(model.name, model.source, tuple(files)).to_json()
        uploader.put(MANIFEST_NAME, document, cache_control="no-store")
    full = sum(tensor.numel() * 4 for tensor in model.tensors.values())
    saved = f"{1 - stored / full:.0%}"
    instead = f" instead of {full / 1e6:,.1f} MB in float32 ({saved} saved)"
    report(
        f"{storage.location}: {model.name} ({model.source}), {stored / 1e6:,.1f} MB of weights"
        f"{'' if saved in ('0%', '-0%') else instead};"
        f" {uploader.bytes_written / 1e6:,.1f} MB written,"
        f" {uploader.bytes_skipped / 1e6:,.1f} MB were there already"
    )


def _check_free(storage: Storage, contents: Mapping[str, bytes]) -> None:
    """Check that no file of another tool would be replaced, such as the index of transformers.

    contents: what is to be written beside the index, by name. Raises FileExistsError.
    """
    if storage.version(MANIFEST_NAME) is not None:
        return
    others = [name for name, data in contents.items() if not _is_ours(storage, name, data)]
    if storage.version(INDEX_NAME) is not None and not _is_our_index(storage.read(INDEX_NAME)):
        others.append(INDEX_NAME)
    if others:
        raise FileExistsError(
            f"{storage.location} holds another model's {' and '.join(others)}, which publishing"
            " would replace; choose an empty directory or prefix"
        )


def _is_ours(storage: Storage, name: str, data: bytes) -> bool:
    """Tell whether the file is missing, holds `data`, or is of an interrupted publication.

    That has written the same content under a content name before.
    """
    present = storage.version(name)
    if present is None or present.crc32c == crc32c_base64(data):
        return True
    return storage.version(content_name(name, storage.read(name))) is not None


def _is_our_index(data: bytes) -> bool:
    """Tell whether an index names objects as publishing does."""
    try:
        names = json.loads(data)["weight_map"].values()
        return all(_CONTENT_NAME.fullmatch(name) for name in names)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def content_name(name: str, data: bytes) -> str:
    """Return the name under which `data` is stored: `name` with a hash before its suffix."""
    path = PurePosixPath(name)
    return f"{path.stem}-{hashlib.sha256(data).hexdigest()[:16]}{path.suffix}"


def _index_json(weight_map: Mapping[str, str], total_size: int) -> bytes:
    """Return Hugging Face's index of shards. weight_map: tensor name → name of the object."""
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return json.dumps(index, indent=1).encode()


class _Uploader:
    """Writes files that are missing or different, and moves a progress bar."""

    def __init__(self, storage: Storage, bar: tqdm[None]) -> None:
        self._storage, self._bar = storage, bar
        self.bytes_written = self.bytes_skipped = 0

    def put_file(self, name: str, data: bytes) -> PublishedFile:
        """Write a file of the model under a name of its content. Return its entry."""
        stored_as = content_name(name, data)
        checksum = self.put(stored_as, data)
        return PublishedFile(name, stored_as, len(data), checksum, _block_checksums(data))

    def put(self, name: str, data: bytes, *, cache_control: str | None = None) -> str:
        """Write `data` as `name` unless it is there already. Return its crc32c."""
        self._bar.total += len(data)
        begin = self._bar.n
        checksum = crc32c_base64(data)
        present = self._storage.version(name)
        if present is not None and present.crc32c == checksum:
            self.bytes_skipped += len(data)
            self._bar.update(len(data))
        else:
            self._storage.write(
                name,
                data,
                cache_control=cache_control,
                on_progress=lambda sent: self._move_bar(begin + sent),
            )
            self.bytes_written += len(data)
        return checksum

    def _move_bar(self, position: int) -> None:
        self._bar.update(position - self._bar.n)


def _block_checksums(data: bytes) -> tuple[str, ...]:
    view = memoryview(data)
    starts = range(0, len(data), BLOCK_SIZE)
    return tuple(crc32c_base64(view[start : start + BLOCK_SIZE]) for start in starts)
