"""Generate random texts of many kinds: scripts, emoji, entities, mojibake, special tokens."""

from __future__ import annotations

import html.entities
import random
import string
import sys
import unicodedata
from collections.abc import Callable

from clip_embed.inputs.tokenizer import END, START

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


def pick(rng: random.Random, pool: str | list[str], most: int) -> list[str]:
    """Return 1 to `most` items of a pool."""
    return rng.choices(pool, k=rng.randint(1, most))


def assigned(*ranges: tuple[int, int]) -> list[str]:
    """Return the assigned characters of some ranges of code points."""
    characters = [chr(code) for first, last in ranges for code in range(first, last + 1)]
    return [c for c in characters if unicodedata.category(c) not in ("Cn", "Cs")]


LATIN = assigned((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x17E), (0x180, 0x24F), (0x1E00, 0x1EFF))
MARKS = assigned((0x300, 0x36F))
GREEK_CYRILLIC = assigned((0x370, 0x52F))
EAST_ASIAN = assigned((0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF))
JAMO = assigned((0x1100, 0x11FF))
WITH_MARKS = assigned((0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1780, 0x17FF))
PICTOGRAMS = assigned((0x2600, 0x27BF), (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF))
# Nothing between these ranges is assigned in Unicode 14.
EVERYTHING = assigned((0x20, 0x323AF), (0xE0000, sys.maxunicode))
# 'ſ' after an apostrophe has a test of its own.
EVERYTHING.remove("ſ")


def prose(rng: random.Random) -> str:
    words = [rng.choice((str, str.upper, str.title))(word) for word in pick(rng, WORDS, 40)]
    return " ".join(word + rng.choice(["", "", "", ",", ".", "!", "?"]) for word in words)


def accents(rng: random.Random) -> str:
    words = ["".join(pick(rng, LATIN + GREEK_CYRILLIC, 9)) for _ in range(rng.randint(1, 12))]
    words += [rng.choice(LATIN) + "".join(pick(rng, MARKS, 3)) + rng.choice(WORDS)]
    form = rng.choice(["NFC", "NFD", "NFKD"])
    return unicodedata.normalize(form, " ".join(words))


def east_asian(rng: random.Random) -> str:
    return "".join(pick(rng, EAST_ASIAN, 30) + pick(rng, [*JAMO, " ", "。", "Ａ", "ﾊﾟ"], 6))


def scripts_with_marks(rng: random.Random) -> str:
    return " ".join("".join(pick(rng, WITH_MARKS, 10)) for _ in range(rng.randint(1, 8)))


def emoji(rng: random.Random) -> str:
    def one() -> str:
        flag = "".join(chr(0x1F1E6 + rng.randrange(26)) for _ in range(2))
        joined = "\u200d".join(pick(rng, PICTOGRAMS, 4))
        toned = rng.choice("👍👩🤚") + chr(0x1F3FB + rng.randrange(5))
        keycap = rng.choice("0123456789#*") + "\ufe0f\u20e3"
        return rng.choice([flag, joined, toned, keycap, "❤️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "👩‍👩‍👧‍👦"])

    return "".join(one() + rng.choice(["", " ", rng.choice(WORDS)]) for _ in range(12))


def entities(rng: random.Random) -> str:
    def one() -> str:
        named = "&" + rng.choice(list(html.entities.html5))
        code = rng.choice([rng.randrange(0x100), rng.randrange(0x3000), rng.randrange(0x120000)])
        code = 0x41 if code == 0x17F else code  # 'ſ' has a test of its own
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
    return "".join(word + "".join(pick(rng, CONTROLS, 3)) for word in pick(rng, WORDS, 15))


def whitespace(rng: random.Random) -> str:
    return "".join(word + "".join(pick(rng, WHITESPACE, 5)) for word in ["", *pick(rng, WORDS, 15)])


def punctuation(rng: random.Random) -> str:
    marks = [*string.punctuation, *string.digits, *"’‘“”«»…–—¿¡§¶†‰′″½²Ⅷ①٣߅_"]
    contractions = ["'s", "'T", "'re", "'VE", "'m", "'ll", "'D", "’s", "''s", "'x", "'", "s'"]
    parts = [*pick(rng, marks, 25), *pick(rng, contractions, 8), *pick(rng, WORDS, 8), " ", " "]
    rng.shuffle(parts)
    return "".join(parts)


def very_long(rng: random.Random) -> str:
    kind = rng.choice([prose, accents, east_asian, emoji, punctuation])
    return rng.choice(["", " "]).join(kind(rng) for _ in range(15))


def special_tokens(rng: random.Random) -> str:
    neighbors = ["", "", " ", "a", "1", "é", "漢", "!", "_", "<", ">", "'", "'s", "\u0301", "…"]
    return "x" + "".join(rng.choice(SPECIALS) + rng.choice(neighbors) for _ in range(5))


def anything(rng: random.Random) -> str:
    return "".join(pick(rng, EVERYTHING, 40)) + rng.choice(WORDS)


def mixture(rng: random.Random) -> str:
    kinds = rng.choices([kind for kind in KINDS if kind is not mixture], k=rng.randint(1, 4))
    return rng.choice(["", " "]).join(kind(rng) for kind in kinds)


HUGE_WHEN_REPEATED = [
    *("word ", "a", "!", "x\n", "&amp;", "&#", "Ø³Ù", "â€™", "e\u0301", "!<end_of_text>"),
    "👩\u200d",
]
"""Texts that are slow to clean or to tokenize if they are repeated very often."""

KINDS: list[Callable[[random.Random], str]] = [
    *(prose, accents, east_asian, scripts_with_marks, emoji, entities, mojibake, controls),
    *(whitespace, punctuation, very_long, special_tokens, anything, mixture),
]
