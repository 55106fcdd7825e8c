"""Tell the kind of a model by its tensors' names, and check the tensors that are published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from scripts.publishing.errors import SourceError

OPEN_CLIP, TRANSFORMERS = "open_clip", "transformers"

_BUFFERS = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size")
"""Last parts of names that no parameter has. The network computes these values itself."""

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


def recognize(names: Iterable[str], shown: str) -> str:
    """Return whose names these are: OPEN_CLIP or TRANSFORMERS. Raises SourceError for others."""
    names = list(names)
    for prefix, architecture in _OTHER_ARCHITECTURES:
        if found := next((name for name in names if name.startswith(prefix)), None):
            raise SourceError(
                f"{shown} holds {found}: {architecture}, which this service does not implement;"
                " publish one of OpenAI's CLIP vision transformers or a model like them"
            )
    for family, image, text in (
        (OPEN_CLIP, "visual.", "token_embedding."),
        (TRANSFORMERS, "vision_model.", "text_model."),
    ):
        has_image = any(name.startswith(image) for name in names)
        has_text = any(name.startswith(text) for name in names)
        if has_image and has_text:
            return family
        if has_image:
            raise SourceError(f"{shown} holds no text tower; publish a checkpoint of both towers")
        if has_text:
            raise SourceError(f"{shown} holds no image tower; publish a checkpoint of both towers")
    raise SourceError(
        f"{shown} is no CLIP checkpoint: it holds {', '.join(names[:3])}; give a checkpoint of"
        " open_clip, OpenAI or transformers"
    )


def check_types(tensors: Mapping[str, torch.Tensor], shown: str) -> None:
    """Raise SourceError for a tensor that does not hold plain floating-point numbers."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS or tensor.is_quantized:
            raise SourceError(
                f"{shown}: {name} is {str(tensor.dtype).removeprefix('torch.')}; publish the model"
                " that was not quantized, in float16, bfloat16 or float32"
            )


def check_finite(tensors: Mapping[str, torch.Tensor], shown: str) -> None:
    """Raise SourceError for a tensor that holds NaN or an infinite value."""
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        # Extremes propagate NaN, and unlike torch.isfinite they take no memory.
        lowest, highest = (float(extreme.float()) for extreme in torch.aminmax(tensor))
        if not (abs(lowest) < float("inf") and abs(highest) < float("inf")):
            kind = "NaN" if lowest != lowest or highest != highest else "infinite values"
            raise SourceError(
                f"{shown}: {name} holds {kind}; publish a checkpoint from before training diverged"
            )


def check_fit(
    tensors: Mapping[str, torch.Tensor], config: ClipConfig, shown: str, name: str
) -> None:
    """Raise SourceError unless `tensors` are exactly the parameters of the network."""
    expected = {key: tuple(p.shape) for key, p in Clip(config).named_parameters()}
    given = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    problems = [
        *(f"{key} is missing" for key in expected if key not in given),
        *(f"{key} is unknown" for key in given if key not in expected),
        *(
            f"{key} has shape {list(given[key])}, expected {list(shape)}"
            for key, shape in expected.items()
            if given.get(key, shape) != shape
        ),
    ]
    if problems:
        count = f"{len(problems)} tensor{'s' if len(problems) > 1 else ''}"
        raise SourceError(
            f"{shown}: the weights do not fit {name}, in {count}: {'; '.join(problems[:3])}"
            f"{'; …' if len(problems) > 3 else ''}; give the architecture that was trained"
        )
