"""Any string becomes the ids open_clip gives it; a text that holds nothing is refused."""

from __future__ import annotations

import html.entities
import itertools
import random
import string
import sys
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers
from open_clip.tokenizer import SimpleTokenizer

from clip_embed.errors import ModelError, TextError
from clip_embed.text import END, MAX_CHARACTERS, START, Tokenizer
from publish_weights import tokenizer_json

CONTEXT_LENGTH = 77
STRINGS_PER_KIND = 500

SENTENCES = """
A photo of an astronaut in an orange suit, smiling at night; she'll co-operate, it's a close-up.
The cat and the dog don't like coffee! We're sure (he'd say "I've 50% off" in the 1920s) that I'm
looking at 3D galaxies: deep-field reflections, f/1.8 bokeh, U.S. e-mail, antidisestablishmentarians
"""
WORDS = SENTENCES.split()
WHITESPACE = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2009\u2028\u2029\u202f\u3000"
CONTROLS = [chr(code) for code in range(32)] + [
    *(chr(code) for code in range(0x7F, 0xA0)),
    *"\ud800\udbff\udc00\udfff\xad\u200b\u200c\u200d\u200e\u200f\u202e\u2060\ufeff\ufff9\ufffb\ufffc",
    *("\x1b[31m", "\x1b[0m", "\r\n"),
]
SPECIALS = [
    *(START, END, START.upper(), END.upper(), "<Start_Of_Text>", "<end_OF_text>"),
    *("<|startoftext|>", "<|endoftext|>", "<start_of_text", "end_of_text>", "<end of text>"),
    *("&lt;end_of_text&gt;", "&amp;lt;start_of_text&amp;gt;"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_json(), CONTEXT_LENGTH)


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


# --- strings of every kind ------------------------------------------------------------------


def some(rng: random.Random, pool: str | list[str], most: int) -> list[str]:
    return rng.choices(pool, k=rng.randint(1, most))


def block(*ranges: tuple[int, int]) -> list[str]:
    """The assigned characters of some ranges of code points."""
    characters = [chr(code) for first, last in ranges for code in range(first, last + 1)]
    return [c for c in characters if unicodedata.category(c) not in ("Cn", "Cs")]


LATIN = block((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x17E), (0x180, 0x24F), (0x1E00, 0x1EFF))
MARKS = block((0x300, 0x36F))
GREEK_CYRILLIC = block((0x370, 0x52F))
EAST_ASIAN = block((0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF))
JAMO = block((0x1100, 0x11FF))
WITH_MARKS = block((0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1780, 0x17FF))
PICTOGRAMS = block((0x2600, 0x27BF), (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF))
EVERYTHING = block((0x20, sys.maxunicode))
# 'ſ' after an apostrophe has a test of its own.
EVERYTHING.remove("ſ")


def prose(rng: random.Random) -> str:
    words = [rng.choice((str, str.upper, str.title))(word) for word in some(rng, WORDS, 40)]
    return " ".join(word + rng.choice(["", "", "", ",", ".", "!", "?"]) for word in words)


def accents(rng: random.Random) -> str:
    words = ["".join(some(rng, LATIN + GREEK_CYRILLIC, 9)) for _ in range(rng.randint(1, 12))]
    words += [rng.choice(LATIN) + "".join(some(rng, MARKS, 3)) + rng.choice(WORDS)]
    form = rng.choice(["NFC", "NFD", "NFKD"])
    return unicodedata.normalize(form, " ".join(words))


def east_asian(rng: random.Random) -> str:
    return "".join(some(rng, EAST_ASIAN, 30) + some(rng, [*JAMO, " ", "。", "Ａ", "ﾊﾟ"], 6))


def scripts_with_marks(rng: random.Random) -> str:
    return " ".join("".join(some(rng, WITH_MARKS, 10)) for _ in range(rng.randint(1, 8)))


def emoji(rng: random.Random) -> str:
    def one() -> str:
        flag = "".join(chr(0x1F1E6 + rng.randrange(26)) for _ in range(2))
        joined = "\u200d".join(some(rng, PICTOGRAMS, 4))
        toned = rng.choice("👍👩🤚") + chr(0x1F3FB + rng.randrange(5))
        keycap = rng.choice("0123456789#*") + "\ufe0f\u20e3"
        return rng.choice([flag, joined, toned, keycap, "❤️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "👩‍👩‍👧‍👦"])

    return "".join(one() + rng.choice(["", " ", rng.choice(WORDS)]) for _ in range(12))


def entities(rng: random.Random) -> str:
    def one() -> str:
        named = "&" + rng.choice(list(html.entities.html5))
        code = rng.choice([rng.randrange(0x100), rng.randrange(0x3000), rng.randrange(0x120000)])
        code = 0x41 if code == 0x17F else code  # the long s has a test of its own
        entity = rng.choice([named, f"&#{code};", f"&#{code}", f"&#x{code:X};", "&", "&;", "&#;"])
        for _ in range(rng.randrange(3)):
            entity = entity.replace("&", "&amp;")
        return entity

    return "".join(one() + rng.choice(["", " ", rng.choice(WORDS)]) for _ in range(8))


def mojibake(rng: random.Random) -> str:
    text = rng.choice([prose, accents, east_asian, emoji])(rng)
    text = rng.choice(["“quoted” – it’s ", "naïve café ", "Ünïcödé "]) + text
    for _ in range(rng.randint(1, 2)):
        wrong = rng.choice(["latin-1", "cp1252", "cp1251", "mac_roman", "iso-8859-2"])
        text = text.encode().decode(wrong, "replace")
    return text


def controls(rng: random.Random) -> str:
    return "".join(word + "".join(some(rng, CONTROLS, 3)) for word in some(rng, WORDS, 15))


def whitespace(rng: random.Random) -> str:
    return "".join(word + "".join(some(rng, WHITESPACE, 5)) for word in ["", *some(rng, WORDS, 15)])


def punctuation(rng: random.Random) -> str:
    marks = [*string.punctuation, *string.digits, *"’‘“”«»…–—¿¡§¶†‰′″½²Ⅷ①٣߅_"]
    contractions = ["'s", "'T", "'re", "'VE", "'m", "'ll", "'D", "’s", "''s", "'x", "'", "s'"]
    pieces = [*some(rng, marks, 25), *some(rng, contractions, 8), *some(rng, WORDS, 8), " ", " "]
    rng.shuffle(pieces)
    return "".join(pieces)


def very_long(rng: random.Random) -> str:
    kind = rng.choice([prose, accents, east_asian, emoji, punctuation])
    return rng.choice(["", " "]).join(kind(rng) for _ in range(15))


def special_tokens(rng: random.Random) -> str:
    neighbours = ["", "", " ", "a", "1", "é", "漢", "!", "_", "<", ">", "'", "'s", "\u0301", "…"]
    return "x" + "".join(rng.choice(SPECIALS) + rng.choice(neighbours) for _ in range(5))


def anything(rng: random.Random) -> str:
    return "".join(some(rng, EVERYTHING, 40)) + rng.choice(WORDS)


def mixture(rng: random.Random) -> str:
    kinds = some(rng, [kind for kind in KINDS if kind is not mixture], 4)
    return rng.choice(["", " "]).join(kind(rng) for kind in kinds)


KINDS: list[Callable[[random.Random], str]] = [
    *(prose, accents, east_asian, scripts_with_marks, emoji, entities, mojibake, controls),
    *(whitespace, punctuation, very_long, special_tokens, anything, mixture),
]


# --- ids ------------------------------------------------------------------------------------


def is_settled(text: str, reference: SimpleTokenizer) -> bool:
    """Whether all of `text`, once cleaned, was in Unicode 14. What has been added since is a letter
    to the tables of one library and nothing yet to another's."""
    return all(unicodedata.category(c) != "Cn" for c in reference.clean_fn(text))


def check_same(text: str, tokenizer: Tokenizer, reference: SimpleTokenizer) -> None:
    """The row of ids is open_clip's, which is padded with zeros after the end-of-text."""
    ids = tokenizer.tokenize(text).ids
    row = reference(text)[0].numpy()
    padded = np.pad(ids, (0, len(row) - len(ids)))
    assert padded.tolist() == row.tolist(), f"{text!r} has other ids than in open_clip"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_ids_equal_open_clip_s(
    kind: Callable[[random.Random], str], tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    """Every string of every kind has the ids open_clip gives it, its whole row of 77."""
    rng = random.Random(kind.__name__)
    texts = (kind(rng) for _ in itertools.count())
    settled = (text for text in texts if is_settled(text, reference))
    for text in itertools.islice(settled, STRINGS_PER_KIND):
        check_same(text, tokenizer, reference)


def test_every_character_has_open_clip_s_ids() -> None:
    """No character of Unicode is a letter here and a sign there: beside a letter, a digit, a sign
    and itself, each is parted from them as in open_clip."""
    # Hanzi, Hangul and private use are each of one class throughout: a sample of them does.
    characters = [
        c
        for c in EVERYTHING
        if ord(c) % 40 == 0 or not unicodedata.name(c, "-").startswith(("CJK", "HANGUL", "-"))
    ]
    plenty = 10_000
    ours, theirs = Tokenizer(tokenizer_json(), plenty), SimpleTokenizer(context_length=plenty)
    for start in range(0, len(characters), 100):
        text = " ".join(f"x{c}1{c}!{c}{c}x" for c in characters[start : start + 100])
        assert not ours.tokenize(text).truncated
        check_same(text, ours, theirs)


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
def test_long_s_is_an_s_to_the_pattern(
    text: str, tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    """open_clip's pattern ignores case, by which 'ſ' is an 's'; so it is here."""
    check_same(text, tokenizer, reference)


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
def test_punctuation_swallows_a_special_token(
    text: str, tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    """The literal text of a special token is that token, unless punctuation touches it before."""
    check_same(text, tokenizer, reference)


def test_a_character_open_clip_drops_is_dropped(
    tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    """U+0345, the one character open_clip's pattern passes over, has no ids and parts words."""
    check_same("a!\u0345!b\u0345<end_of_text>\u0345", tokenizer, reference)
    assert tokenizer.tokenize("\u0345").ids.tolist() == [49406, 49407]


def test_ids_are_int64_from_start_to_end(tokenizer: Tokenizer) -> None:
    """Ids are a row of int64: start-of-text, the words, end-of-text, and no padding."""
    ids = tokenizer.tokenize("a diagram").ids
    assert ids.dtype == np.int64
    assert ids.tolist() == [49406, 320, 22697, 49407]


# --- truncation and the end -----------------------------------------------------------------


def test_75_tokens_fit(tokenizer: Tokenizer) -> None:
    """A text of exactly 75 tokens fits between start and end: nothing is cut."""
    tokens = tokenizer.tokenize("cat " * 75)
    assert not tokens.truncated
    assert tokens.ids.tolist() == [49406, *[2368] * 75, 49407]


def test_76_tokens_are_cut(tokenizer: Tokenizer) -> None:
    """A text of 76 tokens loses its last one, never end-of-text, and says that it was cut."""
    tokens = tokenizer.tokenize("cat " * 75 + "dog")
    assert tokens.truncated
    assert tokens.ids.tolist() == [49406, *[2368] * 75, 49407]


def test_ten_thousand_words(tokenizer: Tokenizer, reference: SimpleTokenizer) -> None:
    """10,000 words are cut where open_clip cuts them, and no error."""
    text = " ".join(random.Random(0).choices(WORDS, k=10_000))
    check_same(text, tokenizer, reference)
    assert tokenizer.tokenize(text).truncated


def test_another_context_length(reference: SimpleTokenizer) -> None:
    """A model with a shorter context has its texts cut to that length."""
    tokens = Tokenizer(tokenizer_json(), 16).tokenize("cat " * 20)
    assert tokens.truncated
    assert tokens.ids.tolist() == reference("cat " * 20, context_length=16)[0].tolist()


def test_only_the_first_characters_are_read(tokenizer: Tokenizer) -> None:
    """What lies beyond MAX_CHARACTERS is not read, and the text is said to be cut."""
    tokens = tokenizer.tokenize("cat".ljust(MAX_CHARACTERS) + "dog")
    assert tokens.ids.tolist() == [49406, 2368, 49407]
    assert tokens.truncated
    assert not tokenizer.tokenize("cat".ljust(MAX_CHARACTERS)).truncated


@pytest.mark.parametrize(
    "piece",
    [
        "word ",
        "a",
        "!",
        "x\n",
        "&amp;",
        "&#",
        "Ø³Ù",
        "â€™",
        "e\u0301",
        "!<end_of_text>",
        "👩\u200d",
    ],
)
def test_ten_megabytes_take_bounded_time(piece: str, tokenizer: Tokenizer) -> None:
    """A text of 10 MB, however awkward, is answered in seconds with its first tokens."""
    text = piece * (10 * 2**20 // len(piece.encode()))
    begin = time.monotonic()
    tokens = tokenizer.tokenize(text)
    assert time.monotonic() - begin < 10
    assert tokens.truncated
    assert len(tokens.ids) == CONTEXT_LENGTH


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a photo of a cat", 6),
        ("cat " * 100, 76),
        ("a cat <end_of_text> a dog", 3),
        ("cat <end_of_text> dog <end_of_text> cow", 2),
        ("<end_of_text>", 1),
    ],
)
def test_end_is_the_first_end_of_text(
    text: str, end: int, tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    """`end` is the first end-of-text, which is where open_clip takes a text's feature."""
    assert tokenizer.tokenize(text).end == end
    assert int(reference(text)[0].argmax()) == end


# --- texts that hold nothing, or nearly nothing ---------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\n\t\u00a0\u3000\u2028", "\x00\x01\x08\x7f", "\x1b[31m", "\ufeff", "&nbsp;&#32;"],
)
def test_a_text_that_holds_nothing_is_refused(text: str, tokenizer: Tokenizer) -> None:
    """Nothing but whitespace and controls is no text: the error shows it and says what to send."""
    with pytest.raises(TextError) as caught:
        tokenizer.tokenize(text)
    assert str(caught.value) == (
        f"text is {text!r}, which holds no visible character; send at least one word"
    )


def test_the_error_shows_only_the_beginning(tokenizer: Tokenizer) -> None:
    """The error about a million spaces does not repeat a million spaces."""
    with pytest.raises(TextError, match="holds no visible character") as caught:
        tokenizer.tokenize(" " * 1_000_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("\ud83d", "\ufffd"),
        ("a\ud83dcat", "a\ufffdcat"),
        ("cat \udc00\ud83d dog", "cat \ufffd\ufffd dog"),
        ("a \ud83d\ude00 smiles", "a 😀 smiles"),
    ],
)
def test_lone_surrogates_give_tokens(
    text: str, same_as: str, tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    """Half of a surrogate pair, which JSON can carry, is read as U+FFFD, a pair as what it is."""
    assert tokenizer.tokenize(text).ids.tolist() == tokenizer.tokenize(same_as).ids.tolist()
    check_same(text, tokenizer, reference)


@pytest.mark.parametrize("escape", ["&#{};", "&#{}", "&amp;#{};"])
def test_an_endless_character_reference_gives_tokens(escape: str, tokenizer: Tokenizer) -> None:
    """A numeric reference with more digits than Python reads names no character: U+FFFD."""
    tokens = tokenizer.tokenize("cat " + escape.format("9" * 5_000))
    assert tokens.ids.tolist() == tokenizer.tokenize("cat \ufffd").ids.tolist()


# --- the tokenizer itself -------------------------------------------------------------------


def test_eight_threads_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    """Eight threads that use one tokenizer at once get what one thread gets alone."""
    rng = random.Random(8)
    texts = [mixture(rng) for _ in range(200)]

    def rows(begin: int) -> list[list[int]]:
        turned = texts[begin:] + texts[:begin]  # each thread begins elsewhere
        ids = [tokenizer.tokenize(text).ids.tolist() for text in turned]
        return ids[len(texts) - begin :] + ids[: len(texts) - begin]

    alone = rows(0)
    with ThreadPoolExecutor(8) as threads:
        assert all(together == alone for together in threads.map(rows, range(0, 200, 25)))


@pytest.mark.parametrize("data", [b"", b"not a tokenizer", b"{}", b"\xff\xfe", b'{"model": 1}'])
def test_bytes_that_are_no_tokenizer_are_refused(data: bytes) -> None:
    """What is not a Hugging Face tokenizer fails set-up, with an error that names the file."""
    with pytest.raises(ModelError, match=r"^tokenizer\.json cannot be read: "):
        Tokenizer(data, CONTEXT_LENGTH)


@pytest.mark.parametrize("specials", [[], [START], [END]])
def test_a_tokenizer_without_special_tokens_is_refused(specials: list[str]) -> None:
    """A tokenizer that lacks one of CLIP's special tokens is not CLIP's, and set-up fails."""
    other = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    other.add_special_tokens(specials)
    with pytest.raises(ModelError) as caught:
        Tokenizer(other.to_str().encode(), CONTEXT_LENGTH)
    assert str(caught.value) == (
        "tokenizer.json lacks the special tokens <start_of_text> and <end_of_text>"
    )
