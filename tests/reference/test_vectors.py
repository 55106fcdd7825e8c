"""Vectors equal those of open_clip and transformers, at a tiny size and at ViT-L/14's."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import weights
from clip_embed.checkpoint import load
from clip_embed.checkpoint.manifest import CONFIG_NAME, TOKENIZER_NAME
from clip_embed.embedder import Embedder
from clip_embed.inputs.preprocess import preprocess_image
from clip_embed.inputs.tokenizer import Tokenizer
from scripts.benchmarks.peers.convert import transformers_model
from scripts.lib.storage import open_storage
from scripts.publishing.model import OPENAI_PREPROCESSING, Model
from scripts.publishing.publish import publish
from tests.helpers.paths import PHOTOS, TINY

CAPTIONS = [
    "a diagram",
    "a photo of a cat",
    "an astronaut in an orange suit, smiling, in front of a flag and a space shuttle",
    "naïve café 東京 🚀 &amp; it's 50% off!!!",
    "the end comes <end_of_text> early",
    "word " * 200,
]


class References:
    """A random network of open_clip, published and pulled by us, and the same in transformers."""

    def __init__(self, model: str, directory: Path) -> None:
        """model: open_clip's name of an architecture. directory: published here, then removed."""
        torch.manual_seed(0)
        self.open_clip = open_clip.create_model(model, pretrained=None).eval()
        # Values that float16 holds, like those of OpenAI's release.
        tensors = {
            name: tensor.half().float() for name, tensor in self.open_clip.state_dict().items()
        }
        config = {
            "model_cfg": open_clip.get_model_config(model),
            "preprocess_cfg": OPENAI_PREPROCESSING,
        }
        publish(Model(model, "random", tensors, config), open_storage(str(directory)))
        with weights.pull(str(directory)) as pull:
            loaded = load.load_tensors(pull.blocks(), torch.device("cpu"), torch.float32)
            self.embedder = Embedder.build(pull.file(CONFIG_NAME), loaded)
            context_length = self.embedder.config.context_length
            self.tokenizer = Tokenizer(pull.file(TOKENIZER_NAME), context_length)
        shutil.rmtree(directory)  # 857 MB
        self.open_clip.load_state_dict(loaded, assign=True)
        self.open_clip_tokenizer = open_clip.tokenizer.SimpleTokenizer()
        self.open_clip_transform = open_clip.image_transform(
            self.embedder.config.image_size,
            is_train=False,
            mean=open_clip.OPENAI_DATASET_MEAN,
            std=open_clip.OPENAI_DATASET_STD,
        )
        self.transformers = transformers_model(self.embedder.config, loaded)

    @functools.cached_property
    def vectors_one_by_one(self) -> np.ndarray:
        """Embed each caption by itself, at its own length: no padding, no batch."""
        tokens = [self.tokenizer.tokenize(caption) for caption in CAPTIONS]
        return np.concatenate([self.embedder.embed_texts([one]) for one in tokens])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> References:
    open_clip.add_model_config(TINY)
    return References(TINY.stem, tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References("ViT-L-14-quickgelu", tmp_path_factory.mktemp("full") / "model")


def assert_same_vectors(ours: np.ndarray, reference: torch.Tensor) -> None:
    assert ours.shape == tuple(reference.shape)
    assert ours.dtype == np.float32
    a, b = ours.astype(np.float64), reference.double().numpy()
    cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    difference = np.abs(a - b).max()
    print(f"min cosine {cosine.min():.9f}, max difference {difference:.2e}")
    assert cosine.min() >= 0.999999
    assert difference <= 1e-4


@torch.inference_mode()
def check_texts(references: References) -> None:
    ours = references.vectors_one_by_one
    padded = references.open_clip_tokenizer(CAPTIONS)
    assert_same_vectors(ours, references.open_clip.encode_text(padded))
    theirs = references.transformers.get_text_features(input_ids=padded)
    assert_same_vectors(ours, getattr(theirs, "pooler_output", theirs))


@torch.inference_mode()
def check_images(references: References, photos: list[Path]) -> None:
    embedder = references.embedder
    ours = embedder.embed_images(
        [preprocess_image(photo, embedder.preprocess_config) for photo in photos]
    )
    pixels = torch.stack([references.open_clip_transform(Image.open(photo)) for photo in photos])
    assert_same_vectors(ours, references.open_clip.encode_image(pixels))
    theirs = references.transformers.get_image_features(pixel_values=pixels)
    assert_same_vectors(ours, getattr(theirs, "pooler_output", theirs))


def test_tiny_text_vectors_equal_the_references(tiny: References) -> None:
    check_texts(tiny)


def test_tiny_image_vectors_equal_the_references(tiny: References) -> None:
    check_images(tiny, PHOTOS)


def test_full_size_text_vectors_equal_the_references(full_size: References) -> None:
    check_texts(full_size)


def test_full_size_image_vectors_equal_the_references(full_size: References) -> None:
    check_images(full_size, PHOTOS[:3])


def test_batching_does_not_change_a_text_vector(full_size: References) -> None:
    """A text's vector is the same alone and beside longer texts, to 2e-5."""
    tokens = [full_size.tokenizer.tokenize(caption) for caption in CAPTIONS]
    together = full_size.embedder.embed_texts(tokens)
    assert np.abs(together - full_size.vectors_one_by_one).max() <= 2e-5
