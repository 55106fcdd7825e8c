"""Turn a string into CLIP's token ids. Imports no torch.

The cleaning and the byte-pair encoding are those that CLIP was trained with; the ids equal
open_clip's.
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

MAX_CHARACTERS = 200_000
"""Characters of a text that are read. CLIP reads 75 tokens, a few hundred characters of ordinary
prose; the limit keeps a text of many megabytes from costing seconds of cleaning."""

START = "<start_of_text>"
END = "<end_of_text>"

# Either the literal text of special tokens in a row, or the "<" of one that open_clip does not take
# for a special token, because its pattern joins that "<" to the punctuation before it. The pattern
# ignores case, and 'ſ' is then an 's'.
_SPECIAL_OR_PUNCTUATION = re.compile(
    r"((?<![^\w\s])(?<!_)(?:<(?:[sſ]tart|end)_of_text>)+)|<(?=(?:start|end)_of_text>)"
)
# Python refuses to parse numbers this long; as character references they name no character.
_ENDLESS_REFERENCE = re.compile(r"&#[0-9]{4301,};?")


@dataclass(frozen=True)
class Tokens:
    """A tokenized text.

    ids: int64 [L], from start-of-text to end-of-text; L is at most the context length.
    eot_index: the position of the first end-of-text, where the text's feature is taken. It is L - 1
        unless the text holds the literal "<end_of_text>", which is the same token.
    truncated: whether the text had more tokens than fit.
    """

    ids: npt.NDArray[np.int64]
    eot_index: int
    truncated: bool


class Tokenizer:
    """CLIP's tokenizer. Thread-safe."""

    def __init__(self, tokenizer_json: bytes, context_length: int) -> None:
        """Read a Hugging Face `tokenizer.json`.

        Raises ModelError if it is malformed or lacks CLIP's special tokens.
        """
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
        """Clean and encode `text`. A long text is cut to the context length, end-of-text included.

        Raises TextError if the text is empty after cleaning.
        """
        cleaned = clean_text(text)
        if not cleaned:
            raise TextError(
                f"text is {text[:40]!r}, which holds no visible character; send at least one word"
            )
        separated = _separate(cleaned)
        ids = [self._start, *self._bpe.encode(separated, add_special_tokens=False).ids, self._end]
        truncated = len(text) > MAX_CHARACTERS or len(ids) > self._context_length
        if len(ids) > self._context_length:
            ids = [*ids[: self._context_length - 1], self._end]
        return Tokens(np.array(ids, dtype=np.int64), ids.index(self._end), truncated)


def clean_text(text: str) -> str:
    """Clean `text` as CLIP does: fix mojibake, resolve HTML entities twice, collapse white space,
    lower the case."""
    # ftfy also fixes surrogates: a pair becomes its character, a lone one U+FFFD.
    text = _unescape(_unescape(ftfy.fix_text(text[:MAX_CHARACTERS])))
    return " ".join(text.split()).lower()


def _separate(text: str) -> str:
    """Insert a space wherever open_clip's pattern splits the text and ours would not.

    A space by itself changes no ids. To open_clip's pattern U+0345 is neither a letter nor
    punctuation, because its capital is a letter: it is dropped.
    """
    text = text.replace("\N{COMBINING GREEK YPOGEGRAMMENI}", " ")
    return _SPECIAL_OR_PUNCTUATION.sub(lambda match: match[1] or "< ", text)


def _unescape(text: str) -> str:
    return html.unescape(_ENDLESS_REFERENCE.sub("\N{REPLACEMENT CHARACTER}", text))
