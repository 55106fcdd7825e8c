"""What is published is read strictly: a manifest or a shard that is not right in every detail is
refused, with a sentence that says where and what to do."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch

from clip_embed.errors import ManifestError
from clip_embed.manifest import (
    BLOCK_SIZE,
    Manifest,
    PublishedFile,
    TensorInfo,
    decode_checksum,
    encode_checksum,
    parse_safetensors_header,
)

WHERE = "gs://bucket/clip"
SUM = "AAAAAA=="


def manifest() -> Manifest:
    """One as publishing makes it; the second shard is three blocks long."""
    return Manifest(
        model="ViT-L-14-quickgelu",
        source="openai",
        files=(
            PublishedFile("open_clip_config.json", 512, SUM, "1700000000000001", (SUM,)),
            PublishedFile("tokenizer.json", BLOCK_SIZE, SUM, "1700000000000002", (SUM,)),
            PublishedFile("model-00001-of-00002.safetensors", 1, "q83vEg==", None, ("q83vEg==",)),
            PublishedFile(
                "model-00002-of-00002.safetensors", 2 * BLOCK_SIZE + 1, SUM, "9", (SUM, SUM, SUM)
            ),
            PublishedFile("model.safetensors.index.json", 0, SUM, None, ()),
        ),
    )


def document() -> dict[str, Any]:
    loaded = json.loads(manifest().to_json())
    assert isinstance(loaded, dict)
    return loaded


def refusal(data: bytes) -> str:
    """The sentence with which `data` is refused."""
    with pytest.raises(ManifestError) as caught:
        Manifest.parse(data, WHERE)
    return str(caught.value)


# --- the manifest ---------------------------------------------------------------------------


def test_what_is_written_is_read_back() -> None:
    """`parse` gives back the manifest that `to_json` wrote, field for field."""
    assert Manifest.parse(manifest().to_json(), WHERE) == manifest()


def test_shards_are_the_safetensors_files() -> None:
    """`shards` are the files that hold tensors, in the manifest's order, and no others."""
    assert [file.name for file in manifest().shards] == [
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
def test_unknown_fields_are_ignored(change: Callable[[Any], None]) -> None:
    """Fields that a later publisher adds without changing the version are no reason to refuse."""
    changed = document()
    change(changed)
    assert Manifest.parse(json.dumps(changed).encode(), WHERE) == manifest()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>404</html>", id="a web page"),
        pytest.param(b"\xff\xfe\x00garbage", id="not text"),
        pytest.param(manifest().to_json()[:-20], id="truncated"),
        pytest.param(b"[" * 1_000_000, id="huge nesting"),
        pytest.param(b'{"version": ' + b"9" * 10_000 + b"}", id="huge number"),
    ],
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    """Bytes that are not JSON, or cannot be read as such, are refused naming the object."""
    sentence = refusal(data)
    assert sentence.startswith(f"{WHERE}/manifest.json is not valid JSON (")
    assert sentence.endswith("; publish the model again with scripts/publish_weights.py")


def set_at(*path: Any) -> Callable[[Any], Callable[[Any], None]]:
    """A change of a document that puts a value at `path`."""

    def to(value: Any) -> Callable[[Any], None]:
        def change(changed: Any) -> None:
            for step in path[:-1]:
                changed = changed[step]
            changed[path[-1]] = value

        return change

    return to


def without(*path: Any) -> Callable[[Any], None]:
    """A change of a document that removes what stands at `path`."""

    def change(changed: Any) -> None:
        for step in path[:-1]:
            changed = changed[step]
        del changed[path[-1]]

    return change


def listed_twice(changed: Any) -> None:
    changed["files"].append(changed["files"][2])


