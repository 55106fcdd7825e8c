"""Where the network runs, and in which precision."""

from __future__ import annotations

import torch


def choose_device(wanted: str | None) -> torch.device:
    """`wanted` (CLIP_DEVICE) if given, else the GPU if there is one.

    Raises ValueError for anything but "cuda" or "cpu", and for "cuda" where there is none.
    """
    if wanted not in (None, "", "cuda", "cpu"):
        raise ValueError(f"CLIP_DEVICE is {wanted!r}; use 'cuda' or 'cpu', or leave it unset")
    available = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ValueError(
            "CLIP_DEVICE is 'cuda', but torch sees no GPU; use 'cpu' or leave it unset"
        )
    return torch.device("cuda" if available else "cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    """float16 on a GPU, whose tensor cores it feeds and in which OpenAI released the weights;
    float32 on a CPU, where anything narrower is slower."""
    return torch.float16 if device.type == "cuda" else torch.float32
