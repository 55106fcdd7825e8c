"""The numbers are right: against open_clip and transformers, which carry the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import weights
from benchmarks.peers.convert import transformers_model
from clip_embed import image, manifest, tensors, text
from clip_embed.config import ClipConfig
from clip_embed.embedder import Embedder
from clip_embed.errors import ModelError
from clip_embed.model import Clip
from conftest import PHOTOS, ROOT, TINY, publish

CAPTIONS = [
    "a diagram",
    "a photo of a cat",
    "an astronaut in an orange suit, smiling, in front of a flag and a space shuttle",
    "naïve café 東京 🚀 &amp; it's 50% off!!!",
    "the end comes <end_of_text> early",
    "word " * 200,
]


class References:
    """One published model in our embedder, in open_clip and in transformers."""

    def __init__(self, directory: Path, name: str) -> None:
        with weights.pull(str(directory)) as pull:
            loaded = tensors.load(pull.blocks(), torch.device("cpu"), torch.float32)
            config_json = pull.file(manifest.CONFIG_NAME)
            tokenizer_json = pull.file(manifest.TOKENIZER_NAME)
        self.config = ClipConfig.from_open_clip(json.loads(config_json)["model_cfg"])
        self.embedder = Embedder.build(config_json, loaded)
        self.tokenizer = text.Tokenizer(tokenizer_json, self.config.context_length)
        if name.endswith(".json"):
            open_clip.add_model_config(name)
        self.open_clip = open_clip.create_model(Path(name).stem, pretrained=None).eval()
        self.open_clip.load_state_dict(loaded, assign=True)
        self.open_clip_tokenizer = open_clip.tokenizer.SimpleTokenizer()
        self.open_clip_transform = open_clip.image_transform(
            self.config.image_size,
            is_train=False,
            mean=open_clip.OPENAI_DATASET_MEAN,
            std=open_clip.OPENAI_DATASET_STD,
        )
        self.transformers = transformers_model(self.config, loaded)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> References:
    return References(tiny_model, str(TINY))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> References:
    directory = tmp_path_factory.mktemp("full") / "model"
    publish("random:0", str(directory), model="ViT-L-14-quickgelu")
    return References(directory, "ViT-L-14-quickgelu")


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
    tokens = [references.tokenizer.tokenize(caption) for caption in CAPTIONS]
    # One by one, so that each is computed at its own length and not padded as the references are.
    ours = np.concatenate([references.embedder.embed_texts([one]) for one in tokens])
    padded = references.open_clip_tokenizer(CAPTIONS)
    assert_same_vectors(ours, references.open_clip.encode_text(padded))
    theirs = references.transformers.get_text_features(input_ids=padded)
    assert_same_vectors(ours, getattr(theirs, "pooler_output", theirs))


@torch.inference_mode()
def check_images(references: References, photos: list[Path]) -> None:
    embedder = references.embedder
    ours = embedder.embed_images([image.prepare(p, embedder.preprocessing) for p in photos])
    pixels = torch.stack([references.open_clip_transform(Image.open(photo)) for photo in photos])
    assert_same_vectors(ours, references.open_clip.encode_image(pixels))
    theirs = references.transformers.get_image_features(pixel_values=pixels)
    assert_same_vectors(ours, getattr(theirs, "pooler_output", theirs))


def test_tiny_texts_equal_the_references(tiny: References) -> None:
    """A tiny CLIP gives the text vectors of open_clip and of transformers."""
    check_texts(tiny)


def test_tiny_images_equal_the_references(tiny: References) -> None:
    """A tiny CLIP gives the image vectors of open_clip and of transformers."""
    check_images(tiny, PHOTOS)


def test_full_size_texts_equal_the_references(full_size: References) -> None:
    """ViT-L/14 gives the text vectors of open_clip and of transformers."""
    check_texts(full_size)


def test_full_size_images_equal_the_references(full_size: References) -> None:
    """ViT-L/14 gives the image vectors of open_clip and of transformers."""
    check_images(full_size, PHOTOS[:3])


def test_company_does_not_change_a_text(full_size: References) -> None:
    """A caption's vector is the same alone and beside longer ones, to 2e-5."""
    tokens = [full_size.tokenizer.tokenize(caption) for caption in CAPTIONS]
    together = full_size.embedder.embed_texts(tokens)
    alone = np.concatenate([full_size.embedder.embed_texts([one]) for one in tokens])
    assert np.abs(together - alone).max() <= 2e-5


