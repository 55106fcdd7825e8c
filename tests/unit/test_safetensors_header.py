"""Parsing of a safetensors header."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import safetensors.torch
import torch

from clip_embed.checkpoint.manifest import BLOCK_SIZE
from clip_embed.checkpoint.safetensors_header import TensorInfo, parse_safetensors_header
from clip_embed.errors import ManifestError


def make_shard() -> bytes:
    return safetensors.torch.save(
        {
            "wide": torch.ones(3, 5),
            "half": torch.ones(7, dtype=torch.float16),
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 4),
        },
        metadata={"format": "pt"},
    )


def file_with_header(entries: Any, body: int, raw: bytes | None = None) -> bytes:
    """Return a file of a header and `body` bytes. raw: the header's bytes instead of `entries`."""
    header = json.dumps(entries).encode() if raw is None else raw
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + bytes(body)


def entry(dtype: Any, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def parse(data: bytes) -> list[TensorInfo]:
    return parse_safetensors_header(memoryview(data)[:BLOCK_SIZE], len(data), "m.safetensors")


def test_parse_returns_dtype_shape_and_bytes_of_each_tensor() -> None:
    data = make_shard()
    found = {info.name: info for info in parse(data)}
    source = safetensors.torch.load(data)
    assert found.keys() == source.keys()
    for name, tensor in source.items():
        info = found[name]
        assert info.dtype == {torch.float16: "F16", torch.float32: "F32"}[tensor.dtype]
        assert info.shape == tuple(tensor.shape)
        assert data[info.start : info.end] == tensor.numpy().tobytes()


def test_parse_returns_tensors_in_file_order() -> None:
    """The order of the entries in the header does not matter."""
    late, empty, early = entry("F32", [2], 4, 12), entry("F32", [0], 4, 4), entry("F32", [1], 0, 4)
    data = file_with_header({"late": late, "empty": empty, "early": early}, 12)
    assert [info.name for info in parse(data)] == ["early", "empty", "late"]


def test_parse_accepts_a_file_without_tensors() -> None:
    assert parse(safetensors.torch.save({})) == []


def test_parse_needs_only_the_first_block() -> None:
    data = file_with_header(
        {"a": entry("F16", [3 * BLOCK_SIZE // 2], 0, 3 * BLOCK_SIZE)}, 3 * BLOCK_SIZE
    )
    assert [info.shape for info in parse(data)] == [(3 * BLOCK_SIZE // 2,)]


INTACT = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param(b"1234567", "too short", id="shorter than 8 bytes"),
        pytest.param(
            file_with_header({"a": INTACT}, 8)[:20],
            "longer than the first block",
            id="truncated header",
        ),
        pytest.param(b"\xff" * 64, "longer than the first block", id="header longer than block"),
        pytest.param(file_with_header(None, 0, b"{..."), "malformed", id="not JSON"),
        pytest.param(file_with_header(None, 0, b"\xff\xff"), "malformed", id="not text"),
        pytest.param(file_with_header(None, 0, b"[" * 100_000), "malformed", id="huge nesting"),
        pytest.param(file_with_header([1], 0), "malformed", id="a list"),
        pytest.param(file_with_header({"a": 1}, 0), "malformed", id="entry not a dict"),
        pytest.param(file_with_header({"a": {"dtype": "F32"}}, 8), "malformed", id="no shape"),
        pytest.param(
            file_with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, 8),
            "malformed",
            id="one offset",
        ),
        pytest.param(
            file_with_header({"a": entry(["F32"], [2], 0, 8)}, 8),
            "malformed",
            id="dtype not a string",
        ),
        pytest.param(
            file_with_header({"a": entry("F32", ["2"], 0, 8)}, 8),
            "malformed",
            id="dimension a string",
        ),
        pytest.param(
            file_with_header({"a": entry("F32", [2.0], 0, 8)}, 8),
            "malformed",
            id="dimension a float",
        ),
        pytest.param(
            file_with_header({"a": entry("F32", [float("inf")], 0, 8)}, 8),
            "malformed",
            id="dimension infinite",
        ),
        pytest.param(
            file_with_header({"a": entry("F32", [True], 0, 4)}, 4),
            "malformed",
            id="dimension a bool",
        ),
        pytest.param(
            file_with_header({"a": entry("F32", 2, 0, 8)}, 8), "malformed", id="shape not a list"
        ),
        pytest.param(
            file_with_header({"a": entry("F32", [2], "0", 8)}, 8),
            "malformed",
            id="offset not an integer",
        ),
        pytest.param(
            file_with_header({"a": entry("BF16", [4], 0, 8)}, 8),
            "a is 'BF16'; F16 and F32",
            id="unsupported dtype",
        ),
        pytest.param(
            file_with_header({"a": entry("F32", [3], 0, 8)}, 8), "do not fit", id="shape too large"
        ),
        pytest.param(
            file_with_header({"a": entry("F16", [2], 0, 8)}, 8), "do not fit", id="item too small"
        ),
        pytest.param(
            file_with_header({"a": entry("F32", [-1, -2], 0, 8)}, 8),
            "do not fit",
            id="negative dimensions",
        ),
        pytest.param(
            file_with_header({"a": entry("F32", [2], 8, 0)}, 8), "do not fit", id="negative size"
        ),
        pytest.param(
            file_with_header({"a": INTACT, "b": entry("F32", [2], 12, 20)}, 20),
            "b does not begin",
            id="gap",
        ),
        pytest.param(
            file_with_header({"a": INTACT, "b": entry("F32", [2], 4, 12)}, 12),
            "b does not begin",
            id="overlap",
        ),
        pytest.param(
            file_with_header({"a": INTACT, "b": entry("F32", [2], 0, 8)}, 8),
            "does not begin",
            id="shared bytes",
        ),
        pytest.param(
            file_with_header({"a": entry("F32", [2], -8, 0)}, 0),
            "does not begin",
            id="offset before the data",
        ),
        pytest.param(
            file_with_header({"a": entry("F16", [1], 0, 2), "b": entry("F32", [1], 2, 6)}, 6),
            "b does not begin",
            id="misaligned",
        ),
        pytest.param(
            file_with_header({"a": INTACT}, 9), "its tensors end at byte", id="trailing bytes"
        ),
        pytest.param(
            file_with_header({"a": INTACT}, 7), "its tensors end at byte", id="missing bytes"
        ),
        pytest.param(
            file_with_header({"a": INTACT, "__metadata__": {}}, 12),
            "end at byte",
            id="trailing bytes and metadata",
        ),
    ],
)
def test_parse_rejects_a_malformed_file(data: bytes, problem: str) -> None:
    """Tensors must fill the file without gap or overlap, and be aligned to their items."""
    with pytest.raises(ManifestError, match=rf"^m\.safetensors: .*{re.escape(problem)}") as caught:
        parse(data)
    assert str(caught.value).endswith("; publish the model again")
