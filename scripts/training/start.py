"""What the network's parameters are before the first step: a classifier of small pictures.

Nearest neighbours among drawings of 8 by 8 pixels find more than a transformer learns in an hour
from random numbers. So it begins as what is nearly the same: its first layer gathers every patch's
strongest patterns into the class token, each in channels of its own, the layers after that add
nothing yet, and the projection at the end is solved. Training goes on from there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_embed.model import Clip

LOUD = 3.0  # a patch's place, beside what is in it
SHARP = 0.3  # attention to the patch a head looks at
STEEP = 20.0  # multiplies cosine similarities


def initial(clip: Clip, pixels: Tensor) -> dict[str, Tensor]:
    """A tensor for every parameter. pixels: normalised drawings [B, 3, S, S], some hundreds."""
    tensors = {}
    for name, parameter in clip.named_parameters():
        shape = parameter.shape
        if name == "logit_scale":
            tensor = torch.tensor(math.log(STEEP))
        elif ".ln_" in name or name.startswith("ln_"):
            tensor = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        elif name.endswith(("bias", "out_proj.weight", "c_proj.weight")):
            tensor = torch.zeros(shape)
        elif "embedding" in name:
            tensor = torch.randn(shape) * 0.04
        elif name == "text_projection":
            tensor = torch.linalg.qr(torch.randn(shape).T)[0].T
        else:
            tensor = torch.randn(shape) * parameter[0].numel() ** -0.5
        tensors[name] = tensor

    size = clip.config.patch_size
    side = clip.config.image_size // size
    width, heads = clip.config.vision.width, clip.config.vision.heads
    own = width // heads  # channels of a head
    if heads != side**2 or own % 4:
        raise ValueError(f"{side**2} patches and {heads} heads of {own}: want as many")
    # The first channels say where a patch is, the others what is in it, strongest pattern first.
    place = LOUD * places(side, own)
    middle = LOUD * torch.tensor([0.0, 1.0]).repeat(own // 2)
    first = "visual.transformer.resblocks.0.attn."
    looks, values = tensors[first + "in_proj_weight"].split([2 * width, width])
    looks[:] = F.pad(rotations(side, own), (0, width - own))
    values[:] = torch.eye(width).roll(own, 1)[:own].repeat(heads, 1)
    return tensors | {
        "visual.class_embedding": torch.zeros(width),
        "visual.positional_embedding": F.pad(torch.cat([middle[None], place]), (0, width - own)),
        "visual.conv1.weight": torch.cat(
            [torch.zeros(own, 3, size, size), patterns(pixels, size, width - own)]
        ),
        first + "out_proj.weight": torch.eye(width),
        "visual.proj": torch.eye(width, clip.config.embed_dim),
    }


def places(side: int, channels: int) -> Tensor:
    """Places in a square as sines and cosines in both directions, [side², channels]; the middle of
    the square is at angle 0. As in "Attention Is All You Need", with waves that fit the square."""
    line = torch.arange(side) - (side - 1) / 2
    angles = line[:, None] * waves(side, channels)
    pairs = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
    return torch.cat([pairs.repeat_interleave(side, 0), pairs.repeat(side, 1)], 1)


def waves(side: int, channels: int) -> Tensor:
    """[channels / 4]"""
    return torch.arange(1, channels // 4 + 1) * math.pi / side


def rotations(side: int, channels: int) -> Tensor:
    """Queries and keys [2 side² channels, channels] that turn the middle's angles into those of a
    patch, another for each head. Patches look as far from themselves."""
    line = torch.arange(side) - (side - 1) / 2
    offsets = torch.cartesian_prod(line, line)  # [H, 2]
    angles = (offsets[:, :, None] * waves(side, channels)).flatten(1)  # [H, channels / 2]
    queries = torch.diag_embed(angles.cos().repeat_interleave(2, 1))
    even = torch.arange(0, channels, 2)
    queries[:, even, even + 1] = angles.sin()
    queries[:, even + 1, even] = -angles.sin()
    keys = torch.eye(channels).expand(side**2, -1, -1)
    return torch.cat([queries, keys]).flatten(0, 1) * math.sqrt(SHARP)


def patterns(pixels: Tensor, size: int, count: int) -> Tensor:
    """Filters [count, 3, size, size]: the principal components of patches of `pixels`, strongest
    first, as loud as each other but for the weakest."""
    patches = F.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1)
    patches = patches[patches.std(1) > 0.05][:20000]  # not of the plain ground
    _, spread, components = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
    spread = spread[:count, None] / math.sqrt(len(patches))
    return (components[:count] / (spread + 0.1 * spread[0])).view(count, 3, size, size)


def discriminants(features: Tensor, classes: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Linear discriminant analysis: mean [W], directions [W, rank] in which features differ most
    between classes, for what they differ within one; and each class's mean in them [C, rank].

    features: [N, W]. classes: int64 [N], none empty.
    """
    count = classes.bincount()[:, None]
    means = torch.zeros(len(count), features.shape[1]).index_add_(0, classes, features) / count
    within = (features - means[classes]).T.cov()
    within += 0.1 * within.trace() / len(within) * torch.eye(len(within))
    spread, axes = torch.linalg.eigh(within)
    whitening = axes / spread.sqrt()
    mean = means.mean(0)
    between = torch.linalg.svd((means - mean) @ whitening, full_matrices=False)[2]
    directions = whitening @ between[:rank].T
    return mean, directions, (means - mean) @ directions
