"""A string becomes CLIP's token ids. Knows nothing of torch, the network or the service.

Cleaning and byte-pair encoding are those CLIP was trained with; ids equal open_clip's.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

import ftfy
import numpy as np
import numpy.typing as npt
import tokenizers

from clip_embed.errors import ModelError, TextError

# At most this many characters of a text are read. CLIP sees 75 tokens, a few hundred characters of
# ordinary prose; the bound keeps a text of many megabytes from costing seconds of cleaning.
MAX_CHARACTERS = 200_000

START = "<start_of_text>"
END = "<end_of_text>"

# The literal text of special tokens, one after another, or the "<" of one that open_clip does not
# take for a special token, because its pattern gives that "<" to the punctuation before it. The
# pattern ignores case, by which 'ſ' is an 's'.
_SPECIAL_OR_SWALLOWED = re.compile(
    r"((?<![^\w\s])(?<!_)(?:<(?:[sſ]tart|end)_of_text>)+)|<(?=(?:start|end)_of_text>)"
)
# Python refuses to read longer numbers; as character references, they name no character anyway.
_ENDLESS_REFERENCE = re.compile(r"&#[0-9]{4301,};?")


@dataclass(frozen=True)
class Tokens:
    """A tokenized text.

    ids: int64 [L], from start-of-text to end-of-text; L is at most the context length.
    end: the position of the first end-of-text, where the text's feature is taken. It is L - 1
        unless the text holds the literal "<end_of_text>", which is the same token.
    truncated: whether the text had more tokens than fit.
    """

    ids: npt.NDArray[np.int64]
    end: int
    truncated: bool


class Tokenizer:
    """CLIP's tokenizer, from the bytes of a Hugging Face `tokenizer.json`.

    Safe to use from several threads at once.
    """

    def __init__(self, tokenizer_json: bytes, context_length: int) -> None:
        """Raises ModelError if the bytes are no tokenizer or lack CLIP's special tokens."""
        try:
            self._bpe = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"tokenizer.json cannot be read: {error}") from error
        start, end = self._bpe.token_to_id(START), self._bpe.token_to_id(END)
        if start is None or end is None:
            raise ModelError(f"tokenizer.json lacks the special tokens {START} and {END}")
        self._start: int = start
        self._end: int = end
        self._context_length = context_length

    def tokenize(self, text: str) -> Tokens:
        """Clean and encode `text`; too long a text keeps its first tokens and end-of-text.

        Raises TextError if nothing is left of the text once it is cleaned.
        """
        cleaned = clean(text)
        if not cleaned:
            raise TextError(
                f"text is {text[:40]!r}, which holds no visible character; send at least one word"
            )
        parted = _part(cleaned)
        ids = [self._start, *self._bpe.encode(parted, add_special_tokens=False).ids, self._end]
        truncated = len(text) > MAX_CHARACTERS or len(ids) > self._context_length
        if len(ids) > self._context_length:
            ids = [*ids[: self._context_length - 1], self._end]
        return Tokens(np.array(ids, dtype=np.int64), ids.index(self._end), truncated)


def clean(text: str) -> str:
    """CLIP's cleaning: mended encoding, HTML entities resolved twice, single spaces, lower case."""
    # ftfy also mends surrogates: pairs become the character they stand for, others U+FFFD.
    text = _unescape(_unescape(ftfy.fix_text(text[:MAX_CHARACTERS])))
    return " ".join(text.split()).lower()


def _part(text: str) -> str:
    """Spaces, which change no ids by themselves, where open_clip's pattern parts and ours does not.

    To that pattern U+0345 is neither letter nor sign, for its capital is a letter: it is dropped.
    """
    text = text.replace("\N{COMBINING GREEK YPOGEGRAMMENI}", " ")
    return _SPECIAL_OR_SWALLOWED.sub(lambda match: match[1] or "< ", text)


def _unescape(text: str) -> str:
    return html.unescape(_ENDLESS_REFERENCE.sub("\N{REPLACEMENT CHARACTER}", text))
