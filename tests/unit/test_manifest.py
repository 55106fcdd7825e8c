"""The manifest: strict parsing, error messages, checksums."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from clip_embed.checkpoint.manifest import (
    BLOCK_SIZE,
    Manifest,
    PublishedFile,
    decode_checksum,
    encode_checksum,
)
from clip_embed.errors import ManifestError

LOCATION = "gs://bucket/clip"
CHECKSUM = "AAAAAA=="


def published(name: str, size: int, checksum: str = CHECKSUM) -> PublishedFile:
    blocks = (checksum,) * -(-size // BLOCK_SIZE)
    return PublishedFile(name, f"stored-{name}", size, checksum, blocks)


def make_manifest() -> Manifest:
    """Return a manifest of the form that publishing writes; its second shard has three blocks."""
    return Manifest(
        model="ViT-L-14-quickgelu",
        source="openai",
        files=(
            published("open_clip_config.json", 512),
            published("tokenizer.json", BLOCK_SIZE),
            published("model-00001-of-00002.safetensors", 1, "q83vEg=="),
            published("model-00002-of-00002.safetensors", 2 * BLOCK_SIZE + 1),
            published("model.safetensors.index.json", 0),
        ),
    )


def make_document() -> dict[str, Any]:
    loaded = json.loads(make_manifest().to_json())
    assert isinstance(loaded, dict)
    return loaded


def parse_error(data: bytes) -> str:
    """Return the message of the ManifestError that `data` raises."""
    with pytest.raises(ManifestError) as caught:
        Manifest.parse(data, LOCATION)
    return str(caught.value)


def test_parse_inverts_to_json() -> None:
    assert Manifest.parse(make_manifest().to_json(), LOCATION) == make_manifest()


def test_manifest_of_version_1_is_read() -> None:
    """Its files are stored under their own names; their generations are ignored."""
    document = make_document() | {"version": 1}
    for file in document["files"]:
        del file["stored_as"]
        file["generation"] = "1700000000000001"
    manifest = Manifest.parse(json.dumps(document).encode(), LOCATION)
    assert [file.stored_as for file in manifest.files] == [
        file.name for file in make_manifest().files
    ]


def test_shards_are_the_safetensors_files() -> None:
    """`shards` keeps the order of the manifest."""
    assert [file.name for file in make_manifest().shards] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d.update(new=1), id="top level"),
        pytest.param(lambda d: d["files"][0].update(new=1), id="file"),
    ],
)
def test_parse_ignores_unknown_fields(change: Callable[[Any], None]) -> None:
    """A later publisher may add fields without changing the format version."""
    changed = make_document()
    change(changed)
    assert Manifest.parse(json.dumps(changed).encode(), LOCATION) == make_manifest()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>404</html>", id="a web page"),
        pytest.param(b"\xff\xfe\x00garbage", id="not text"),
        pytest.param(make_manifest().to_json()[:-20], id="truncated"),
        pytest.param(b"[" * 1_000_000, id="huge nesting"),
        pytest.param(b'{"version": ' + b"9" * 10_000 + b"}", id="huge number"),
    ],
)
def test_parse_rejects_invalid_json(data: bytes) -> None:
    """The error names the object and the way out."""
    message = parse_error(data)
    assert message.startswith(f"{LOCATION}/manifest.json is not valid JSON (")
    assert message.endswith("; publish the model again with scripts/publish_weights.py")


def set_at(*path: Any) -> Callable[[Any], Callable[[Any], None]]:
    """Return a function of a value, which returns a change that sets `path` to that value."""

    def to(value: Any) -> Callable[[Any], None]:
        def change(changed: Any) -> None:
            for step in path[:-1]:
                changed = changed[step]
            changed[path[-1]] = value

        return change

    return to


def deleted(*path: Any) -> Callable[[Any], None]:
    """Return a change that deletes `path`."""

    def change(changed: Any) -> None:
        for step in path[:-1]:
            changed = changed[step]
        del changed[path[-1]]

    return change


def list_a_file_twice(changed: Any) -> None:
    changed["files"].append(changed["files"][2])


def remove_shards(changed: Any) -> None:
    del changed["files"][2:4]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(
            set_at("format")("other"), "not a manifest of this service", id="other format"
        ),
        pytest.param(deleted("format"), "not a manifest of this service", id="no format"),
        pytest.param(
            set_at("version")(3), "has format version 3; this service", id="newer version"
        ),
        pytest.param(set_at("version")("1"), "has format version '1'", id="version a string"),
        pytest.param(set_at("version")(True), "has format version True", id="version a bool"),
        pytest.param(deleted("version"), "has format version None", id="no version"),
        pytest.param(set_at("block_size")(4096), "blocks of 4096 bytes", id="block size"),
        pytest.param(deleted("block_size"), "blocks of None bytes", id="no block size"),
        pytest.param(deleted("files"), "expected list, found None", id="no files"),
        pytest.param(
            set_at("files")({"a": 1}), "expected list, found {'a': 1}", id="files not a list"
        ),
        pytest.param(set_at("files", 0)("x"), "expected dict, found 'x'", id="file not a dict"),
        pytest.param(set_at("model")(None), "expected str, found None", id="no model"),
        pytest.param(set_at("source")(7), "expected str, found 7", id="source not a string"),
        pytest.param(deleted("files", 0), "not list open_clip_config.json", id="no config"),
        pytest.param(deleted("files", 1), "not list tokenizer.json", id="no tokenizer"),
        pytest.param(
            set_at("files", 1)(dataclasses.asdict(published("tokenizer.json", BLOCK_SIZE + 1))),
            "tokenizer.json with at most one block",
            id="tokenizer too large",
        ),
        pytest.param(
            set_at("files", 0)(dataclasses.asdict(published("open_clip_config.json", 0))),
            "not list open_clip_config.json",
            id="config empty",
        ),
        pytest.param(remove_shards, "lists no .safetensors file", id="no shards"),
        pytest.param(list_a_file_twice, "lists a file twice", id="duplicate file"),
        pytest.param(
            set_at("files", 2, "size")(BLOCK_SIZE + 1), "do not make", id="too few blocks"
        ),
        pytest.param(set_at("files", 3, "size")(1), "do not make", id="too many blocks"),
        pytest.param(set_at("files", 2, "size")(-1), "do not make", id="negative size"),
        pytest.param(
            lambda changed: changed["files"][2].update(size=-1, blocks=[]),
            "-1 bytes do not make 0 blocks",
            id="negative size without blocks",
        ),
        pytest.param(
            set_at("files", 2, "size")(True), "expected int, found True", id="size a bool"
        ),
        pytest.param(set_at("files", 2, "size")(1.0), "expected int, found 1.0", id="size a float"),
        pytest.param(
            set_at("files", 2, "size")("1"), "expected int, found '1'", id="size a string"
        ),
        pytest.param(deleted("files", 2, "size"), "expected int, found None", id="no size"),
        pytest.param(set_at("files", 2, "crc32c")("zzz"), "not a crc32c", id="checksum not base64"),
        pytest.param(
            set_at("files", 2, "crc32c")("AA*AAA=="),
            "not a crc32c",
            id="checksum with a wrong character",
        ),
        pytest.param(
            set_at("files", 2, "crc32c")("ÄÄÄÄÄÄ=="), "not a crc32c", id="checksum not ASCII"
        ),
        pytest.param(set_at("files", 2, "crc32c")("AAAA"), "not a crc32c", id="checksum short"),
        pytest.param(set_at("files", 2, "crc32c")("AAAAAAA="), "not a crc32c", id="checksum long"),
        pytest.param(
            set_at("files", 2, "crc32c")("AAAAAB=="),
            "not a crc32c",
            id="checksum with unused bits set",
        ),
        pytest.param(
            set_at("files", 2, "crc32c")(None), "expected str, found None", id="no checksum"
        ),
        pytest.param(set_at("files", 3, "blocks", 1)("AAAA"), "not a crc32c", id="block checksum"),
        pytest.param(
            set_at("files", 3, "blocks", 1)(0),
            "expected str, found 0",
            id="block checksum not a string",
        ),
        pytest.param(
            set_at("files", 3, "blocks")(None), "expected list, found None", id="no blocks"
        ),
        pytest.param(
            set_at("files", 3, "stored_as")(9), "expected str, found 9", id="stored as a number"
        ),
        pytest.param(
            set_at("files", 3, "stored_as")("../a"), "is not a plain file name", id="stored outside"
        ),
    ],
)
def test_parse_rejects_an_inconsistent_manifest(
    change: Callable[[Any], None], problem: str
) -> None:
    """The error names the object, the problem and the way out."""
    changed = make_document()
    change(changed)
    message = parse_error(json.dumps(changed).encode())
    assert message.startswith(f"{LOCATION}/manifest.json")
    assert problem in message
    assert message.endswith("publish the model again with scripts/publish_weights.py")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        ".",
        "/abs",
        "a/b",
        "a\\b",
        "",
        " ",
        "a b",
        "a\n",
        "a\0",
        "-x",
        ".x",
        "ä",
        "%2e",
    ],
)
def test_parse_rejects_a_name_that_is_not_one_path_segment(name: str) -> None:
    """A name cannot point outside the prefix, or have a special meaning in a URL."""
    changed = make_document()
    changed["files"][2]["name"] = name
    message = parse_error(json.dumps(changed).encode())
    assert f"{name!r} is not a plain file name" in message
    assert message.startswith(f"{LOCATION}/manifest.json")


@pytest.mark.parametrize("field", ["version", "block_size", "model", "files"])
def test_parse_rejects_deeply_nested_values(field: str) -> None:
    """The error fits into a log line at every depth, those near Python's limit included."""
    for depth in (10, *range(900, 1000), 5000):
        text = json.dumps(make_document() | {field: "DEEP"})
        nested = text.replace('"DEEP"', "[" * depth + "]" * depth)
        assert len(parse_error(nested.encode())) < 400


# --- checksums ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 0x12345678, 2**32 - 1])
def test_decode_checksum_inverts_encode_checksum(value: int) -> None:
    assert decode_checksum(encode_checksum(value)) == value


def test_encode_checksum_uses_the_format_of_cloud_storage() -> None:
    """A crc32c is written as base64 of its four bytes, most significant first."""
    assert encode_checksum(0xE3069283) == "4waSgw=="