def test_open_clip_reads_the_published_prefix(tiny_model: Path) -> None:
    """The prefix is in the field's own formats: safetensors and open_clip's hub configuration."""
    import safetensors.torch

    document = json.loads((tiny_model / manifest.CONFIG_NAME).read_text())
    assert document["model_cfg"] == json.loads(TINY.read_text())
    assert document["preprocess_cfg"]["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    index = json.loads((tiny_model / "model.safetensors.index.json").read_text())
    for name, shard in index["weight_map"].items():
        with safetensors.safe_open(tiny_model / shard, "pt") as file:
            assert name in file.keys()  # noqa: SIM118  (safe_open is no mapping)


def test_no_parameter_stays_on_meta(tiny: References) -> None:
    """After loading, every parameter and buffer has a value."""
    model = tiny.embedder._model
    assert not [name for name, p in model.named_parameters() if p.is_meta]
    assert not list(model.buffers())


def test_wrong_tensors_are_named() -> None:
    """Missing, unknown and misshapen tensors are named, and nothing is loaded."""
    model = Clip(ClipConfig.from_open_clip(json.loads(TINY.read_text())))
    right = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    wrong = right | {"stranger": torch.zeros(1), "visual.proj": torch.zeros(2, 2)}
    del wrong["ln_final.bias"]
    with pytest.raises(ModelError) as caught:
        model.load(wrong)
    for problem in (
        "ln_final.bias is missing",
        "stranger is unknown",
        "visual.proj has shape [2, 2], expected [64, 768]",
    ):
        assert problem in str(caught.value)
    assert next(model.parameters()).is_meta


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"embed_dim": None}, "embed_dim is None; expected int"),
        ({"embed_dim": 0}, "embed_dim is 0; expected a positive number"),
        ({"quick_gelu": 1}, "quick_gelu is 1; expected bool"),
        ({"vision_cfg": {"timm_model_name": "vit"}}, "timm_model_name not supported"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "layers is [3, 4, 6, 3]; expected int"),
        ({"vision_cfg": {"width": 100}}, "width 100 is not a multiple of 64"),
        ({"vision_cfg": {"image_size": 225}}, "image_size 225 is not a multiple of patch_size 16"),
        ({"text_cfg": {"heads": 7}}, "width 512 is no multiple of 7 heads"),
        ({"text_cfg": {"hf_model_name": "bert"}}, "hf_model_name not supported"),
        ({"text_cfg": 3}, "text_cfg is 3; expected dict"),
    ],
)
def test_unknown_architectures_are_refused(change: dict[str, object], problem: str) -> None:
    """An option this network does not implement is an error, never ignored."""
    config: dict[str, object] = {"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}}
    with pytest.raises(ModelError) as caught:
        ClipConfig.from_open_clip(config | change)
    assert problem in str(caught.value)


def test_importing_the_service_is_lean() -> None:
    """Nothing heavy beyond torch is imported to serve: open_clip alone would cost seconds."""
    import subprocess
    import sys

    code = (
        "import sys, predict; early = set(sys.modules);"
        "predict.lean_torch.import_torch();"
        "from clip_embed import batching, embedder, image, tensors, text;"
        "heavy = ('torchvision', 'timm', 'transformers', 'open_clip', 'huggingface_hub',"
        " 'torch._dynamo', 'torch._decomp', 'google.cloud.storage', 'matplotlib', 'scipy');"
        "print([name for name in heavy if name in sys.modules], 'torch' in early)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[] False", done.stdout + done.stderr
