"""Generate bad texts, by kind."""

from __future__ import annotations

from tests.helpers.bad_inputs.case import VECTOR, Case

# Cog rejects JSON with a lone surrogate.
LONE_SURROGATE = (
    r"^HTTP 400: Failed to parse the request body as JSON: input\.text: (lone leading surrogate|"
    "unexpected end of hex escape)"
)
BLANK = "which holds no visible character; send at least one word"
MEGABYTES = 10 * 2**20

TEXTS: dict[str, dict[str, str]] = {
    "nothing visible": {
        "spaces": " " * 9,
        "every white space": " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\xa0\u1680\u2003\u2028\u2029",
        "NUL": "\0",
        "controls": "".join(map(chr, [*range(9), *range(14, 28), 127])),
        "escape sequence": "\x1b[31m\x1b[0m",
        "byte order mark": "\ufeff",
        "entities": "&nbsp;&#32;&#9;",
        "a million spaces": " " * 1_000_000,
        "a cat behind a million NULs": "\0" * 1_000_000 + "cat",
    },
    "hardly anything visible": {
        "one letter": "a",
        "full stop": ".",
        "soft hyphen": "\xad",
        "zero width": "\u200b\u200c\u200d\u2060",
        "directions": "\u202e\u202d\u2066\u2069",
        "other controls": "".join(map(chr, range(0x80, 0x85))),
        "combining mark": "\u0301",
        "variation selector": "\ufe0f",
        "ignored letter": "\u0345",
        "noncharacters": "\uffff\ufffe",
        "private use": "\ue000\U0010fffd",
        "invalid entities": "&#0;&#x110000;",
    },
    "surrogates": {
        "high": "\ud800",
        "low": "\udfff",
        "reversed": "\udc00\ud83d",
        "pair": "\ud83d\ude00",
        "between": "a cat\ud83d and a dog",
        "many": "\ud800" * 5_000,
    },
    "megabytes": {
        "words": "word " * (MEGABYTES // 5),
        "one word": "a" * MEGABYTES,
        "signs": "!" * MEGABYTES,
        "entities": "&amp;" * (MEGABYTES // 5),
        "open entities": "&#" * (MEGABYTES // 2),
        "digits of an entity": "&#" + "9" * MEGABYTES,
        "mojibake": "Ã©" * (MEGABYTES // 4),
        "combining marks": "e" + "\u0301" * (MEGABYTES // 2),
        "families": "👩\u200d👩\u200d👧" * (MEGABYTES // 18),
        "special tokens": "<end_of_text>" * (MEGABYTES // 13),
        "line ends": "x\n" * (MEGABYTES // 2),
    },
    "scripts": {
        "Arabic": "صورة قطة نائمة على أريكة",
        "Hebrew with marks": "תְּמוּנָה שֶׁל חָתוּל",
        "both directions": "a cat \u202eevil\u202c قطة cat",
        "Hanzi": "一张红色自行车的照片",
        "Thai": "ภาพถ่ายของแมว",
        "Hindi": "बिल्ली की तस्वीर",
        "stacked marks": "".join(f"{c}\u0300\u0301\u0302\u0303\u0304" * 9 for c in "zalgo"),
        "Hangul letters": "\u1112\u1161\u11ab" * 9,
        "mathematical letters": "𝔞 𝕡𝕙𝕠𝕥𝕠 𝓸𝓯 𝖆 𝚌𝚊𝚝",
        "ligatures": "ﷺ ﬃ ŉ ǆ",
        "dotted capital": "İSTANBUL",
    },
    "emoji": {
        "one": "😀",
        "family": "👨\u200d👩\u200d👧\u200d👦",
        "flags": "🇨🇭🇯🇵🏴󠁧󠁢󠁳󠁣󠁴󠁿",
        "half a flag": "🇨",
        "tones": "👍🏻👍🏽👍🏿🏿🏿",
        "keycaps": "1\ufe0f\u20e3#\ufe0f\u20e3",
        "thousand joined": "👩\u200d" * 1_000,
    },
    "special tokens": {
        "end": "<end_of_text>",
        "start": "<start_of_text>",
        "OpenAI's end": "<|endoftext|>",
        "OpenAI's start": "<|startoftext|>",
        "capitals": "<END_OF_TEXT> a cat",
        "escaped": "&lt;end_of_text&gt; a cat",
        "many": "<start_of_text><end_of_text>" * 50,
        "inside": "a cat <end_of_text> a dog",
        "BERT's": "[CLS] a cat [SEP] [PAD] [MASK]",
    },
    "long words": {
        "a word of 100,000": "Donaudampfschiff" * 6_250,
        "a URL": "https://example.com/" + "a%20b/" * 2_000,
        "base64": "QUJD" * 5_000,
        "digits": "31415926535" * 1_000,
        "10,000 words": "word " * 10_000,
        "underscores": "snake_" * 5_000,
    },
    "code": {
        "SQL": "'; DROP TABLE vectors; --",
        "shell": "$(reboot) `id` | cat /etc/passwd > /dev/null",
        "HTML": "<script>alert(1)</script>",
        "format": "%s%s%n {0.__class__} ${jndi:ldap://x}",
        "JSON": '{"text": null}',
        "path": "../../etc/passwd",
        "backslashes": "\\\\ \\u0000 \\ud800 \\x00",
        "None": "None",
        "number": "NaN",
    },
}


def cases() -> list[Case]:
    """Return every text."""
    return [
        Case(
            kind,
            name,
            content,
            BLANK if kind == "nothing visible" else VECTOR,
            from_cog=LONE_SURROGATE if kind == "surrogates" and name != "pair" else None,
        )
        for kind, made in TEXTS.items()
        for name, content in made.items()
    ]
