"""What strangers send is right or refused, whatever the bytes: the targets of fuzz.py, with inputs
that Hypothesis makes and hurtful ones made worse."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

import fuzz
import hurtful

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
    fuzz.manifest(data)


@settings(max_examples=300, deadline=None)
@given(some.dictionaries(some.text(), TENSOR | JSON, max_size=3) | JSON, some.integers(0, 80))
def test_a_header_tiles_its_file_or_is_refused(header: object, size: int) -> None:
    """Tensors lie one after the other to the end of the file, or there is a ManifestError."""
    text = json.dumps(header).encode()
    fuzz.header(size.to_bytes(2, "little") + len(text).to_bytes(8, "little") + text)


FILES = some.sampled_from([hurtful.plain(extension) for extension in hurtful.FORMATS])


@some.composite
def mutated(draw: some.DrawFn) -> bytes:
    """An intact file of some format with a piece changed, cut out, put in twice or left off."""
    data = draw(FILES)
    for _ in range(draw(some.integers(1, 4))):
        start = draw(some.integers(0, len(data)) | some.integers(0, min(400, len(data))))
        piece = data[start : start + draw(some.integers(0, 64))]
        rest = data[start + len(piece) :]
        other = draw(some.just(b"") | some.just(piece * 2) | some.binary(max_size=64))
        data = data[:start] + draw(some.sampled_from([other, other, piece + other])) + rest
        data = data[: draw(some.just(len(data)) | some.integers(0, len(data)))]
    return data


@settings(max_examples=300, deadline=None)
@given(mutated() | some.binary(max_size=200))
def test_a_file_is_pixels_or_refused(data: bytes) -> None:
    """Any bytes are a square of pixels or an ImageError that says what to send."""
    fuzz.image(data)


PIECES = some.sampled_from(
    [case.content[:300] for case in hurtful.texts()] + ["<start_of_text>", "&#", "&amp;", "\u0345"]
)
STRINGS = some.text(some.characters(codec=None, exclude_categories=[]), max_size=200)


@settings(max_examples=300, deadline=None)
@given(some.lists(STRINGS | PIECES, max_size=6).map("".join))
def test_a_text_is_ids_or_refused(string: str) -> None:
    """Any string, lone surrogates included, is ids from start to end, or a TextError."""
    fuzz.text(string.encode("utf-8", "surrogatepass"))


WORDS = some.lists(some.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=9), min_size=1)


@settings(max_examples=200, deadline=None)
@given(WORDS, some.integers(1, 99), WORDS)
def test_what_is_cut_off_changes_nothing(words: list[str], times: int, more: list[str]) -> None:
    """What fits keeps its ids whatever follows; what does not fit is as if it were not there."""
    tokens = fuzz.TOKENIZER.tokenize(" ".join(words * times))
    longer = fuzz.TOKENIZER.tokenize(" ".join(words * times + more))
    if tokens.truncated:
        assert longer.truncated
        assert longer.ids.tolist() == tokens.ids.tolist()
    else:
        assert longer.ids[: tokens.end].tolist() == tokens.ids[: tokens.end].tolist()


@pytest.mark.parametrize("target", ["image", "text"])
def test_hurtful_inputs_made_worse(target: str) -> None:
    """A fixed number of executions of each target, as the fuzzer does them, from its seeds."""
    chance, seeds = random.Random(target), list(fuzz.seeds(target))
    for _ in range(400):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
        fuzz.TARGETS[target](bytes(data))
