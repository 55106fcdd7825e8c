"""Choose the device of the network, and its precision there."""

from __future__ import annotations

import torch

from clip_embed.errors import SettingError


def choose_device(wanted: str | None) -> torch.device:
    """Return the device `wanted` ("cuda" or "cpu", from CLIP_DEVICE), or the GPU if there is one.

    Raises SettingError for any other name, and for "cuda" if torch sees no GPU.
    """
    if wanted not in (None, "cuda", "cpu"):
        raise SettingError(f"CLIP_DEVICE is {wanted!r}; use 'cuda' or 'cpu', or leave it unset")
    available = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise SettingError(
            "CLIP_DEVICE is 'cuda', but torch sees no GPU; use 'cpu' or leave it unset"
        )
    return torch.device("cuda" if available else "cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return float16 for a GPU, float32 for a CPU.

    float16 is what a GPU's tensor cores take and what OpenAI released the weights in; on a CPU
    anything narrower than float32 is slower.
    """
    return torch.float16 if device.type == "cuda" else torch.float32
