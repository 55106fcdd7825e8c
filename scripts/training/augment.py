"""Augment pictures on their device, a batch at a time, so that they differ like styles do.

Each function changes all pictures with few tensor operations, or a random subset of them. No
operation waits for the device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_HUE = 0.2  # radians. More would turn a red heart into an orange one.
CLEAN = 0.15  # fraction of the pictures whose shape and color are not changed


class Random:
    """Random numbers for `count` pictures, on the device of `generator`."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self._generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return float32 [count, *shape]."""
        values = torch.empty(self.count, *shape, device=self._generator.device)
        return values.uniform_(low, high, generator=self._generator)

    def chosen(self, fraction: float) -> Tensor:
        """Return bool [count, 1, 1, 1], true for about `fraction` of the pictures."""
        return self.uniform(0, 1, 1, 1, 1) < fraction

    def rows(self, fraction: float) -> Tensor:
        """Return the indexes of a random subset of fixed size, so that no length is read back."""
        device = self._generator.device
        order = torch.randperm(self.count, generator=self._generator, device=device)
        return order[: round(fraction * self.count)]


def augment(pixels: Tensor, partners: Tensor, generator: torch.Generator) -> Tensor:
    """Return changed pictures, laid on grounds of any color: float32 [B, 3, S, S] in 0–1.

    pixels: uint8 [B, S, S, 4], RGBA. partners: uint8 [M, S, S, 4], other drawings of the classes of
    the first M pictures, to blend with them. generator: on the device of the pictures.
    """
    random = Random(len(pixels), generator)
    rgba = blend(to_float(pixels), to_float(partners), random)
    strength = ((random.uniform(0, 1, 1, 1, 1) - CLEAN) / (1 - CLEAN)).clamp(min=0)
    color = recolor(rgba[:, :3], strength, random)
    alpha = rgba[:, 3:]
    rgba = warp(torch.cat([color * alpha, alpha], 1), strength, random)
    rgb = lay_on_ground(outline(rgba, random), random)
    return erase(redraw(rgb, random), random).clamp(0, 1)


