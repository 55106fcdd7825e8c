"""Convert CLIP models of Hugging Face transformers: `config.json` and the tensors' names.

Written from the model's documented configuration; transformers itself is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from scripts.publishing.architecture import mlp_ratio
from scripts.publishing.errors import PublishError, show

_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""Values that `config.json` may leave out (CLIPTextConfig, CLIPVisionConfig)."""

_PROJECTION_DIM = 512
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
# 2 is the wrong id in configs from before 2023, for which transformers takes the highest id of the
# text: that is the end-of-text token too.
_END_TOKENS = (49407, 2)
_WAY_OUT = "publish a model with OpenAI's architecture (openai/clip-vit-large-patch14 and similar)"


def read_config(config: Mapping[str, Any], by: str) -> tuple[dict[str, Any], bool]:
    """Return open_clip's `model_cfg` and whether the activation is QuickGELU.

    by: the file's name, for messages. Raises PublishError for a model of another architecture, or
    one whose options the network does not implement.
    """
    model_type = config.get("model_type")
    if model_type != "clip":
        raise PublishError(
            f"{by}: model_type is {show(model_type)}, not 'clip', which this service does not"
            f" implement; {_WAY_OUT}"
        )
    classes = config.get("architectures")
    if classes is None:
        classes = ["CLIPModel"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise PublishError(f"{by}: architectures is {show(classes)}; expected a list of names")
    if classes and "CLIPModel" not in classes:
        raise PublishError(
            f"{by}: architectures is {', '.join(classes)}; publish a CLIPModel, which has both"
            " towers and their projections"
        )
    if config.get("quantization_config"):
        raise PublishError(f"{by}: the tensors are quantized; publish the model that was not")
    text = _section(config, "text_config", _TEXT_DEFAULTS, by)
    vision = _section(config, "vision_config", _VISION_DEFAULTS, by)
    _check_options(text, vision, by)
    width, heads = vision["hidden_size"], vision["num_attention_heads"]
    model_cfg: dict[str, Any] = {
        "embed_dim": _positive(config.get("projection_dim", _PROJECTION_DIM), "projection_dim", by),
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["num_hidden_layers"],
            "width": width,
            "head_width": width // heads,
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
        },
    }
    for section, tower in ((model_cfg["vision_cfg"], vision), (model_cfg["text_cfg"], text)):
        ratio = mlp_ratio(tower["intermediate_size"], tower["hidden_size"])
        if ratio != 4.0:
            section["mlp_ratio"] = ratio
    return model_cfg, _ACTIVATIONS[text["hidden_act"]]


def _section(
    config: Mapping[str, Any], name: str, defaults: Mapping[str, Any], by: str
) -> dict[str, Any]:
    """Return the options of one tower, completed with transformers' defaults."""
    section, override = config.get(name) or {}, config.get(f"{name}_dict")
    for key, value in ((name, section), (f"{name}_dict", override or {})):
        if not isinstance(value, Mapping):
            raise PublishError(f"{by}: {key} is {show(value)}; expected an object")
    options = {**defaults, **{key: section[key] for key in defaults if key in section}}
    if override is not None:
        # Of configs from before 2023. transformers completes it with defaults, then it wins.
        options = {**defaults, **{key: override[key] for key in defaults if key in override}}
    for key, default in defaults.items():
        if type(default) is int and key != "eos_token_id":
            _positive(options[key], f"{name}.{key}", by)
    if options["hidden_size"] % options["num_attention_heads"]:
        raise PublishError(
            f"{by}: {name}.hidden_size {options['hidden_size']} is no multiple of"
            f" {options['num_attention_heads']} heads; {_WAY_OUT}"
        )
    return options


def _positive(value: object, name: str, by: str) -> int:
    if type(value) is not int or value <= 0:
        raise PublishError(f"{by}: {name} is {show(value)}; expected a positive whole number")
    return value


def _check_options(text: Mapping[str, Any], vision: Mapping[str, Any], by: str) -> None:
    for name, options in (("text_config", text), ("vision_config", vision)):
        activation, epsilon = options["hidden_act"], options["layer_norm_eps"]
        if not isinstance(activation, str) or activation not in _ACTIVATIONS:
            raise PublishError(
                f"{by}: {name}.hidden_act is {show(activation)}; this service has quick_gelu and"
                f" gelu, so {_WAY_OUT}"
            )
        if epsilon != 1e-5:
            raise PublishError(
                f"{by}: {name}.layer_norm_eps is {show(epsilon)}; this service has 1e-05, so"
                f" {_WAY_OUT}"
            )
    if text["hidden_act"] != vision["hidden_act"]:
        raise PublishError(
            f"{by}: hidden_act is {text['hidden_act']!r} for texts and {vision['hidden_act']!r} for"
            f" images; this service has one activation for both, so {_WAY_OUT}"
        )
    if vision["num_channels"] != 3:
        raise PublishError(
            f"{by}: vision_config.num_channels is {vision['num_channels']}; this service sends 3,"
            f" so {_WAY_OUT}"
        )
    if text["eos_token_id"] not in _END_TOKENS or type(text["eos_token_id"]) is not int:
        raise PublishError(
            f"{by}: text_config.eos_token_id is {show(text['eos_token_id'])}, so transformers takes"
            f" a text's feature from another place than its end-of-text token (49407); {_WAY_OUT}"
        )


_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}
_PROJECTIONS = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_BLOCK = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def convert_names(tensors: Mapping[str, torch.Tensor], shown: str) -> dict[str, torch.Tensor]:
    """Return `tensors` by open_clip's names. shown: how messages call their source.

    Queries, keys and values are joined; the projections are transposed views. Names that are not
    known stay as they are, so that they are reported as such. Raises PublishError if a query, key
    and value have different shapes, or a tensor is there by the names of both libraries.
    """
    converted: dict[str, torch.Tensor] = {}

    def put(name: str, tensor: torch.Tensor) -> None:
        if name in converted:
            raise PublishError(
                f"{shown} holds {name} twice, by its names in open_clip and in transformers; save"
                " the state_dict of one model"
            )
        converted[name] = tensor

    joined: dict[str, list[torch.Tensor | None]] = {}
    for name, tensor in tensors.items():
        if name in _NAMES:
            put(_NAMES[name], tensor)
        elif name in _PROJECTIONS and tensor.ndim == 2:
            put(_PROJECTIONS[name], tensor.t())  # [D, W] -> [W, D]
        elif block := _BLOCK.fullmatch(name):
            tower, number, part, kind = block.groups()
            prefix = (
                f"{'visual.' if tower == 'vision_model' else ''}transformer.resblocks.{number}."
            )
            if part in _QUERY_KEY_VALUE:
                parts = joined.setdefault(f"{prefix}attn.in_proj_{kind}", [None, None, None])
                parts[_QUERY_KEY_VALUE.index(part)] = tensor
            else:
                put(f"{prefix}{_BLOCK_NAMES.get(part, part)}.{kind}", tensor)
        else:
            put(name, tensor)
    for name, parts in joined.items():
        complete = [part for part in parts if part is not None]
        shapes = {tuple(part.shape) for part in complete}
        if len(shapes) > 1 or () in shapes:
            raise PublishError(
                f"{shown}: queries, keys and values of {name.partition('.attn.')[0]} have the"
                f" shapes {', '.join(str(list(part.shape)) for part in complete)}, which must be"
                " equal; fetch or save the model anew"
            )
        if len(complete) == 3:  # otherwise the joined tensor is reported as missing
            put(name, torch.cat(complete))  # each [W, W] -> [3 W, W]
    return converted
