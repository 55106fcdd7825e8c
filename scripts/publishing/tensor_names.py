"""Recognize the library by the tensors' names, and check the tensors that are published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from scripts.publishing.errors import PublishError

OPEN_CLIP, TRANSFORMERS = "open_clip", "transformers"

_BUFFERS = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size")
"""Last parts of names that no parameter has. The network computes these values itself."""

_TOWERS = {
    OPEN_CLIP: ("visual.", "token_embedding."),
    TRANSFORMERS: ("vision_model.", "text_model."),
}
"""Family → what names of its image tower and of its text tower begin with."""

_OF_TOWERS = (
    *("visual", "token_embedding", "positional_embedding", "transformer", "ln_final"),
    *("text_projection", "vision_model", "text_model", "visual_projection"),
)
"""First parts of the names of all parameters but logit_scale, which changes no vector."""

_MAX_REPEATED = 2**28
"""Values of an expanded tensor, which takes no space in its file; models have 2**26 in a tensor."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The first entry that a name begins with tells the architecture.
_OTHER_ARCHITECTURES = (
    ("logit_bias", "SigLIP"),
    ("vision_model.head.", "SigLIP"),
    ("text_decoder.", "CoCa"),
    ("visual.attn_pool.", "CoCa"),
    ("visual.trunk.", "a timm image tower"),
    ("visual.layer1.", "a ResNet CLIP"),
    ("visual.attnpool.", "a ResNet CLIP"),
    ("visual.blocks.", "EVA"),
    ("bert.", "chinese_clip"),
    ("text_model.encoder.layer.", "chinese_clip"),
    ("text.transformer.embeddings.", "a Hugging Face text tower"),
    ("text.transformer.encoder.", "a Hugging Face text tower"),
    ("text.", "open_clip's CustomTextCLIP"),
)


def drop_buffers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the parameters: without buffers and without scalars such as step counters."""
    scalars = ("logit_scale", "logit_bias")
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in _BUFFERS and (tensor.ndim > 0 or name in scalars)
    }


def is_of_tower(name: str) -> bool:
    """Tell whether the image tower or the text tower has a parameter of such a name."""
    return name.partition(".")[0] in _OF_TOWERS


def has_both_towers(names: Iterable[str]) -> bool:
    """Tell whether these are names of a whole model, in the naming scheme of either library."""
    return _find_family(list(names)) is not None


def _find_family(names: list[str]) -> str | None:
    for family, towers in _TOWERS.items():
        if all(any(name.startswith(tower) for name in names) for tower in towers):
            return family
    return None


def recognize(names: Iterable[str], shown: str) -> str:
    """Return the library whose naming scheme these are, OPEN_CLIP or TRANSFORMERS.

    Raises PublishError for other names.
    """
    names = list(names)
    for prefix, architecture in _OTHER_ARCHITECTURES:
        if found := next((name for name in names if name.startswith(prefix)), None):
            raise PublishError(
                f"{shown} holds {found}: {architecture}, which this service does not implement;"
                " publish one of OpenAI's CLIP vision transformers or a model like them"
            )
    if family := _find_family(names):
        return family
    for image, text in _TOWERS.values():
        if any(name.startswith(image) for name in names):
            raise PublishError(f"{shown} holds no text tower; publish a checkpoint of both towers")
        if any(name.startswith(text) for name in names):
            raise PublishError(f"{shown} holds no image tower; publish a checkpoint of both towers")
    raise PublishError(
        f"{shown} is no CLIP checkpoint: it holds {', '.join(names[:3]) or 'no tensors'}; give a"
        " checkpoint of open_clip, OpenAI or transformers"
    )


def check_types(tensors: Mapping[str, torch.Tensor], shown: str) -> None:
    """Raise PublishError for a tensor that is not a plain array of floating-point numbers."""
    for name, tensor in tensors.items():
        if kind := _name_other_kind(tensor):
            raise PublishError(
                f"{shown}: {name} is {kind}; save it as an ordinary tensor (.to_dense(), .clone())"
            )
        if tensor.dtype not in _FLOATS or tensor.is_quantized:
            raise PublishError(
                f"{shown}: {name} is {str(tensor.dtype).removeprefix('torch.')}; publish the model"
                " that was not quantized, in float16, bfloat16 or float32"
            )


def _name_other_kind(tensor: torch.Tensor) -> str | None:
    """Name the kind of a tensor that is no plain array in memory, None if it is one."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.device.type != "cpu":
        return f"a tensor without values (on the device {tensor.device.type})"
    count = tensor.numel()
    if count > _MAX_REPEATED and count * tensor.itemsize > tensor.untyped_storage().nbytes():
        return f"an expanded tensor of {count:,} values"
    return None


def check_finite(tensors: Mapping[str, torch.Tensor], shown: str) -> None:
    """Raise PublishError for a tensor that holds NaN or an infinite value."""
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        # Extremes propagate NaN, and unlike torch.isfinite they take no memory.
        lowest, highest = (float(extreme.float()) for extreme in torch.aminmax(tensor))
        if not (abs(lowest) < float("inf") and abs(highest) < float("inf")):
            kind = "NaN" if lowest != lowest or highest != highest else "infinite values"
            raise PublishError(
                f"{shown}: {name} holds {kind}; publish a checkpoint from before training diverged"
            )


def check_fit(
    tensors: Mapping[str, torch.Tensor], config: ClipConfig, shown: str, name: str
) -> None:
    """Raise PublishError unless `tensors` are exactly the parameters of the network."""
    if problems := Clip(config).misfits(tensors):
        count = f"{len(problems)} tensor{'s' if len(problems) > 1 else ''}"
        raise PublishError(
            f"{shown}: the weights do not fit {name}, in {count}: {'; '.join(problems[:3])}"
            f"{'; …' if len(problems) > 3 else ''}; give the architecture that was trained"
        )
