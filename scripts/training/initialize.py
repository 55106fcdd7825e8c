"""Initialize the network as a classifier of small pictures.

Nearest neighbors among drawings of 8 × 8 pixels are better than a transformer that was trained for
an hour from random weights. So the network starts as nearly the same classifier: the first layer
copies the principal components of every patch into the class token, each patch into channels of its
own; the other layers add nothing yet; and the projection at the end is computed. Training goes on
from there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_embed.model.clip import Clip

POSITION_SCALE = 3.0  # of position encodings, relative to the content of a patch
ATTENTION_SCALE = 0.3  # of the attention of a head to its own patch
LOGIT_SCALE = 20.0  # initial factor of cosine similarities


def initial_parameters(clip: Clip, pixels: Tensor) -> dict[str, Tensor]:
    """Return a tensor for every parameter.

    pixels: normalized drawings [B, 3, S, S], some hundred of them.
    """
    tensors = {
        name: _initial_parameter(name, parameter) for name, parameter in clip.named_parameters()
    }
    size = clip.config.patch_size
    side = clip.config.image_size // size  # patches
    width, heads = clip.config.vision.width, clip.config.vision.heads
    head_width = width // heads
    if heads != side**2 or head_width % 4:
        raise ValueError(
            f"{side**2} patches and {heads} heads of {head_width} channels: the initialization"
            " needs one head per patch, and a multiple of 4 channels"
        )
    # The first channels encode the position of a patch, the others its content, principal
    # components in order.
    position = POSITION_SCALE * position_encodings(side, head_width)
    center = POSITION_SCALE * torch.tensor([0.0, 1.0]).repeat(head_width // 2)
    attention = "visual.transformer.resblocks.0.attn."
    queries_and_keys, values = tensors[attention + "in_proj_weight"].split([2 * width, width])
    queries_and_keys[:] = F.pad(rotations(side, head_width), (0, width - head_width))
    values[:] = torch.eye(width).roll(head_width, 1)[:head_width].repeat(heads, 1)
    return tensors | {
        "visual.class_embedding": torch.zeros(width),
        "visual.positional_embedding": F.pad(
            torch.cat([center[None], position]), (0, width - head_width)
        ),
        "visual.conv1.weight": torch.cat(
            [
                torch.zeros(head_width, 3, size, size),
                principal_components(pixels, size, width - head_width),
            ]
        ),
        attention + "out_proj.weight": torch.eye(width),
        "visual.proj": torch.eye(width, clip.config.embed_dim),
    }


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
        return torch.randn(shape) * 0.04
    if name == "text_projection":
        return torch.linalg.qr(torch.randn(shape).T)[0].T
    return torch.randn(shape) * parameter[0].numel() ** -0.5


def position_encodings(side: int, channels: int) -> Tensor:
    """Encode positions in a square as sines and cosines of both coordinates, [side², channels].

    The center of the square has the angle 0. As in "Attention Is All You Need", with frequencies
    that suit the square.
    """
    line = torch.arange(side) - (side - 1) / 2
    angles = line[:, None] * _frequencies(side, channels)
    pairs = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
    return torch.cat([pairs.repeat_interleave(side, 0), pairs.repeat(side, 1)], 1)


def _frequencies(side: int, channels: int) -> Tensor:
    """Return the angle between neighbors for each pair of channels, [channels / 4]."""
    return torch.arange(1, channels // 4 + 1) * math.pi / side


def rotations(side: int, channels: int) -> Tensor:
    """Return queries and keys [2 side² channels, channels] that let each head see its own patch.

    They rotate the angles of the center into those of the patch of the head, so the class token
    attends to that patch. Other tokens attend to the patch at the same distance from themselves.
    """
    line = torch.arange(side) - (side - 1) / 2
    offsets = torch.cartesian_prod(line, line)  # [H, 2]
    angles = (offsets[:, :, None] * _frequencies(side, channels)).flatten(1)  # [H, channels / 2]
    queries = torch.diag_embed(angles.cos().repeat_interleave(2, 1))
    even = torch.arange(0, channels, 2)
    queries[:, even, even + 1] = angles.sin()
    queries[:, even + 1, even] = -angles.sin()
    keys = torch.eye(channels).expand(side**2, -1, -1)
    return torch.cat([queries, keys]).flatten(0, 1) * math.sqrt(ATTENTION_SCALE)


def principal_components(pixels: Tensor, size: int, count: int) -> Tensor:
    """Return filters [count, 3, size, size]: the principal components of the patches of `pixels`.

    In order, and scaled so that their outputs have about the same variance, except for the weakest.
    """
    patches = F.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1)
    patches = patches[patches.std(1) > 0.05][:20000]  # without plain background
    _, spread, components = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
    spread = spread[:count, None] / math.sqrt(len(patches))
    return (components[:count] / (spread + 0.1 * spread[0])).view(count, 3, size, size)


def linear_discriminants(
    features: Tensor, classes: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the linear discriminant analysis of `features` [N, W]. classes: int64 [N], all used.

    Returns the mean [W]; the directions [W, rank] that separate classes best, relative to the
    spread within a class; and the mean of each class in these directions [C, rank].
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
