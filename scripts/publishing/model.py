"""Read the model to publish: a checkpoint file, an open_clip pretrained tag, or random weights.

open_clip takes seconds to import, so only the functions that need it do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch

from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from scripts.publishing import DEFAULT_MODEL

OPENAI_PREPROCESSING = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""`preprocess_cfg` of OpenAI's models: the default for every model that states nothing else."""

_NOT_PARAMETERS = ("input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's own checkpoints beside the parameters."""


@dataclass(frozen=True)
class Model:
    """A network's parameters and configuration.

    name: open_clip's name of the architecture. source: where the parameters come from. tensors:
    float32, by open_clip's names. config: the content of `open_clip_config.json`.
    """

    name: str
    source: str
    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]


def read_model(source: str, model: str) -> Model:
    """Read the model that the arguments SOURCE and NAME of the command describe.

    Raises SystemExit if there is no such model, ModelError if the parameters do not fit it.
    """
    name, model_cfg = _read_architecture(model)
    preprocess_cfg: Mapping[str, Any] = OPENAI_PREPROCESSING
    kind, _, seed = source.partition(":")
    if kind == "random":
        if not seed.isdecimal():
            raise SystemExit(f"{source!r}: give a seed, as in random:0")
        tensors = _create_random(model, name, int(seed))
    elif Path(source).is_file():
        tensors = _read_checkpoint(Path(source))
        source = Path(source).name
    else:
        tensors, preprocess_cfg = _download_pretrained(model, name, source)
    Clip(ClipConfig.from_open_clip(model_cfg)).load(tensors)  # raises ModelError if they do not fit
    return Model(name, source, tensors, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})


def _read_architecture(model: str) -> tuple[str, dict[str, Any]]:
    """Return open_clip's name and configuration of `model`, which is a name or a JSON file."""
    if not model.endswith(".json"):
        model_cfg = _import_open_clip(model).get_model_config(model)
        if model_cfg is None:
            raise SystemExit(f"open_clip knows no model {model!r}; try {DEFAULT_MODEL}")
        return model, model_cfg
    try:
        model_cfg = json.loads(Path(model).read_bytes())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{model} cannot be read as a model config: {error}") from error
    required = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(model_cfg, dict) or any(key not in model_cfg for key in required):
        raise SystemExit(f"{model} is not a model config: it needs {', '.join(required)}")
    return Path(model).stem, model_cfg


def _import_open_clip(model: str) -> ModuleType:
    """Import open_clip, and make it know `model` if that is a JSON file."""
    import open_clip

    if model.endswith(".json"):
        open_clip.add_model_config(model)
    return open_clip


def _create_random(model: str, name: str, seed: int) -> dict[str, torch.Tensor]:
    open_clip = _import_open_clip(model)
    torch.manual_seed(seed)
    tensors = open_clip.create_model(name, pretrained=None).state_dict()
    # Values that float16 holds, like those of OpenAI's release: the stored size is then the same.
    return {key: tensor.half().float() for key, tensor in tensors.items()}


def _download_pretrained(
    model: str, name: str, tag: str
) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    """Return the parameters of a pretrained tag of open_clip, and its `preprocess_cfg`."""
    open_clip = _import_open_clip(model)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise SystemExit(
            f"{tag!r} is neither a file, nor random:SEED, nor a pretrained tag of {name}"
            f" (known: {', '.join(tags) or 'none'})"
        )
    network = open_clip.create_model(name, pretrained=tag)
    stated = open_clip.get_model_preprocess_cfg(network)
    used = {key: stated[key] for key in OPENAI_PREPROCESSING if stated.get(key) is not None}
    return network.state_dict(), OPENAI_PREPROCESSING | used


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {
            name.removeprefix("module."): tensor.float()
            for name, tensor in state.items()
            if name not in _NOT_PARAMETERS
        }
    except Exception as error:
        # torch's own message advises weights_only=False, which runs code from the file.
        raise SystemExit(
            f"{path} is not a checkpoint of named tensors and nothing else"
            f" ({type(error).__name__}); save its state_dict alone and publish that"
        ) from error