def no_shards(changed: Any) -> None:
    del changed["files"][2:4]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(set_at("format")("other"), "not a manifest of this service", id="format"),
        pytest.param(without("format"), "not a manifest of this service", id="no format"),
        pytest.param(set_at("version")(2), "has format version 2; this service", id="newer"),
        pytest.param(set_at("version")("1"), "has format version '1'", id="version as text"),
        pytest.param(set_at("version")(True), "has format version True", id="version a bool"),
        pytest.param(without("version"), "has format version None", id="no version"),
        pytest.param(set_at("block_size")(4096), "blocks of 4096 bytes", id="block size"),
        pytest.param(without("block_size"), "blocks of None bytes", id="no block size"),
        pytest.param(without("files"), "None stands where a list", id="no files"),
        pytest.param(set_at("files")({"a": 1}), "{'a': 1} stands where a list", id="files a dict"),
        pytest.param(set_at("files", 0)("x"), "'x' stands where a dict", id="a file a text"),
        pytest.param(set_at("model")(None), "None stands where a str", id="no model"),
        pytest.param(set_at("source")(7), "7 stands where a str", id="source a number"),
        pytest.param(without("files", 0), "not list a open_clip_config.json", id="no config"),
        pytest.param(without("files", 1), "not list a tokenizer.json", id="no tokenizer"),
        pytest.param(
            set_at("files", 1)(
                dataclasses.asdict(
                    PublishedFile("tokenizer.json", BLOCK_SIZE + 1, SUM, None, (SUM, SUM))
                )
            ),
            "tokenizer.json of at most one block",
            id="tokenizer too large",
        ),
        pytest.param(
            set_at("files", 0)(
                dataclasses.asdict(PublishedFile("open_clip_config.json", 0, SUM, None, ()))
            ),
            "not list a open_clip_config.json",
            id="config empty",
        ),
        pytest.param(no_shards, "lists no .safetensors file", id="no shards"),
        pytest.param(listed_twice, "lists a file twice", id="listed twice"),
        pytest.param(set_at("files", 2, "size")(BLOCK_SIZE + 1), "fit together", id="few blocks"),
        pytest.param(set_at("files", 3, "size")(1), "do not fit together", id="many blocks"),
        pytest.param(set_at("files", 2, "size")(-1), "do not fit together", id="negative size"),
        pytest.param(
            lambda changed: changed["files"][2].update(size=-1, blocks=[]),
            "-1 bytes and 0 blocks do not fit together",
            id="negative size without blocks",
        ),
        pytest.param(set_at("files", 2, "size")(True), "True stands where a int", id="size a bool"),
        pytest.param(set_at("files", 2, "size")(1.0), "1.0 stands where a int", id="size a float"),
        pytest.param(set_at("files", 2, "size")("1"), "'1' stands where a int", id="size a text"),
        pytest.param(without("files", 2, "size"), "None stands where a int", id="no size"),
        pytest.param(set_at("files", 2, "crc32c")("zzz"), "not a crc32c", id="checksum not base64"),
        pytest.param(set_at("files", 2, "crc32c")("AA*AAA=="), "not a crc32c", id="alphabet"),
        pytest.param(set_at("files", 2, "crc32c")("ÄÄÄÄÄÄ=="), "not a crc32c", id="not ASCII"),
        pytest.param(set_at("files", 2, "crc32c")("AAAA"), "not a crc32c", id="checksum short"),
        pytest.param(set_at("files", 2, "crc32c")("AAAAAAA="), "not a crc32c", id="checksum long"),
        pytest.param(set_at("files", 2, "crc32c")("AAAAAB=="), "not a crc32c", id="unused bits"),
        pytest.param(set_at("files", 2, "crc32c")(None), "None stands where", id="no checksum"),
        pytest.param(set_at("files", 3, "blocks", 1)("AAAA"), "not a crc32c", id="block checksum"),
        pytest.param(set_at("files", 3, "blocks", 1)(0), "0 stands where a str", id="block number"),
        pytest.param(
            set_at("files", 3, "blocks")(None), "None stands where a list", id="no blocks"
        ),
        pytest.param(set_at("files", 3, "generation")(9), "9 stands where", id="generation number"),
        pytest.param(set_at("files", 3, "generation")("x"), "is not a number", id="generation"),
        pytest.param(set_at("files", 3, "generation")("9&alt=json"), "is not a number", id="query"),
    ],
)
def test_an_inconsistent_manifest_is_refused(change: Callable[[Any], None], says: str) -> None:
    """A manifest of another kind or version, or whose parts do not fit together, is refused with
    what is wrong, where, and what to do."""
    changed = document()
    change(changed)
    sentence = refusal(json.dumps(changed).encode())
    assert sentence.startswith(f"{WHERE}/manifest.json")
    assert says in sentence
    assert sentence.endswith("publish the model again with scripts/publish_weights.py")


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
def test_a_name_is_one_plain_path_segment(name: str) -> None:
    """No name can point outside the published prefix, or mean something else in a URL."""
    changed = document()
    changed["files"][2]["name"] = name
    sentence = refusal(json.dumps(changed).encode())
    assert f"{name!r} is not a plain file name" in sentence
    assert sentence.startswith(f"{WHERE}/manifest.json")


