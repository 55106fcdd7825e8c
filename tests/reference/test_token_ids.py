"""Token ids equal those of open_clip's tokenizer."""

from __future__ import annotations

import itertools
import random
import time
import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from clip_embed.inputs.tokenizer import Tokenizer
from scripts.publishing.tokenizer_json import tokenizer_json
from tests.helpers.sample_texts import EVERYTHING, HUGE_WHEN_REPEATED, KINDS, WORDS

CONTEXT_LENGTH = 77
TEXTS_PER_KIND = 500


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_json(), CONTEXT_LENGTH)


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


def is_in_unicode_14(text: str, reference: SimpleTokenizer) -> bool:
    """Return whether all of `text` is in Unicode 14, once cleaned.

    Libraries disagree about newer characters: some know them as letters, some not at all.
    """
    return all(unicodedata.category(c) != "Cn" for c in reference.clean_fn(text))


def assert_same_ids(text: str, tokenizer: Tokenizer, reference: SimpleTokenizer) -> None:
    """Check all ids. open_clip pads them with zeros after end-of-text."""
    ids = tokenizer.tokenize(text).ids
    expected = reference(text)[0].numpy()
    padded = np.pad(ids, (0, len(expected) - len(ids)))
    assert padded.tolist() == expected.tolist(), f"{text!r} has other ids in open_clip"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_ids_equal_open_clip_for_random_texts(
    kind: Callable[[random.Random], str], tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    rng = random.Random(kind.__name__)
    texts = (kind(rng) for _ in itertools.count())
    known = (text for text in texts if is_in_unicode_14(text, reference))
    for text in itertools.islice(known, TEXTS_PER_KIND):
        assert_same_ids(text, tokenizer, reference)


def test_ids_equal_open_clip_for_every_character() -> None:
    """Each character of Unicode is separated in the same way from a letter, a digit, a punctuation
    mark and itself."""
    # All Hanzi, all Hangul and all of private use have one category each: a sample is enough.
    characters = [
        c
        for c in EVERYTHING
        if ord(c) % 40 == 0 or not unicodedata.name(c, "-").startswith(("CJK", "HANGUL", "-"))
    ]
    context_length = 10_000
    ours = Tokenizer(tokenizer_json(), context_length)
    theirs = SimpleTokenizer(context_length=context_length)
    for start in range(0, len(characters), 100):
        text = " ".join(f"x{c}1{c}!{c}{c}x" for c in characters[start : start + 100])
        assert not ours.tokenize(text).truncated
        assert_same_ids(text, ours, theirs)


@pytest.mark.parametrize(
    "text",
    [
        "it'ſ",
        "'ſo",
        "it'&#383;",
        "<ſtart_of_text> x",
        "!<ſtart_of_text>",
        "<ſtart_of_text><end_of_text>",
    ],
)
def test_ids_equal_open_clip_for_long_s(
    text: str, tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    """open_clip's pattern ignores case, so 'ſ' counts as an 's'."""
    assert_same_ids(text, tokenizer, reference)


@pytest.mark.parametrize(
    "text",
    [
        "a<end_of_text>b",
        "!<end_of_text>",
        "x_<END_of_text>",
        "<<start_of_text>",
        "e\u0301<end_of_text>x",
        "<start_of_text><end_of_text><end_of_text>",
        "!<start_of_text><end_of_text> <end_of_text>",
        "'s<end_of_text>'s",
    ],
)
def test_ids_equal_open_clip_for_special_tokens(
    text: str, tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    """The literal text of a special token is that token, unless punctuation precedes it."""
    assert_same_ids(text, tokenizer, reference)


def test_ids_equal_open_clip_for_the_dropped_character(
    tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    """U+0345, the only character that open_clip's pattern skips, has no ids and separates words."""
    assert_same_ids("a!\u0345!b\u0345<end_of_text>\u0345", tokenizer, reference)


@pytest.mark.parametrize(
    "text", ["\ud83d", "a\ud83dcat", "cat \udc00\ud83d dog", "a \ud83d\ude00 smiles"]
)
def test_ids_equal_open_clip_for_surrogates(
    text: str, tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    assert_same_ids(text, tokenizer, reference)


def test_ids_equal_open_clip_for_ten_thousand_words(
    tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    text = " ".join(random.Random(0).choices(WORDS, k=10_000))
    assert_same_ids(text, tokenizer, reference)
    assert tokenizer.tokenize(text).truncated


def test_ids_equal_open_clip_for_another_context_length(reference: SimpleTokenizer) -> None:
    tokens = Tokenizer(tokenizer_json(), 16).tokenize("cat " * 20)
    assert tokens.truncated
    assert tokens.ids.tolist() == reference("cat " * 20, context_length=16)[0].tolist()


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a cat",
        "cat " * 100,
        "a cat <end_of_text> a dog",
        "cat <end_of_text> dog <end_of_text> cow",
        "<end_of_text>",
    ],
)
def test_eot_index_is_where_open_clip_takes_the_feature(
    text: str, tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    assert tokenizer.tokenize(text).eot_index == int(reference(text)[0].argmax())


@pytest.mark.parametrize("piece", HUGE_WHEN_REPEATED)
def test_text_of_ten_megabytes_takes_bounded_time(piece: str, tokenizer: Tokenizer) -> None:
    text = piece * (10 * 2**20 // len(piece.encode()))
    begin = time.process_time()
    tokens = tokenizer.tokenize(text)
    assert time.process_time() - begin < 10
    assert tokens.truncated
    assert len(tokens.ids) == CONTEXT_LENGTH
