"""Write CLIP's byte-pair encoding as a Hugging Face `tokenizer.json`."""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from clip_embed.inputs.tokenizer import END, START

_MERGES = 49152 - 256 - 2
"""CLIP's vocabulary has 49,152 entries of text: two alphabets of 256, then the merges it uses."""

# CLIP's pattern ignores case, by which 'ſ' is an 's'; cleaning has lowered all other letters.
_WORDS = r"<ſtart_of_text>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@functools.cache
def tokenizer_json() -> bytes:
    """Return CLIP's tokenizer, made from open_clip's vocabulary.

    It has no normalizer: `clip_embed.inputs.tokenizer` cleans texts, and cleaning a text twice can
    change it again.
    """
    merges = _read_merges()
    alphabet = _byte_alphabet()
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges)]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, START, END])}
    bpe = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, end_of_word_suffix="</w>", fuse_unk=False)
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([START, END])
    return bpe.to_str().encode()


def _read_merges() -> list[tuple[str, ...]]:
    """Read the merges from open_clip's package, without importing it: that takes seconds."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")
    path = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(path) as file:
        lines = file.read().decode().split("\n")
    return [tuple(line.split()) for line in lines[1 : _MERGES + 1]]


def _byte_alphabet() -> list[str]:
    """Return the character that stands for each byte, in CLIP's order.

    As in GPT-2: printable characters stand for themselves and come first; the other bytes follow as
    characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    return [chr(code) for code in (*printable, *range(256, 2 * 256 - len(printable)))]
