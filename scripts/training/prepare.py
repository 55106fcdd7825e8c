"""Collect the data to train on: the stage of scripts/train_demo.py that fetches packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clip_embed.inputs.tokenizer import Tokenizer
from scripts.lib.demo import SENTENCES
from scripts.publishing.tokenizer_json import tokenizer_json
from scripts.training import pictures
from scripts.training.data import Pictures, Texts, TrainingData
from scripts.training.pictures import Drawings, Emoji
from scripts.training.sentences import CONTEXT_LENGTH, Sentences, build

MAX_TOKENS = 16  # of a sentence. All texts are padded to one length, and 98% are shorter.


def prepare(file: Path, cache: Path) -> None:
    """Write the training data to `file`. cache: a folder for packages, drawings and sentences."""
    emojis = pictures.emojis(cache)
    training = [pictures.drawings(style, emojis, cache) for style in pictures.TRAINING]
    held_out = pictures.drawings(pictures.TWEMOJI, emojis, cache)
    texts = join_texts(emojis, _sentences(emojis, cache))
    TrainingData(join_drawings(training), join_drawings([held_out]), texts).save(file)
    count = sum(len(each.classes) for each in training)
    print(
        f"{file}: {len(emojis)} emoji, {count} pictures, {len(texts.classes)} texts,"
        f" {file.stat().st_size / 1e6:.1f} MB"
    )


def join_drawings(drawings: Sequence[Drawings]) -> Pictures:
    """Return the drawings of several styles."""
    return Pictures(
        np.concatenate([each.pixels for each in drawings]),
        np.concatenate([each.classes for each in drawings]),
    )


def _sentences(emojis: Sequence[Emoji], cache: Path) -> Sentences:
    file = cache / "sentences.npz"
    if not file.exists():
        build(emojis, _tokenizer(), cache, excluded=SENTENCES).save(file)
    return Sentences.load(file)


def _tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_json(), CONTEXT_LENGTH)


def join_texts(emojis: Sequence[Emoji], sentences: Sentences) -> Texts:
    """Return the emoji's plain names and the sentences, in as few bytes as training needs."""
    count, kinds = len(emojis), sentences.soft_classes.shape[1]
    tokens, lengths = tokenize([emoji.label for emoji in emojis])
    padded = max(MAX_TOKENS, int(lengths.max()))
    kept = sentences.lengths <= padded
    classes = np.arange(count, dtype=np.int16)
    # Of a name, the only probable class is its own. The teacher has no vector of it here.
    soft_classes = np.repeat(classes[:, None], kinds, 1)
    soft_weights = np.zeros((count, kinds), np.uint8)
    soft_weights[:, 0] = 255
    teacher = np.zeros((count, sentences.teacher.shape[1]), np.int8)
    weights = sentences.soft_weights.astype(np.float32)
    return Texts(
        np.concatenate([tokens, sentences.tokens[kept].astype(np.int32)])[:, :padded],
        np.concatenate([lengths, sentences.lengths[kept]]),
        np.concatenate([classes, sentences.classes[kept]]),
        np.concatenate([soft_classes, sentences.soft_classes[kept]]),
        np.concatenate([soft_weights, np.rint(255 * weights[kept]).astype(np.uint8)]),
        np.concatenate([teacher, quantize(sentences.teacher[kept])]),
    )


def tokenize(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return token ids with zeros after the end-of-text, [N, CONTEXT_LENGTH], and their numbers."""
    tokenizer = _tokenizer()
    tokens = np.zeros((len(texts), CONTEXT_LENGTH), np.int32)
    lengths = np.zeros(len(texts), np.uint8)
    for row, each in enumerate(map(tokenizer.tokenize, texts)):
        lengths[row] = each.eot_index + 1
        tokens[row, : lengths[row]] = each.ids[: lengths[row]]
    return tokens, lengths


def quantize(vectors: npt.NDArray[np.float16]) -> npt.NDArray[np.int8]:
    """Scale each vector so that its largest component is ±127. Directions change little."""
    floats = vectors.astype(np.float32)
    scaled = 127 * floats / np.abs(floats).max(1, keepdims=True)
    return np.rint(scaled).astype(np.int8)  # type: ignore[no-any-return]
