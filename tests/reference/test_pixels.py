"""Preprocessing equals open_clip's transform bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose

from clip_embed.embedder import Embedder
from clip_embed.inputs import resize
from clip_embed.inputs.preprocess import PreprocessConfig, preprocess_image
from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from tests.helpers.paths import TINY
from tests.helpers.sample_images import (
    CONFIG,
    SIZE,
    SIZES,
    black_and_white_noise,
    max_difference,
    noise,
    save_and_preprocess,
    scene,
)
from tests.reference.open_clip_transform import MEAN, STD, TRANSFORM, open_clip_pixels


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    """A tiny network of zeros."""
    model = Clip(ClipConfig.from_open_clip(json.loads(TINY.read_text())))
    model.load({name: torch.zeros(p.shape) for name, p in model.named_parameters()})
    return Embedder(model, CONFIG)


@pytest.mark.parametrize("kind", SIZES)
def test_pixels_equal_open_clip(kind: str, tmp_path: Path) -> None:
    """By default, this holds for upright RGB images of every size."""
    for width, height in SIZES[kind]:
        picture = noise(width, height)
        pixels = save_and_preprocess(picture, tmp_path / "x.bmp")
        assert pixels.array.dtype == np.uint8
        same = np.array_equal(pixels.array, open_clip_pixels(picture))
        assert same, f"{width} × {height} differs"


@pytest.mark.parametrize("kind", ["around 224", "small", "any", "tall strips", "wide strips"])
def test_resizing_only_the_center_part_is_within_2_of_255(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Very long strips are resized in this way; here, images of every size are."""
    monkeypatch.setattr(resize, "WHOLE_RESIZE_MAX_PIXELS", 0)
    for width, height in SIZES[kind]:
        picture = black_and_white_noise(width, height)
        pixels = save_and_preprocess(picture, tmp_path / "x.bmp")
        worst = max_difference(pixels.array, open_clip_pixels(picture))
        assert worst <= 2, f"{width} × {height} differs"


def test_pixels_of_a_camera_jpeg_equal_open_clip(tmp_path: Path) -> None:
    """By default, a large photo that fast_jpeg.py would decode at a quarter is exact, too."""
    tags = Image.Exif()
    tags[0x010F] = "A maker of cameras"
    scene(4000, 3000).save(tmp_path / "x.jpg", exif=tags)
    pixels = preprocess_image(tmp_path / "x.jpg", CONFIG)
    with Image.open(tmp_path / "x.jpg") as opened:
        np.testing.assert_array_equal(pixels.array, open_clip_pixels(opened))


def test_pixels_of_a_very_large_image_equal_open_clip(tmp_path: Path) -> None:
    """By default, an image that fast_jpeg.py would halve is exact, too."""
    picture = noise(3600, 3584)
    pixels = save_and_preprocess(picture, tmp_path / "x.bmp")
    np.testing.assert_array_equal(pixels.array, open_clip_pixels(picture))


@pytest.mark.parametrize(("size", "interpolation"), [(336, "bicubic"), (56, "bilinear")])
def test_pixels_equal_open_clip_with_another_configuration(
    size: int, interpolation: str, tmp_path: Path
) -> None:
    """Size and filter are those of the model's configuration."""
    transform = image_transform_v2(PreprocessCfg(size, interpolation=interpolation), False)
    picture = noise(500, 400)
    picture.save(tmp_path / "x.bmp")
    config = PreprocessConfig.from_open_clip(
        {"mean": MEAN, "std": STD, "interpolation": interpolation}, size
    )
    pixels = preprocess_image(tmp_path / "x.bmp", config)
    square = Compose(transform.transforms[:2])(picture)
    np.testing.assert_array_equal(pixels.array, np.asarray(square))


def test_normalized_pixels_equal_open_clip_for_every_value(embedder: Embedder) -> None:
    """Each of the 256 values of each channel becomes the same float32."""
    values = np.resize(np.arange(256, dtype=np.uint8), (SIZE, SIZE))
    picture = Image.fromarray(np.stack([values] * 3, axis=2))
    [normalized] = embedder.normalize_pixels(torch.from_numpy(np.array(picture)[None]))
    assert torch.equal(normalized, TRANSFORM(picture))


@pytest.mark.parametrize("kind", SIZES)
def test_normalized_pixels_equal_open_clip(kind: str, tmp_path: Path, embedder: Embedder) -> None:
    """A batch of image files becomes the same float32 values."""
    pictures = [noise(width, height) for width, height in SIZES[kind]]
    batch = [save_and_preprocess(picture, tmp_path / "x.bmp").array for picture in pictures]
    normalized = embedder.normalize_pixels(torch.from_numpy(np.stack(batch)))
    for picture, values in zip(pictures, normalized, strict=True):
        assert torch.equal(values, TRANSFORM(picture)), f"{picture.size} differs"
