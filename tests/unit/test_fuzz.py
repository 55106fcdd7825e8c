"""Random input from outside gives a valid result or the documented error: the targets of
tests/helpers/fuzz.py, with inputs that Hypothesis generates.

300 examples each, 30 with `scripts/test --quick` (tests/conftest.py).
"""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as some

from tests.helpers import fuzz
from tests.helpers.bad_inputs import files, texts

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
        "stored_as": some.sampled_from(["a", "tokenizer.json", "../a"]) | JSON,
        "blocks": some.lists(some.just("AAAAAA=="), max_size=3) | JSON,
    }
)
MANIFEST = some.fixed_dictionaries(
    {
        "format": some.just("clip-embed-weights"),
        "version": some.sampled_from([1, 2]) | JSON,
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
FILES = some.sampled_from([files.plain(extension) for extension in files.FORMATS])
PIECES = some.sampled_from(
    [case.content[:300] for case in texts.cases()] + ["<start_of_text>", "&#", "&amp;", "\u0345"]
)
STRINGS = some.text(some.characters(codec=None, exclude_categories=[]), max_size=200)
WORDS = some.lists(some.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=9), min_size=1)


@given(some.binary(max_size=200) | MANIFEST.map(lambda value: json.dumps(value).encode()))
def test_any_manifest_is_consistent_or_rejected(data: bytes) -> None:
    fuzz.manifest(data)


@given(some.dictionaries(some.text(), TENSOR | JSON, max_size=3) | JSON, some.integers(0, 80))
def test_any_header_tiles_its_file_or_is_rejected(header: object, size: int) -> None:
    text = json.dumps(header).encode()
    fuzz.header(size.to_bytes(2, "little") + len(text).to_bytes(8, "little") + text)


@some.composite
def mutated_files(draw: some.DrawFn) -> bytes:
    """Return a valid file with some parts changed, removed or repeated, perhaps truncated."""
    data = draw(FILES)
    for _ in range(draw(some.integers(1, 4))):
        start = draw(some.integers(0, len(data)) | some.integers(0, min(400, len(data))))
        part = data[start : start + draw(some.integers(0, 64))]
        rest = data[start + len(part) :]
        other = draw(some.just(b"") | some.just(part * 2) | some.binary(max_size=64))
        data = data[:start] + draw(some.sampled_from([other, other, part + other])) + rest
        data = data[: draw(some.just(len(data)) | some.integers(0, len(data)))]
    return data


@given(mutated_files() | some.binary(max_size=200))
def test_any_file_becomes_pixels_or_is_rejected(data: bytes) -> None:
    fuzz.image(data)


@given(some.lists(STRINGS | PIECES, max_size=6).map("".join))
def test_any_text_becomes_ids_or_is_rejected(string: str) -> None:
    """Lone surrogates are included."""
    fuzz.text(string.encode("utf-8", "surrogatepass"))


@given(WORDS, some.integers(1, 99), WORDS)
def test_words_beyond_the_context_length_change_nothing(
    words: list[str], times: int, more: list[str]
) -> None:
    """Words that fit keep their ids when others follow."""
    tokens = fuzz.TOKENIZER.tokenize(" ".join(words * times))
    longer = fuzz.TOKENIZER.tokenize(" ".join(words * times + more))
    if tokens.truncated:
        assert longer.truncated
        assert longer.ids.tolist() == tokens.ids.tolist()
    else:
        assert longer.ids[: tokens.eot_index].tolist() == tokens.ids[: tokens.eot_index].tolist()
