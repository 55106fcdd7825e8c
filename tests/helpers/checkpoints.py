"""Make tiny CLIP checkpoints with OpenAI's `clip`, transformers and open_clip, and their vectors.

All have the architecture `MINI` and random values, different in every tensor: also biases, which
the libraries set to zero, so that a part in the wrong place changes the vectors.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from PIL import Image

import weights
from clip_embed.inputs.preprocess import preprocess_image
from clip_embed.service import load_embedder
from tests.helpers.paths import ROOT

MINI: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
"""The architecture, as an open_clip model config without `quick_gelu`."""

TEXTS = ("a photo of a cat", "two rockets, one of them on fire: 3, 2, 1 …", "x " * 100)
OTHER_MEAN, OTHER_STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
"""A normalization that is nobody's default."""

Tensors = dict[str, torch.Tensor]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """Vectors of TEXTS and of `photo`, one per row: float32 [len(TEXTS) + 1, D]."""

    vectors: Vectors

    def difference(self, vectors: Vectors) -> tuple[float, float]:
        """Return the largest difference of a value, and the smallest cosine of a row."""
        ours, theirs = vectors.astype(np.float64), self.vectors.astype(np.float64)
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosines = (ours * theirs).sum(axis=1) / lengths
        return float(np.abs(ours - theirs).max()), float(cosines.min())


def photo() -> Image.Image:
    """Return a picture that is resized and cropped. All libraries cut the same margins of it."""
    return Image.open(ROOT / "examples" / "cat.jpg").convert("RGB").resize((64, 48))


def embed_with_service(directory: Path, folder: Path) -> Vectors:
    """Return the vectors of TEXTS and of `photo` from a published model. folder: for the photo."""
    path = folder / "photo.png"
    photo().save(path)
    with weights.pull(str(directory)) as pull:
        model = load_embedder(pull, "cpu", threads=1)
    embedder = model.embedder
    texts = embedder.embed_texts([model.tokenizer.tokenize(text) for text in TEXTS])
    pixels = preprocess_image(path, embedder.preprocess_config)
    return np.concatenate([texts, embedder.embed_images([pixels])])


def scatter(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Change every parameter a little, and prepare the model for inference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@functools.cache  # building the tokenizer takes 0.3 s
def token_ids() -> torch.Tensor:
    """Return the token ids of TEXTS, int64 [B, 77]."""
    return open_clip.SimpleTokenizer()(list(TEXTS))  # type: ignore[no-any-return]


@torch.inference_mode()
def _reference(
    encode_text: Callable[[torch.Tensor], Any],
    encode_image: Callable[[torch.Tensor], Any],
    pixels: torch.Tensor,
) -> Reference:
    rows = []
    for encode, inputs in ((encode_text, token_ids()), (encode_image, pixels)):
        features = encode(inputs)
        # transformers 5 returns an object.
        rows.append(getattr(features, "pooler_output", features).float().numpy())
    return Reference(np.concatenate(rows))


# --- OpenAI's clip ------------------------------------------------------------------------------


def _import_clip() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources
        import clip

        return clip


def save_openai_archive(path: Path) -> None:
    """Write a TorchScript archive as OpenAI's: in float16, with modules of its own classes."""
    _import_clip()
    import clip.model

    torch.manual_seed(1)
    model = scatter(clip.model.CLIP(96, 32, 2, 128, 8, 77, 49408, 64, 1, 2).float())
    example = torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, example, check_trace=False)
        traced.half().save(str(path))


def openai_reference(path: Path) -> Reference:
    """Return the vectors of the archive as `clip.load` loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, preprocess = _import_clip().load(str(path), device="cpu")
    return _reference(model.encode_text, model.encode_image, preprocess(photo())[None])


def openai_state_dict(path: Path) -> dict[str, Any]:
    """Return the state dict of the archive, with the three sizes that OpenAI's have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    sizes = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    return {**state, **{name: torch.tensor(size) for name, size in sizes.items()}}


# --- transformers -------------------------------------------------------------------------------


def transformers_model(hidden_act: str = "quick_gelu", **text_options: Any) -> Any:
    """Return a CLIPModel of transformers."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"num_hidden_layers": 2, "hidden_act": hidden_act, "projection_dim": 96}
    text = {
        **tower,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 1,
        **text_options,
    }
    vision = {
        **tower,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(2)
    return scatter(CLIPModel(CLIPConfig(projection_dim=96, text_config=text, vision_config=vision)))


def save_transformers(model: Any, directory: Path, **options: Any) -> None:
    """Write a model, and a processor with a normalization of its own. options: of the writer."""
    model.save_pretrained(directory, **options)
    image_processor(OTHER_MEAN, OTHER_STD).save_pretrained(directory)


def image_processor(mean: Sequence[float], std: Sequence[float]) -> Any:
    """Return transformers' processor that resizes with Pillow, as it did before version 5."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    crop = {"height": 32, "width": 32}
    return CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=crop, image_mean=list(mean), image_std=list(std)
    )


def transformers_reference(
    model: Any, mean: Sequence[float] = OTHER_MEAN, std: Sequence[float] = OTHER_STD
) -> Reference:
    pixels = image_processor(mean, std)(images=photo(), return_tensors="pt")["pixel_values"]
    return _reference(
        lambda ids: model.get_text_features(input_ids=ids),
        lambda values: model.get_image_features(pixel_values=values),
        pixels,
    )


# --- open_clip ----------------------------------------------------------------------------------


def open_clip_model(quick_gelu: bool = False, seed: int = 3) -> Any:
    """Return a CLIP of open_clip."""
    torch.manual_seed(seed)
    return scatter(open_clip.CLIP(**MINI, quick_gelu=quick_gelu), seed)


def open_clip_config(quick_gelu: bool = False, **preprocess_cfg: Any) -> dict[str, Any]:
    """Return the content of open_clip_config.json, as open_clip writes it for the hub."""
    model_cfg = {**MINI, "quick_gelu": True} if quick_gelu else MINI
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": {
            "mean": OTHER_MEAN,
            "std": OTHER_STD,
            "interpolation": "bilinear",
            "resize_mode": "shortest",
            **preprocess_cfg,
        },
    }


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open_clip_config.json").write_text(json.dumps(config))


def open_clip_reference(
    model: Any,
    mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
    std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
    interpolation: str = "bicubic",
) -> Reference:
    preprocess = open_clip.image_transform(
        32, is_train=False, mean=tuple(mean), std=tuple(std), interpolation=interpolation
    )
    return embed_with_open_clip(model, preprocess)


def directory_reference(directory: Path) -> Reference:
    """Return the vectors of a directory as open_clip itself loads it."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    return embed_with_open_clip(model, preprocess)


def embed_with_open_clip(model: Any, preprocess: Callable[[Image.Image], Any]) -> Reference:
    """Return the vectors of a model of open_clip and its transform."""
    model.eval()
    return _reference(model.encode_text, model.encode_image, preprocess(photo())[None])
