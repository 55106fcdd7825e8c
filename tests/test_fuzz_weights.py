"""What is parsed from the network is right or refused, whatever the bytes."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as some

import fuzz_weights

JSON = some.recursive(
    some.none() | some.booleans() | some.integers(-2, 2**70) | some.floats() | some.text(),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(), inner, max_size=4),
    max_leaves=12,
)
SIZES = some.integers(-2, 3) | some.integers(8388606, 8388610) | JSON
FILE = some.fixed_dictionaries(
    {
        "name": some.sampled_from(
            ["open_clip_config.json", "tokenizer.json", "a.safetensors", "../a", "/a"]
        )
        | JSON,
        "size": SIZES,
        "crc32c": some.sampled_from(["AAAAAA==", "AAAA"]) | JSON,
        "generation": some.none() | some.just("1") | JSON,
        "blocks": some.lists(some.just("AAAAAA=="), max_size=3) | JSON,
    }
)
MANIFEST = some.fixed_dictionaries(
    {
        "format": some.just("clip-embed-weights"),
        "version": some.just(1) | JSON,
        "block_size": some.just(8 * 2**20) | JSON,
        "model": some.just("none") | JSON,
        "source": some.just("random") | JSON,
        "files": some.lists(FILE, max_size=4) | JSON,
    }
)
TENSOR = some.fixed_dictionaries(
    {
        "dtype": some.sampled_from(["F16", "F32", "I8"]) | JSON,
        "shape": some.lists(some.integers(-2, 4), max_size=3) | JSON,
        "data_offsets": some.lists(some.integers(-2, 64), min_size=1, max_size=3) | JSON,
    }
)


@settings(max_examples=300, deadline=None)
@given(some.binary(max_size=200) | MANIFEST.map(lambda value: json.dumps(value).encode()))
def test_a_manifest_is_consistent_or_refused(data: bytes) -> None:
    """No bytes make the reader raise anything but ManifestError, or name what lies elsewhere."""
    fuzz_weights.manifest(data)


@settings(max_examples=300, deadline=None)
@given(some.dictionaries(some.text(), TENSOR | JSON, max_size=3) | JSON, some.integers(0, 80))
def test_a_header_tiles_its_file_or_is_refused(header: object, size: int) -> None:
    """Tensors lie one after the other to the end of the file, or there is a ManifestError."""
    text = json.dumps(header).encode()
    fuzz_weights.header(size.to_bytes(2, "little") + len(text).to_bytes(8, "little") + text)
