"""Augment pictures, a batch at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, rotate, scale, recolor and blur pictures, and lay them on grounds of any color.

    The changes are about as large as the differences between two styles of emoji.

    pixels: uint8 [B, S, S, 4], RGBA. Returns float32 [B, 3, S, S] in 0–1.
    """
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=generator)

    def chosen(fraction: float) -> Tensor:
        return uniform(0, 1, 1, 1, 1) < fraction

    rgba = pixels.permute(0, 3, 1, 2).float() / 255
    alpha = rgba[:, 3:]
    rgba = torch.cat([rgba[:, :3] * alpha, alpha], 1)  # premultiplied, for resampling

    angle, scale, stretch = uniform(-0.14, 0.14), uniform(0.92, 1.12), uniform(-0.06, 0.06)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cos * (1 + stretch), uniform(-0.06, 0.06) - sin, uniform(-0.06, 0.06)], 1),
        torch.stack([sin, cos * (1 - stretch), uniform(-0.06, 0.06)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [*rgba.shape], align_corners=False)
    rgba = F.grid_sample(rgba, grid, align_corners=False)

    # On white, or a quarter of them on any color.
    ground = torch.where(chosen(0.25), uniform(0, 1, 3, 1, 1), torch.ones(1))
    rgb = rgba[:, :3] + (1 - rgba[:, 3:]) * ground

    # Contrast, brightness, saturation, tint; 3% become gray.
    mean = rgb.mean((1, 2, 3), keepdim=True)
    rgb = (rgb - mean) * uniform(0.85, 1.15, 1, 1, 1) + mean * uniform(0.9, 1.06, 1, 1, 1)
    gray = rgb.mean(1, keepdim=True)
    saturation = torch.where(chosen(0.03), torch.zeros(1), uniform(0.7, 1.3, 1, 1, 1))
    rgb = gray + (rgb - gray) * saturation
    rgb = rgb * uniform(0.95, 1.05, 3, 1, 1)

    blurred = F.avg_pool2d(rgb, 3, 1, 1, count_include_pad=False)
    return torch.where(chosen(0.15), blurred, rgb).clamp(0, 1)