@pytest.mark.parametrize("field", ["version", "block_size", "model", "files"])
def test_values_nested_to_any_depth_are_refused_in_a_sentence(field: str) -> None:
    """However deep a value is nested, about the interpreter's limit too, the answer is a
    ManifestError short enough for a log line."""
    for depth in (10, *range(900, 1000), 5000):
        text = json.dumps(document() | {field: "DEEP"})
        nested = text.replace('"DEEP"', "[" * depth + "]" * depth)
        assert len(refusal(nested.encode())) < 400


# --- checksums ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 0x12345678, 2**32 - 1])
def test_checksums_read_back(value: int) -> None:
    """`decode_checksum` is the inverse of `encode_checksum`."""
    assert decode_checksum(encode_checksum(value)) == value


def test_checksums_are_written_as_cloud_storage_writes_them() -> None:
    """A crc32c is base64 of its four bytes, most significant first, as Cloud Storage shows it."""
    assert encode_checksum(0xE3069283) == "4waSgw=="


# --- the header of a shard ------------------------------------------------------------------


def good_shard() -> bytes:
    return safetensors.torch.save(
        {
            "wide": torch.ones(3, 5),
            "half": torch.ones(7, dtype=torch.float16),
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 4),
        },
        metadata={"format": "pt"},
    )


def shard(entries: Any, body: int, raw: bytes | None = None) -> bytes:
    """A file with `entries` (or `raw`) as header, padded as safetensors does, and `body` bytes."""
    header = json.dumps(entries).encode() if raw is None else raw
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + bytes(body)


