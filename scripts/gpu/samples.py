"""Texts and pictures, the same ones in every run."""

from __future__ import annotations

import io
import itertools

import numpy as np
from PIL import Image

from clip_embed.inputs.preprocess import Pixels, PreprocessConfig, preprocess_image
from scripts.benchmarks.captions import captions
from scripts.lib.cog_server import ROOT

PHOTOS = sorted((ROOT / "examples").glob("*.jpg"))
MAX_TOKENS = 75  # of a text, without its start and its end
SHORT_WORDS = range(6, 15)
"""Words of a caption that has 8 to 20 tokens, start and end included."""

LONG_TEXT = "a photo of a cat " * 20  # cut to 77 tokens, start and end included

# Each is one token.
_WORDS = (
    *("red", "green", "blue", "black", "white", "dog", "cat", "bird", "house", "tree", "car"),
    *("sky", "water", "day", "night", "man", "woman", "child", "book", "light"),
)


def short_captions(count: int) -> list[str]:
    """Return `count` captions of 8 to 20 tokens."""
    short = [each for each in captions(4096) if len(each.split()) in SHORT_WORDS]
    return list(itertools.islice(itertools.cycle(short), count))


def text_of(tokens: int, first: int = 0) -> str:
    """Return a text of `tokens` tokens, which begins with the word number `first`."""
    return " ".join(_WORDS[(first + number) % len(_WORDS)] for number in range(tokens))


def texts_of_every_length() -> list[str]:
    """Return 75 texts of 1 to 75 tokens, each with another first word than its neighbors."""
    return [text_of(tokens, tokens) for tokens in range(1, MAX_TOKENS + 1)]


def pictures(config: PreprocessConfig) -> list[Pixels]:
    """Return the example photographs, and drawn pictures that are unlike photographs."""
    drawn = [preprocess_image(io.BytesIO(_png(array)), config) for array in _drawings()]
    return [preprocess_image(photo, config) for photo in PHOTOS] + drawn


def _drawings() -> list[np.ndarray]:
    """Return uint8 arrays [H, W, 3]: noise, plain colors, lines of one pixel, and gradients."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*size, 3)) for size in ((224, 224), (64, 48), (300, 900))]
    plain = [np.full((224, 224, 3), color) for color in (0, 255, (255, 0, 0), (0, 0, 255))]
    columns, rows = np.meshgrid(np.arange(224), np.arange(224))
    lines = [
        np.where(pattern[..., None], 255, 0) * np.ones(3, int)
        for pattern in (columns == 112, rows == 112, columns % 2 == 0, (columns + rows) % 2 == 0)
    ]
    gradient = np.stack([columns, rows, columns[::-1]], -1)
    return [each.astype(np.uint8) for each in (*noise, *plain, *lines, gradient)]


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=1)
    return file.getvalue()
