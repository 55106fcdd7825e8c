"""Read `open_clip_config.json`: the architecture of the network, and its preprocessing.

Imports no torch, so that the tokenizer can be built before torch is imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clip_embed.errors import ModelError
from clip_embed.inputs.preprocess import PreprocessConfig


@dataclass(frozen=True)
class TowerConfig:
    """A transformer: `layers` blocks, `width` channels, `heads` heads, MLPs `mlp_ratio` wide."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float


@dataclass(frozen=True)
class ClipConfig:
    """The architecture, as `model_cfg` of `open_clip_config.json` states it.

    embed_dim: floats per vector. image_size, patch_size: pixels per side.
    context_length: tokens per text, start and end included. vocab_size: token ids.
    """

    embed_dim: int
    image_size: int
    patch_size: int
    context_length: int
    vocab_size: int
    quick_gelu: bool
    vision: TowerConfig
    text: TowerConfig

    @classmethod
    def from_open_clip(cls, model_cfg: Mapping[str, Any]) -> ClipConfig:
        """Read open_clip's `model_cfg`, with open_clip's defaults for missing options.

        Raises ModelError for a missing or malformed value, and for any option that this network
        does not implement: ignoring one would give wrong vectors.
        """
        top = _Options("model_cfg", model_cfg)
        vision = _Options("vision_cfg", top.take("vision_cfg", dict))
        text = _Options("text_cfg", top.take("text_cfg", dict))
        vision_width = vision.take("width", int, 768)
        head_width = vision.take("head_width", int, 64)
        if vision_width % head_width:
            raise ModelError(f"vision_cfg: width {vision_width} is not a multiple of {head_width}")
        config = cls(
            embed_dim=top.take("embed_dim", int),
            quick_gelu=top.take("quick_gelu", bool, False),
            image_size=vision.take("image_size", int, 224),
            patch_size=vision.take("patch_size", int, 16),
            context_length=text.take("context_length", int, 77),
            vocab_size=text.take("vocab_size", int, 49408),
            vision=TowerConfig(
                width=vision_width,
                layers=vision.take("layers", int, 12),
                heads=vision_width // head_width,
                mlp_ratio=vision.take("mlp_ratio", float, 4.0),
            ),
            text=TowerConfig(
                width=text.take("width", int, 512),
                layers=text.take("layers", int, 12),
                heads=text.take("heads", int, 8),
                mlp_ratio=text.take("mlp_ratio", float, 4.0),
            ),
        )
        for options in (top, vision, text):
            options.refuse_rest()
        if config.text.width % config.text.heads:
            raise ModelError(
                f"text_cfg: width {config.text.width} is no multiple of {config.text.heads} heads"
            )
        if config.image_size % config.patch_size:
            raise ModelError(
                f"vision_cfg: image_size {config.image_size} is not a multiple of"
                f" patch_size {config.patch_size}"
            )
        return config


class _Options:
    """Options of one section, each of which must be taken."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where = where
        self.left = dict(values)

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        value = self.left.pop(name, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError:
                value = math.inf
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelError(f"{self.where}: {name} is {value!r}; expected {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{self.where}: {name} is {value!r}; expected a finite number")
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise ModelError(f"{self.where}: {name} is {value!r}; expected a positive number")
        return value

    def refuse_rest(self) -> None:
        # open_clip writes options that are off as null or false: these may be ignored.
        rest = sorted(name for name, value in self.left.items() if value not in (None, False))
        if rest:
            raise ModelError(
                f"{self.where}: {', '.join(rest)} not supported; this service implements"
                " OpenAI's CLIP vision transformers (ViT-L-14-quickgelu and similar)"
            )


def read_config(open_clip_config: bytes) -> tuple[ClipConfig, PreprocessConfig]:
    """Parse `open_clip_config.json`. Raises ModelError."""
    try:
        document = json.loads(open_clip_config)
        model_cfg, preprocess_cfg = document["model_cfg"], document["preprocess_cfg"]
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"open_clip_config.json is malformed ({error!r})") from error
    config = ClipConfig.from_open_clip(model_cfg)
    return config, PreprocessConfig.from_open_clip(preprocess_cfg, config.image_size)
