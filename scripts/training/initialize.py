"""Initialize the network: random matrices, and blocks that add nothing yet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clip_embed.model.clip import Clip

LOGIT_SCALE = 20.0  # initial factor of cosine similarities


def initial_parameters(clip: Clip) -> dict[str, Tensor]:
    """Return a tensor for every parameter."""
    tensors = {
        name: _initial_parameter(name, parameter) for name, parameter in clip.named_parameters()
    }
    side = clip.config.image_size // clip.config.patch_size  # patches
    encodings = position_encodings(side, clip.config.vision.width)
    class_token = torch.zeros(1, clip.config.vision.width)
    return tensors | {"visual.positional_embedding": torch.cat([class_token, encodings])}


def _initial_parameter(name: str, parameter: Tensor) -> Tensor:
    """Return the default for a parameter: random, or such that its layer adds nothing."""
    shape = parameter.shape
    if name == "logit_scale":
        return torch.tensor(math.log(LOGIT_SCALE))
    if ".ln_" in name or name.startswith("ln_"):
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    if name.endswith(("bias", "out_proj.weight", "c_proj.weight")):
        return torch.zeros(shape)
    if "embedding" in name:
        # Small: the rows of tokens that never occur in training stay as they are.
        return torch.randn(shape) * 0.01
    if name == "text_projection":
        return torch.linalg.qr(torch.randn(shape).T)[0].T
    if name == "visual.proj":
        return torch.randn(shape) * shape[0] ** -0.5
    return torch.randn(shape) * parameter[0].numel() ** -0.5


def position_encodings(side: int, channels: int) -> Tensor:
    """Encode positions in a square as sines and cosines of both coordinates, [side², channels].

    As in "Attention Is All You Need", with wavelengths from twice the side to two patches.
    """
    line = torch.arange(side) - (side - 1) / 2
    wavelengths = 2 * side ** torch.linspace(1, 0, channels // 4)
    angles = line[:, None] * (2 * math.pi / wavelengths)
    pairs = torch.cat([angles.sin(), angles.cos()], 1)  # [side, channels / 2]
    return torch.cat([pairs.repeat_interleave(side, 0), pairs.repeat(side, 1)], 1)
