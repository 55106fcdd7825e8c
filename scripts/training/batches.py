"""Make batches of pictures, sentences and their classes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from clip_embed.inputs.tokenizer import Tokenizer
from clip_embed.model.clip import Packing
from scripts.training.augment import augment
from scripts.training.pictures import Drawings, Emoji
from scripts.training.texts import random_sentence

PICTURES = 256  # per batch, each with a sentence
MORE_SENTENCES = 256  # per batch, for other classes


class Batches:
    """Draws pictures in random order, each as often as any other, with random sentences."""

    def __init__(self, emojis: list[Emoji], drawings: list[Drawings], seed: int) -> None:
        self.pixels = torch.from_numpy(np.concatenate([each.pixels for each in drawings]))
        self.classes = torch.from_numpy(np.concatenate([each.classes for each in drawings]))
        self._emojis = emojis
        self._generator = torch.Generator().manual_seed(seed)
        self._rng = random.Random(seed)
        self._remaining = torch.tensor([], dtype=torch.int64)  # pictures of this epoch

    def next_batch(self) -> tuple[Tensor, list[str], Tensor]:
        """Return pixels [PICTURES, 3, S, S], sentences and their classes, the pictures' first."""
        if len(self._remaining) < PICTURES:
            self._remaining = torch.randperm(len(self.classes), generator=self._generator)
        rows, self._remaining = self._remaining[:PICTURES], self._remaining[PICTURES:]
        others = torch.randint(len(self._emojis), (MORE_SENTENCES,), generator=self._generator)
        classes = torch.cat([self.classes[rows], others])
        texts = [random_sentence(self._emojis[index], self._rng) for index in classes.tolist()]
        return normalize(augment(self.pixels[rows], self._generator)), texts, classes

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random generators and of the epoch, for a checkpoint."""
        return {
            "remaining": self._remaining,
            "generator": self._generator.get_state(),
            "rng": self._rng.getstate(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self._remaining = state["remaining"]
        self._generator.set_state(state["generator"])
        self._rng.setstate(state["rng"])


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Packing]:
    """Return the arguments of `Clip.encode_text`."""
    ids = [tokens.ids[: tokens.eot_index + 1] for tokens in map(tokenizer.tokenize, texts)]
    packing = Packing([len(each) for each in ids], torch.device("cpu"))
    return torch.from_numpy(np.concatenate(ids)), packing


def normalize(pixels: Tensor) -> Tensor:
    """Apply CLIP's mean and standard deviation. pixels: float32 [B, 3, S, S] in 0–1."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (pixels - mean) / std


def lay_on_white(pixels: Tensor) -> Tensor:
    """Prepare drawings, uint8 [B, S, S, 4], as the service does: [B, 3, S, S], normalized."""
    rgba = pixels.permute(0, 3, 1, 2).float() / 255
    return normalize(rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:])
