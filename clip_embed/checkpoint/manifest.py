"""The manifest of a published model: file names, sizes and checksums.

Knows the format, and nothing of networks, threads or torch. `scripts/publish_weights.py` writes it,
`weights.py` reads it. A *block* is 8 MiB of a file, the unit of download and of verification.
"""

from __future__ import annotations

import base64
import json
import re
import reprlib
from dataclasses import asdict, dataclass
from typing import Any

from clip_embed.errors import ManifestError

BLOCK_SIZE = 8 * 2**20
"""Bytes per block; the last block of a file is shorter."""

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "clip-embed-weights"
MANIFEST_VERSION = 2
"""In version 1 every file was stored under its own name, and its generation was listed."""

MANIFEST_MAX_BYTES = 4 * 2**20
CONFIG_NAME = "open_clip_config.json"
TOKENIZER_NAME = "tokenizer.json"
SMALL_NAMES = (CONFIG_NAME, TOKENIZER_NAME)
SHARD_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class PublishedFile:
    """One file of a published model.

    name: as other tools know it. stored_as: the name of the object, which depends on its content,
    so that no publication overwrites another one. size: bytes. crc32c: of the whole file, in base64
    as Cloud Storage shows it. blocks: crc32c of each block, also in base64.
    """

    name: str
    stored_as: str
    size: int
    crc32c: str
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of a prefix. model: open_clip's name of the architecture. source: the SOURCE that
    `publish_weights.py` was given."""

    model: str
    source: str
    files: tuple[PublishedFile, ...]

    @property
    def shards(self) -> tuple[PublishedFile, ...]:
        """The safetensors files."""
        return tuple(file for file in self.files if file.name.endswith(SHARD_SUFFIX))

    def to_json(self) -> bytes:
        """Return the manifest as JSON, for `parse`."""
        document = {
            "format": MANIFEST_FORMAT,
            "version": MANIFEST_VERSION,
            "block_size": BLOCK_SIZE,
            **asdict(self),
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, location: str) -> Manifest:
        """Parse and validate a manifest. location: of the prefix, for messages.

        Raises ManifestError unless it is complete, consistent and of this format version.
        """
        where = f"{location}/{MANIFEST_NAME}"
        again = "publish the model again with scripts/publish_weights.py"
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{where} is not valid JSON ({error}); {again}") from error
        if not isinstance(document, dict) or document.get("format") != MANIFEST_FORMAT:
            raise ManifestError(f"{where} is not a manifest of this service; {again}")
        version, block_size = document.get("version"), document.get("block_size")
        if type(version) is not int or not 1 <= version <= MANIFEST_VERSION:
            raise ManifestError(
                f"{where} has format version {reprlib.repr(version)}; this service reads versions 1"
                f" to {MANIFEST_VERSION}: update the service, or {again}"
            )
        if block_size != BLOCK_SIZE:
            raise ManifestError(f"{where} has blocks of {reprlib.repr(block_size)} bytes; {again}")
        try:
            files = tuple(_parse_file(entry) for entry in _expect(document.get("files"), list))
            manifest = cls(
                model=_expect(document.get("model"), str),
                source=_expect(document.get("source"), str),
                files=files,
            )
        except (TypeError, ValueError) as error:
            raise ManifestError(f"{where}: {error}; {again}") from error
        sizes = {file.name: file.size for file in files}
        for name in SMALL_NAMES:
            if not 0 < sizes.get(name, 0) <= BLOCK_SIZE:
                raise ManifestError(f"{where} does not list {name} with at most one block; {again}")
        if len(sizes) != len(files):
            raise ManifestError(f"{where} lists a file twice; {again}")
        if not manifest.shards:
            raise ManifestError(f"{where} lists no {SHARD_SUFFIX} file; {again}")
        return manifest


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, found {reprlib.repr(value)}")
    return value


def _parse_file(entry: Any) -> PublishedFile:
    entry = _expect(entry, dict)
    name = _expect(entry.get("name"), str)
    stored_as = _expect(entry.get("stored_as", name), str)
    for each in (name, stored_as):
        # One path segment, so that nothing outside the prefix can be named.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", each):
            raise ValueError(f"{each!r:.80} is not a plain file name")
    size = _expect(entry.get("size"), int)
    blocks = tuple(_expect(entry.get("blocks"), list))
    for checksum in (entry.get("crc32c"), *blocks):
        decode_checksum(_expect(checksum, str))
    if size < 0 or len(blocks) != -(-size // BLOCK_SIZE):
        raise ValueError(f"{name}: {size} bytes do not make {len(blocks)} blocks")
    return PublishedFile(name, stored_as, size, entry["crc32c"], blocks)


def encode_checksum(value: int) -> str:
    """Return a crc32c as Cloud Storage writes it: base64 of four big-endian bytes."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def decode_checksum(text: str) -> int:
    """Invert `encode_checksum`. Raises ValueError if `text` is not such a checksum."""
    try:
        value = int.from_bytes(base64.b64decode(text, validate=True), "big")
        if encode_checksum(value) == text:
            return value
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{text!r:.80} is not a crc32c")


@dataclass(frozen=True)
class Block:
    """The verified bytes of one block. offset: of `data`, in bytes from the start of `file`."""

    file: PublishedFile
    offset: int
    data: memoryview