def entry(dtype: Any, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def parse(data: bytes) -> list[TensorInfo]:
    return parse_safetensors_header(memoryview(data)[:BLOCK_SIZE], len(data), "m.safetensors")


def test_a_header_says_where_each_tensor_lies() -> None:
    """Every tensor of a file that safetensors wrote is found with its dtype, shape and bytes."""
    data = good_shard()
    found = {info.name: info for info in parse(data)}
    source = safetensors.torch.load(data)
    assert found.keys() == source.keys()
    for name, tensor in source.items():
        info = found[name]
        assert info.dtype == {torch.float16: "F16", torch.float32: "F32"}[tensor.dtype]
        assert info.shape == tuple(tensor.shape)
        assert data[info.start : info.end] == tensor.numpy().tobytes()


def test_tensors_come_in_file_order() -> None:
    """Tensors are listed in the order of their bytes, however the header lists them."""
    late, empty, early = entry("F32", [2], 4, 12), entry("F32", [0], 4, 4), entry("F32", [1], 0, 4)
    data = shard({"late": late, "empty": empty, "early": early}, 12)
    assert [info.name for info in parse(data)] == ["early", "empty", "late"]


def test_a_shard_may_hold_nothing() -> None:
    """A file without tensors is well formed."""
    assert parse(safetensors.torch.save({})) == []


def test_only_the_first_block_is_needed() -> None:
    """The header is read from the file's first block, however large the file is."""
    data = shard({"a": entry("F16", [3 * BLOCK_SIZE // 2], 0, 3 * BLOCK_SIZE)}, 3 * BLOCK_SIZE)
    assert [info.shape for info in parse(data)] == [(3 * BLOCK_SIZE // 2,)]


GOOD = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"1234567", "too short", id="short"),
        pytest.param(shard({"a": GOOD}, 8)[:20], "longer than the first block", id="cut header"),
        pytest.param(b"\xff" * 64, "longer than the first block", id="header longer than block"),
        pytest.param(shard(None, 0, b"{..."), "malformed", id="not JSON"),
        pytest.param(shard(None, 0, b"\xff\xff"), "malformed", id="not text"),
        pytest.param(shard(None, 0, b"[" * 100_000), "malformed", id="huge nesting"),
        pytest.param(shard([1], 0), "malformed", id="a list"),
        pytest.param(shard({"a": 1}, 0), "malformed", id="an entry a number"),
        pytest.param(shard({"a": {"dtype": "F32"}}, 8), "malformed", id="no shape"),
        pytest.param(
            shard({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, 8),
            "malformed",
            id="one offset",
        ),
        pytest.param(shard({"a": entry(["F32"], [2], 0, 8)}, 8), "malformed", id="dtype a list"),
        pytest.param(shard({"a": entry("F32", ["2"], 0, 8)}, 8), "malformed", id="side a text"),
        pytest.param(shard({"a": entry("F32", [2.0], 0, 8)}, 8), "malformed", id="side a float"),
        pytest.param(
            shard({"a": entry("F32", [float("inf")], 0, 8)}, 8), "malformed", id="side infinite"
        ),
        pytest.param(shard({"a": entry("F32", [True], 0, 4)}, 4), "malformed", id="side a bool"),
        pytest.param(shard({"a": entry("F32", 2, 0, 8)}, 8), "malformed", id="shape a number"),
        pytest.param(shard({"a": entry("F32", [2], "0", 8)}, 8), "malformed", id="offset a text"),
        pytest.param(
            shard({"a": entry("BF16", [4], 0, 8)}, 8), "a is 'BF16'; F16 and F32", id="dtype"
        ),
        pytest.param(shard({"a": entry("F32", [3], 0, 8)}, 8), "do not fit", id="wrong shape"),
        pytest.param(shard({"a": entry("F16", [2], 0, 8)}, 8), "do not fit", id="wrong item"),
        pytest.param(shard({"a": entry("F32", [-1, -2], 0, 8)}, 8), "do not fit", id="negative"),
        pytest.param(shard({"a": entry("F32", [2], 8, 0)}, 8), "do not fit", id="backwards"),
        pytest.param(
            shard({"a": GOOD, "b": entry("F32", [2], 12, 20)}, 20), "b does not begin", id="gap"
        ),
        pytest.param(
            shard({"a": GOOD, "b": entry("F32", [2], 4, 12)}, 12), "b does not begin", id="overlap"
        ),
        pytest.param(
            shard({"a": GOOD, "b": entry("F32", [2], 0, 8)}, 8), "does not begin", id="shared bytes"
        ),
        pytest.param(
            shard({"a": entry("F32", [2], -8, 0)}, 0), "does not begin", id="before the data"
        ),
        pytest.param(
            shard({"a": entry("F16", [1], 0, 2), "b": entry("F32", [1], 2, 6)}, 6),
            "b does not begin",
            id="misaligned",
        ),
        pytest.param(shard({"a": GOOD}, 9), "its tensors end at byte", id="trailing bytes"),
        pytest.param(shard({"a": GOOD}, 7), "its tensors end at byte", id="missing bytes"),
        pytest.param(shard({"a": GOOD, "__metadata__": {}}, 12), "end at byte", id="metadata"),
    ],
)
def test_a_malformed_shard_is_refused(data: bytes, says: str) -> None:
    """A header that does not account for every byte of its file, once and aligned, is refused
    naming the shard and what to do."""
    with pytest.raises(ManifestError, match=rf"^m\.safetensors: .*{re.escape(says)}") as caught:
        parse(data)
    assert str(caught.value).endswith("; publish the model again")
