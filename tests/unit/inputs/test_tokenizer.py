"""Tokenizer: ids, truncation, empty texts, malformed tokenizer files.

tests/reference/test_token_ids.py compares the ids with open_clip's.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers

from clip_embed.errors import ModelError, TextError
from clip_embed.inputs.tokenizer import END, MAX_CHARACTERS, START, Tokenizer
from tests.helpers.paths import DEMO_MODEL
from tests.helpers.sample_texts import HUGE_WHEN_REPEATED, KINDS, WORDS

CONTEXT_LENGTH = 77
TOKENIZER_JSON = (DEMO_MODEL / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(TOKENIZER_JSON, CONTEXT_LENGTH)


# --- ids ------------------------------------------------------------------------------------


def test_ids_are_int64_from_start_to_end_without_padding(tokenizer: Tokenizer) -> None:
    ids = tokenizer.tokenize("a diagram").ids
    assert ids.dtype == np.int64
    assert ids.tolist() == [49406, 320, 22697, 49407]


def test_character_that_open_clip_drops_has_no_ids(tokenizer: Tokenizer) -> None:
    """This is U+0345 alone."""
    assert tokenizer.tokenize("\u0345").ids.tolist() == [49406, 49407]


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("\ud83d", "\ufffd"),
        ("a\ud83dcat", "a\ufffdcat"),
        ("cat \udc00\ud83d dog", "cat \ufffd\ufffd dog"),
        ("a \ud83d\ude00 smiles", "a 😀 smiles"),
    ],
)
def test_lone_surrogate_is_read_as_a_replacement_character(
    text: str, same_as: str, tokenizer: Tokenizer
) -> None:
    """JSON can carry half of a surrogate pair; a whole pair is read as its character."""
    assert tokenizer.tokenize(text).ids.tolist() == tokenizer.tokenize(same_as).ids.tolist()


@pytest.mark.parametrize("escape", ["&#{};", "&#{}", "&amp;#{};"])
def test_endless_character_reference_is_read_as_a_replacement_character(
    escape: str, tokenizer: Tokenizer
) -> None:
    """Python refuses to parse a number of 5,000 digits."""
    tokens = tokenizer.tokenize("cat " + escape.format("9" * 5_000))
    assert tokens.ids.tolist() == tokenizer.tokenize("cat \ufffd").ids.tolist()


# --- truncation and end-of-text -------------------------------------------------------------


def test_text_of_75_tokens_fits(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokenize("cat " * 75)
    assert not tokens.truncated
    assert tokens.ids.tolist() == [49406, *[2368] * 75, 49407]


def test_text_of_76_tokens_is_truncated(tokenizer: Tokenizer) -> None:
    """The last token is dropped, and end-of-text is kept."""
    tokens = tokenizer.tokenize("cat " * 75 + "dog")
    assert tokens.truncated
    assert tokens.ids.tolist() == [49406, *[2368] * 75, 49407]


def test_text_of_ten_thousand_words_is_truncated(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokenize(" ".join(random.Random(0).choices(WORDS, k=10_000)))
    assert tokens.truncated
    assert len(tokens.ids) == CONTEXT_LENGTH


def test_text_is_truncated_to_the_context_length() -> None:
    tokens = Tokenizer(TOKENIZER_JSON, 16).tokenize("cat " * 20)
    assert tokens.truncated
    assert tokens.ids.tolist() == [49406, *[2368] * 14, 49407]


def test_only_the_first_characters_are_read(tokenizer: Tokenizer) -> None:
    """A text longer than MAX_CHARACTERS counts as truncated."""
    tokens = tokenizer.tokenize("cat".ljust(MAX_CHARACTERS) + "dog")
    assert tokens.ids.tolist() == [49406, 2368, 49407]
    assert tokens.truncated
    assert not tokenizer.tokenize("cat".ljust(MAX_CHARACTERS)).truncated


@pytest.mark.parametrize("piece", HUGE_WHEN_REPEATED)
def test_time_for_a_huge_text_is_bounded_by_max_characters(
    piece: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 40th of MAX_CHARACTERS is read here; tests/reference/test_token_ids.py reads all."""
    monkeypatch.setattr("clip_embed.inputs.tokenizer.MAX_CHARACTERS", MAX_CHARACTERS // 40)
    text = piece * (10 * 2**20 // len(piece.encode()))
    begin = time.process_time()
    tokens = tokenizer.tokenize(text)
    assert time.process_time() - begin < 2
    assert tokens.truncated
    assert len(tokens.ids) == CONTEXT_LENGTH


@pytest.mark.parametrize(
    ("text", "eot_index"),
    [
        ("a photo of a cat", 6),
        ("cat " * 100, 76),
        ("a cat <end_of_text> a dog", 3),
        ("cat <end_of_text> dog <end_of_text> cow", 2),
        ("<end_of_text>", 1),
    ],
)
def test_eot_index_is_the_first_end_of_text(
    text: str, eot_index: int, tokenizer: Tokenizer
) -> None:
    assert tokenizer.tokenize(text).eot_index == eot_index


# --- empty texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\n\t\u00a0\u3000\u2028", "\x00\x01\x08\x7f", "\x1b[31m", "\ufeff", "&nbsp;&#32;"],
)
def test_text_without_visible_characters_is_rejected(text: str, tokenizer: Tokenizer) -> None:
    """The error names the text and the way out."""
    with pytest.raises(TextError) as caught:
        tokenizer.tokenize(text)
    assert str(caught.value) == (
        f"text is {text!r}, which holds no visible character; send at least one word"
    )


def test_error_quotes_only_the_beginning_of_a_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError, match="holds no visible character") as caught:
        tokenizer.tokenize(" " * 1_000_000)
    assert len(str(caught.value)) < 200


# --- the tokenizer itself -------------------------------------------------------------------


def test_tokenizer_is_thread_safe(tokenizer: Tokenizer) -> None:
    """Eight threads at once get the ids that one thread gets alone."""
    rng = random.Random(8)
    texts = [kind(rng) for kind in KINDS for _ in range(3)]

    def tokenize_from(begin: int) -> list[list[int]]:
        """Tokenize all texts, `begin` first, and return the ids in the order of `texts`."""
        rotated = texts[begin:] + texts[:begin]
        ids = [tokenizer.tokenize(text).ids.tolist() for text in rotated]
        return ids[len(texts) - begin :] + ids[: len(texts) - begin]

    alone = tokenize_from(0)
    begins = range(0, len(texts), len(texts) // 8)
    with ThreadPoolExecutor(8) as threads:
        assert all(ids == alone for ids in threads.map(tokenize_from, begins))


@pytest.mark.parametrize("data", [b"", b"not a tokenizer", b"{}", b"\xff\xfe", b'{"model": 1}'])
def test_malformed_tokenizer_file_is_rejected(data: bytes) -> None:
    """The error names the file."""
    with pytest.raises(ModelError, match=r"^tokenizer\.json cannot be read: "):
        Tokenizer(data, CONTEXT_LENGTH)


@pytest.mark.parametrize(
    "specials", [[], [START], [END]], ids=["no special tokens", "no end", "no start"]
)
def test_tokenizer_without_special_tokens_is_rejected(specials: list[str]) -> None:
    other = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    other.add_special_tokens(specials)
    with pytest.raises(ModelError) as caught:
        Tokenizer(other.to_str().encode(), CONTEXT_LENGTH)
    assert str(caught.value) == (
        "tokenizer.json lacks the special tokens <start_of_text> and <end_of_text>"
    )