def to_float(pixels: Tensor) -> Tensor:
    """Convert uint8 [B, S, S, 4] to float32 [B, 4, S, S] in 0–1."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def blend(rgba: Tensor, partners: Tensor, random: Random) -> Tensor:
    """Blend the first pictures with `partners`, in any ratio."""
    count = len(partners)
    ratio = random.uniform(0, 1, 1, 1, 1)[:count]
    ours, theirs = rgba[:count, 3:] * ratio, partners[:, 3:] * (1 - ratio)
    alpha = ours + theirs
    color = (rgba[:count, :3] * ours + partners[:, :3] * theirs) / alpha.clamp(min=1e-4)
    return torch.cat([torch.cat([color, alpha], 1), rgba[count:]])


def recolor(rgb: Tensor, strength: Tensor, random: Random) -> Tensor:
    """Change hue, saturation, tint, contrast, brightness and gamma; 6% become gray.

    All but gamma are one matrix and one vector per picture.
    """
    angle = random.uniform(-MAX_HUE, MAX_HUE, 1, 1) * strength[:, 0]
    gray = torch.full((3, 3), 1 / 3, device=rgb.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cross = cross.to(rgb.device, non_blocking=True)
    identity = torch.eye(3, device=rgb.device)
    rotation = angle.cos() * identity + angle.sin() * cross + (1 - angle.cos()) * gray
    saturation = (random.uniform(-0.6, 0.6, 1, 1) * strength[:, 0]).exp()
    saturation = saturation * ~random.chosen(0.06)[:, 0]
    matrix = saturation * rotation + (1 - saturation) * gray
    tint = 1 + random.uniform(-0.12, 0.12, 3, 1) * strength[:, 0]
    contrast = (random.uniform(-0.35, 0.35, 1, 1) * strength[:, 0]).exp()
    brightness = random.uniform(-0.12, 0.12, 1, 1) * strength[:, 0]
    matrix = contrast * tint * matrix
    offset = 0.5 - 0.5 * contrast + brightness  # contrast changes around middle gray
    changed = torch.baddbmm(offset, matrix, rgb.flatten(2)).view(rgb.shape)
    gamma = (random.uniform(-0.4, 0.4, 1, 1, 1) * strength).exp()
    return changed.clamp(1e-3, 1).pow(gamma)


def warp(rgba: Tensor, strength: Tensor, random: Random) -> Tensor:
    """Rotate, scale, stretch, shear, shift and bend pictures. rgba: premultiplied."""
    amount = strength[:, 0, 0, 0]
    angle = random.uniform(-0.3, 0.3) * amount
    # Larger than 1 shrinks the drawing.
    scale = (random.uniform(-0.2, 0.25) * amount).exp()
    stretch = (random.uniform(-0.15, 0.15) * amount).exp()
    shear, right, down = (random.uniform(-0.12, 0.12, 3).T * amount).unbind()
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cos * stretch, shear - sin, right], 1),
        torch.stack([sin, cos / stretch, down], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [*rgba.shape], align_corners=False)
    bend = random.uniform(-0.1, 0.1, 2, 5, 5) * strength
    bend = F.interpolate(bend, rgba.shape[2:], mode="bicubic", align_corners=True)
    return F.grid_sample(rgba, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def outline(rgba: Tensor, random: Random) -> Tensor:
    """Draw a dark or white line around some drawings, one or two pixels wide."""
    for size in (3, 5):
        rows = random.rows(0.07)
        part = rgba[rows]
        alpha = part[:, 3:]
        line = (1 - alpha) * F.max_pool2d(alpha, size, 1, size // 2)
        shade = torch.where(random.chosen(0.6), random.uniform(0, 0.3, 1, 1, 1), 1.0)[: len(rows)]
        rgba[rows] = part + torch.cat([(line * shade).expand(-1, 3, -1, -1), line], 1)
    return rgba


def lay_on_ground(rgba: Tensor, random: Random) -> Tensor:
    """Lay 65% on white, as the service does, and the others on a color or on a color gradient."""
    start = random.uniform(0, 1, 3, 1, 1)
    end = torch.where(random.chosen(0.5), start, random.uniform(0, 1, 3, 1, 1))
    white = random.chosen(0.65)
    start, end = torch.where(white, 1.0, start), torch.where(white, 1.0, end)
    ramp = torch.linspace(0, 1, rgba.shape[-1], device=rgba.device).view(1, 1, -1, 1)
    return rgba[:, :3] + (1 - rgba[:, 3:]) * torch.lerp(start, end, ramp)


def redraw(rgb: Tensor, random: Random) -> Tensor:
    """Change how some pictures are drawn: lines, sharpness, number of colors, noise."""
    rows = random.rows(0.1)  # dark lines along edges
    part = rgb[rows]
    edges = F.max_pool2d(part, 3, 1, 1) + F.max_pool2d(-part, 3, 1, 1)
    edges = edges.amax(1, keepdim=True) * random.uniform(0.3, 1, 1, 1, 1)[: len(rows)]
    rgb[rows] = part * (1 - edges)
    rows = random.rows(0.06)  # thicker dark lines
    rgb[rows] = -F.max_pool2d(-rgb[rows], 3, 1, 1)
    rows = random.rows(0.04)  # thinner dark lines
    rgb[rows] = F.max_pool2d(rgb[rows], 3, 1, 1)
    for size in (3, 5):  # blur, or sharpen
        rows = random.rows(0.2)
        part = rgb[rows]
        smooth = F.avg_pool2d(part, size, 1, size // 2, count_include_pad=False)
        rgb[rows] = torch.lerp(smooth, part, random.uniform(0, 2, 1, 1, 1)[: len(rows)])
    rows = random.rows(0.08)  # few colors
    levels = random.uniform(2, 7, 1, 1, 1)[: len(rows)].round()
    rgb[rows] = (rgb[rows] * levels).round() / levels
    rows = random.rows(0.15)  # noise
    noise = random.uniform(-1, 1, *rgb.shape[1:])[: len(rows)]
    rgb[rows] += noise * random.uniform(0, 0.15, 1, 1, 1)[: len(rows)]
    return rgb


def erase(rgb: Tensor, random: Random) -> Tensor:
    """Cover a rectangle of a quarter of the pictures with one color."""
    line = torch.linspace(0, 1, rgb.shape[-1], device=rgb.device)
    center = random.uniform(0, 1, 2, 1, 1)
    half = random.uniform(0.05, 0.25, 2, 1, 1) * random.chosen(0.25)[:, 0, None]
    inside_x = (line.view(1, 1, -1) - center[:, 0]).abs() < half[:, 0]  # [B, 1, S]
    inside_y = (line.view(1, -1, 1) - center[:, 1]).abs() < half[:, 1]  # [B, S, 1]
    inside = (inside_x & inside_y).unsqueeze(1)  # [B, 1, S, S]
    return torch.where(inside, random.uniform(0, 1, 3, 1, 1), rgb)
