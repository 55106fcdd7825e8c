"""What is trained on, as one file that can be carried to a machine with a GPU.

Imports no package that only the preparation needs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

TILES = 32  # pictures per side of a sheet
QUALITY = 85  # of the WebP sheets

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pictures:
    """Drawings. pixels: uint8 [N, S, S, 4], RGBA. classes: int64 [N]."""

    pixels: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Sentences, and before them the plain name of each class, in the order of the classes.

    tokens: int32 [M, L], up to the end-of-text, then zeros. lengths: uint8 [M]. classes: int16 [M],
    -1 for sentences of no class. soft_classes, soft_weights: int16 and uint8 [M, K], the classes
    that the teacher finds most probable. teacher: int8 [M, D], directions of the teacher's
    vectors; zeros if there is none.
    """

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.int16]
    soft_classes: npt.NDArray[np.int16]
    soft_weights: npt.NDArray[np.uint8]
    teacher: npt.NDArray[np.int8]


@dataclass(frozen=True)
class TrainingData:
    """pictures, texts: to train on. held_out: drawings of all classes, to measure with."""

    pictures: Pictures
    held_out: Pictures
    texts: Texts

    @property
    def class_count(self) -> int:
        return int(self.texts.classes.max()) + 1

    def save(self, file: Path) -> None:
        """Write one file, atomically."""
        arrays = {name: getattr(self.texts, name) for name in Texts.__dataclass_fields__}
        for prefix, pictures in (("pictures", self.pictures), ("held_out", self.held_out)):
            sheets = _draw_sheets(pictures.pixels)
            arrays[f"{prefix}_sheets"] = np.frombuffer(b"".join(sheets), np.uint8)
            arrays[f"{prefix}_sizes"] = np.array([len(sheet) for sheet in sheets])
            arrays[f"{prefix}_classes"] = pictures.classes
        partial = file.with_name(file.name + ".partial")
        with partial.open("wb") as opened:
            np.savez_compressed(opened, **arrays)
        partial.rename(file)

    @classmethod
    def load(cls, file: Path) -> TrainingData:
        """Read a file of `save`."""
        with np.load(file) as arrays:
            texts = Texts(**{name: arrays[name] for name in Texts.__dataclass_fields__})
            pictures, held_out = (
                _read_pictures(arrays, prefix) for prefix in ("pictures", "held_out")
            )
        return cls(pictures, held_out, texts)


def _draw_sheets(pixels: npt.NDArray[np.uint8]) -> list[bytes]:
    """Encode pictures as WebP files of up to TILES² tiles."""
    size = pixels.shape[1]
    sheets = []
    for begin in range(0, len(pixels), TILES**2):
        part = pixels[begin : begin + TILES**2]
        tiles = np.zeros((TILES**2, size, size, 4), np.uint8)
        tiles[: len(part)] = part
        sheet = tiles.reshape(TILES, TILES, size, size, 4).swapaxes(1, 2)
        file = io.BytesIO()
        picture = Image.fromarray(sheet.reshape(TILES * size, TILES * size, 4))
        picture.save(file, "WEBP", quality=QUALITY, alpha_quality=100, method=4)
        sheets.append(file.getvalue())
    return sheets


def _read_pictures(arrays: Any, prefix: str) -> Pictures:
    data, ends = arrays[f"{prefix}_sheets"], arrays[f"{prefix}_sizes"].cumsum()
    classes = arrays[f"{prefix}_classes"]
    parts = []
    for sheet in np.split(data, ends[:-1]):
        with Image.open(io.BytesIO(sheet.tobytes())) as picture:
            tiles = np.asarray(picture.convert("RGBA"))
        size = len(tiles) // TILES
        tiles = tiles.reshape(TILES, size, TILES, size, 4).swapaxes(1, 2)
        parts.append(tiles.reshape(-1, size, size, 4))
    return Pictures(np.concatenate(parts)[: len(classes)], classes)
