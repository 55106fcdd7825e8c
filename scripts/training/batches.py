"""Make batches of pictures, texts and their targets on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_embed.model.clip import Packing
from scripts.publishing.preprocessing import OPENAI_PREPROCESSING
from scripts.training.augment import augment, to_float
from scripts.training.data import Texts, TrainingData

BALANCED = 7 / 8  # fraction of pictures drawn with equal probability per class, not per picture
BLENDED = 1 / 8  # fraction of pictures that are blended with another drawing of their class
NAMED = 1 / 2  # fraction of captions that are the name of the class
OWN_CLASS = 0.5  # weight of a sentence's own class in its target; the teacher's share the rest


class PaddedTexts(Packing):
    """The layout of texts that are all padded to one length.

    It is made on the device, and no step depends on the lengths. Attention is causal, so the
    padding changes no feature.
    """

    def __init__(self, lengths: Tensor, padded_length: int) -> None:
        """lengths: int64 [B], tokens of each text."""
        count, device = len(lengths), lengths.device
        self.shape = count, padded_length
        self.columns = torch.arange(padded_length, device=device).repeat(count)
        self.ends = lengths - 1
        self._starts = torch.arange(count, device=device) * padded_length
        self._flat = None


@dataclass(frozen=True)
class Batch:
    """B pictures, then a caption for each of them, then more sentences: T texts in all.

    pixels: normalized [B, 3, S, S]. classes: int64 [B]. tokens, layout: the arguments of
    `Clip.encode_text`. targets: float32 [T, C], a distribution over the classes. teacher: float32
    [T, D]; zeros if there is none.
    """

    pixels: Tensor
    classes: Tensor
    tokens: Tensor
    layout: PaddedTexts
    targets: Tensor
    teacher: Tensor


class Members:
    """The rows of each class, to draw them at random."""

    def __init__(self, classes: Tensor, class_count: int) -> None:
        """classes: int64, of each row; rows of class -1 are never drawn."""
        self._rows = classes.argsort(stable=True)[(classes < 0).sum() :]
        self._counts = classes[classes >= 0].bincount(minlength=class_count)
        self._starts = self._counts.cumsum(0) - self._counts
        self.present = self._counts.nonzero().flatten()  # classes with a row

    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random row of each of `classes`, all of which are present."""
        random = torch.rand(len(classes), generator=generator, device=classes.device)
        offset = (random * self._counts[classes]).long()
        return self._rows[self._starts[classes] + offset]


class Batches:
    """Draws pictures, captions and sentences. All of them stay on the device."""

    def __init__(
        self, data: TrainingData, device: torch.device, seed: int, pictures: int, sentences: int
    ) -> None:
        """pictures, sentences: of a batch; each picture has a caption beside these sentences."""
        self.device = device
        self.class_count = data.class_count
        self._picture_count, self._sentence_count = pictures, sentences
        self._pixels = torch.from_numpy(data.pictures.pixels).to(device)
        self._classes = torch.from_numpy(data.pictures.classes).to(device)
        self._drawings = Members(self._classes, self.class_count)
        self._texts = DeviceTexts(data.texts, self.class_count, device)
        self._generator = torch.Generator(device).manual_seed(seed)

    @property
    def teacher_width(self) -> int:
        return self._texts.teacher.shape[1]

    def next_batch(self) -> Batch:
        """Draw a batch."""
        rows = self._draw_pictures()
        classes = self._classes[rows]
        partners = self._drawings.draw(classes[: round(len(rows) * BLENDED)], self._generator)
        pixels = augment(self._pixels[rows], self._pixels[partners], self._generator)
        texts = torch.cat([self._draw_captions(classes), self._draw_sentences()])
        return Batch(
            normalize(pixels),
            classes,
            *self._texts.tokens(texts),
            self._texts.targets(texts),
            self._texts.teacher[texts].float(),
        )

    def _integers(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=self._generator, device=self.device)

    def _draw_pictures(self) -> Tensor:
        """Return rows in random order, so that the first ones are like the others."""
        balanced = round(self._picture_count * BALANCED)
        present = self._drawings.present
        classes = present[self._integers(len(present), balanced)]
        rows = [
            self._drawings.draw(classes, self._generator),
            self._integers(len(self._pixels), self._picture_count - balanced),
        ]
        order = torch.randperm(self._picture_count, generator=self._generator, device=self.device)
        return torch.cat(rows)[order]

    def _draw_captions(self, classes: Tensor) -> Tensor:
        """Return a text for each of `classes`: its name, which has its row, or any of its texts."""
        sentences = self._texts.members.draw(classes, self._generator)
        random = torch.rand(len(classes), generator=self._generator, device=self.device)
        return torch.where(random < NAMED, classes, sentences)

    def _draw_sentences(self) -> Tensor:
        return self._integers(len(self._texts.teacher), self._sentence_count)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random generator, for a checkpoint."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self._generator.set_state(state["generator"])


class DeviceTexts:
    """`Texts` on a device."""

    def __init__(self, texts: Texts, class_count: int, device: torch.device) -> None:
        def move(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(array).to(device, dtype)

        self._class_count = class_count
        self._tokens = move(texts.tokens, torch.int32)
        self._lengths = move(texts.lengths, torch.int64)
        self._classes = move(texts.classes, torch.int64)
        self._soft_classes = move(texts.soft_classes, torch.int64)
        weights = move(texts.soft_weights, torch.float32)
        self._soft_weights = weights / weights.sum(1, keepdim=True)
        self.teacher = move(texts.teacher, torch.int8)
        self.members = Members(self._classes, class_count)

    def tokens(self, rows: Tensor) -> tuple[Tensor, PaddedTexts]:
        """Return the arguments of `Clip.encode_text`."""
        padded = self._tokens[rows]
        return padded.flatten().long(), PaddedTexts(self._lengths[rows], padded.shape[1])

    def targets(self, rows: Tensor) -> Tensor:
        """Return a distribution over the classes for each text: float32 [T, C]."""
        classes = self._classes[rows, None]  # [T, 1]
        own = OWN_CLASS * (classes >= 0)
        targets = self._soft_weights.new_zeros(len(rows), self._class_count)
        targets.scatter_add_(1, self._soft_classes[rows], self._soft_weights[rows] * (1 - own))
        return targets.scatter_add_(1, classes.clamp(min=0), own)


def normalize(pixels: Tensor) -> Tensor:
    """Apply CLIP's mean and standard deviation. pixels: float32 [B, 3, S, S] in 0–1."""
    channels = [
        (pixels[:, i] - OPENAI_PREPROCESSING["mean"][i]) / OPENAI_PREPROCESSING["std"][i]
        for i in range(3)
    ]
    return torch.stack(channels, 1)


def lay_on_white(pixels: Tensor) -> Tensor:
    """Prepare drawings, uint8 [B, S, S, 4], as the service does: [B, 3, S, S], normalized."""
    rgba = to_float(pixels)
    return normalize(rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:])
