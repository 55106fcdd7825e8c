"""Other views of the same pictures, a batch at a time. Knows nothing of networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(pixels: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Moved, turned, recoloured, blurred, on grounds of any colour.

    pixels: uint8 [B, S, S, 4], RGBA. strength: of all of it, from 0, hardly any, to 1. Returns
    float32 [B, 3, S, S] from 0 to 1.
    """
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=generator)

    def around(low: float, high: float, *shape: int) -> Tensor:
        """Factors near 1."""
        return 1 + strength * (uniform(low, high, *shape) - 1)

    def chosen(share: float) -> Tensor:
        return (uniform(0, 1) < share * strength).view(count, 1, 1, 1)

    rgba = pixels.permute(0, 3, 1, 2).float() / 255
    alpha = rgba[:, 3:]
    rgba = torch.cat([rgba[:, :3] * alpha, alpha], 1)

    # Turned, stretched and moved; two in ten stand straight.
    angle = strength * uniform(-0.35, 0.35) * (uniform(0, 1) < 0.8)
    scale, stretch = around(0.85, 1.3), strength * uniform(-0.12, 0.12)
    shear = strength * uniform(-0.15, 0.15)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cos * (1 + stretch), -sin + shear, strength * uniform(-0.15, 0.15)], 1),
        torch.stack([sin, cos * (1 - stretch), strength * uniform(-0.15, 0.15)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [*rgba.shape], align_corners=False)
    rgba = F.grid_sample(rgba, grid, align_corners=False)

    # On white or on any colour.
    ground = torch.where(chosen(0.4), uniform(0, 1, 3, 1, 1), torch.ones(1))
    rgb = rgba[:, :3] + (1 - rgba[:, 3:]) * ground

    # Brightness, contrast, saturation, tint; a few lose their colour.
    mean = rgb.mean((1, 2, 3), keepdim=True)
    rgb = (rgb - mean) * around(0.7, 1.3, 1, 1, 1) + mean * around(0.8, 1.15, 1, 1, 1)
    grey = rgb.mean(1, keepdim=True)
    saturation = torch.where(chosen(0.05), torch.zeros(1), around(0.6, 1.4, 1, 1, 1))
    rgb = grey + (rgb - grey) * saturation
    rgb = rgb * around(0.9, 1.1, 3, 1, 1)

    blurred = F.avg_pool2d(rgb, 3, 1, 1, count_include_pad=False)
    rgb = torch.where(chosen(0.25), blurred, rgb)
    return rgb.clamp(0, 1)
