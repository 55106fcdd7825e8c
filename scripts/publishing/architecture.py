"""Determine the architecture from a name, a JSON file or tensor shapes.

open_clip's model configs are read from its package without importing it: that takes seconds.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clip_embed.errors import ModelError
from clip_embed.model.config import ClipConfig
from scripts.publishing import DEFAULT_MODEL
from scripts.publishing.errors import PublishError, printable, show
from scripts.publishing.statement import parse_json

QUICK_GELU_SUFFIX = "-quickgelu"
VOCABULARY = 49408
"""Tokens of CLIP's tokenizer, which is published with every model."""

HEAD_WIDTH = 64
"""Channels of an attention head in OpenAI's models. Shapes do not tell it."""

OPENAI_NAMES = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
"""The architectures that OpenAI has published, with QuickGELU. open_clip has others too."""

_MAX_BLOCK_DIGITS = 3
"""Digits of a block's number: a larger one, in the name of a tensor, is no block of a CLIP."""

Sizes = dict[str, int]
"""Name of a size → its value, for all that the tensors' shapes tell."""

_UNUSED_OPTIONS = ("init_logit_scale", "nonscalar_logit_scale")
"""Options of the scale of similarities, which is used in training only."""

# Options whose value is open_clip's default: the network implements them.
_DEFAULT_OPTIONS = {
    "vision_cfg": {
        "pool_type": "tok",
        "patch_dropout": 0.0,
        "pos_embed_type": "learnable",
        "act_kwargs": {},
        "norm_kwargs": {},
    },
    "text_cfg": {
        "pool_type": "argmax",
        "proj_type": "linear",
        "pad_id": 0,
        "proj_bias": False,
        "act_kwargs": {},
        "norm_kwargs": {},
    },
}


@dataclass(frozen=True)
class WantedModel:
    """The architecture that the user names with --model.

    name: open_clip's only if the sizes are those of that model.
    quick_gelu: None if the name does not say it: people write ViT-L-14 for both activations.
    """

    shown: str
    name: str
    model_cfg: Mapping[str, Any]
    quick_gelu: bool | None


def read_wanted(text: str) -> WantedModel:
    """Read --model: a name such as ViT-L-14, ViT-L/14@336px or vit-l-14-quickgelu, or a JSON file.

    Raises PublishError for an unknown name, an unreadable file and an architecture that the service
    does not implement.
    """
    shown = f"--model {text}"
    if text.lower().endswith(".json"):
        path = Path(text)
        model_cfg = _read_file(path)
        config = parse_config(model_cfg, shown)
        quick_gelu = config.quick_gelu if "quick_gelu" in model_cfg else None
        # A name of open_clip's stands for one architecture, whatever the file is called.
        is_named = _normalize(path.stem) in {_normalize(name) for name in named_configs()}
        name = name_config(config) if is_named else printable(path.stem)
        return WantedModel(shown, name, model_cfg, quick_gelu)
    name = _find_name(text)
    model_cfg = named_configs()[name]
    parse_config(model_cfg, shown)
    return WantedModel(shown, name, model_cfg, model_cfg.get("quick_gelu") or None)


def _read_file(path: Path) -> dict[str, Any]:
    required = ("embed_dim", "vision_cfg", "text_cfg")
    keys = f"{', '.join(required[:-1])} and {required[-1]}"
    way_out = f"give a JSON file with {keys}, like open_clip's model configs"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise PublishError(f"--model: there is no file {path}; {way_out}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have this name"
        raise PublishError(f"--model {path} cannot be read ({reason}); {way_out}") from error
    model_cfg = parse_json(data, f"--model {path}")
    if isinstance(model_cfg.get("model_cfg"), dict):
        model_cfg = model_cfg["model_cfg"]  # an open_clip_config.json
    if missing := [key for key in required if key not in model_cfg]:
        raise PublishError(f"--model {path} has no {' and no '.join(missing)}; {way_out}")
    return model_cfg


def _find_name(text: str) -> str:
    """Return open_clip's name of the model that a user calls `text`."""
    normal = re.sub(r"(?<=\d)px\b", "", _normalize(text))
    by_lower = {_normalize(name): name for name in named_configs()}
    if normal in by_lower:
        return by_lower[normal]
    close = difflib.get_close_matches(normal, _supported_names(), n=100, cutoff=0.7)
    ratio = functools.partial(_similarity, normal)
    # Among equally close names, those with both activations: OpenAI's.
    close.sort(key=lambda name: (-ratio(name), f"{name}{QUICK_GELU_SUFFIX}" not in by_lower))
    names = [by_lower[name] for name in close[:3]] or [DEFAULT_MODEL]
    quick = f"{names[0]}{QUICK_GELU_SUFFIX}"
    if quick in named_configs():
        names.insert(0, quick)
    raise PublishError(
        f"open_clip knows no model {show(text)}; try {', '.join(names)}, or a JSON file like"
        " open_clip's model configs"
    )


def _normalize(name: str) -> str:
    return re.sub(r"[/@_\s]+", "-", name.strip().lower())


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _supported_names() -> list[str]:
    names = []
    for name, model_cfg in named_configs().items():
        try:
            parse_config(model_cfg, name)
        except PublishError:
            continue
        names.append(_normalize(name))
    return names


@functools.cache
def named_configs() -> Mapping[str, dict[str, Any]]:
    """Return open_clip's model configs, by name."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")
    files = sorted((Path(package.origin).parent / "model_configs").glob("*.json"))
    return {path.stem: json.loads(path.read_bytes()) for path in files}


# --- what the service implements ----------------------------------------------------------------


def parse_config(model_cfg: Mapping[str, Any], by: str) -> ClipConfig:
    """Read open_clip's `model_cfg`. by: where it comes from.

    Raises PublishError, which names the architecture, if the service does not implement it.
    """
    if other := _name_other_architecture(model_cfg):
        raise PublishError(
            f"{by} describes {other}, which this service does not implement; publish one of"
            f" OpenAI's CLIP vision transformers or an open_clip model like them ({DEFAULT_MODEL})"
        )
    try:
        config = ClipConfig.from_open_clip(drop_defaults(model_cfg))
    except ModelError as error:
        raise PublishError(f"{by}: {error}") from error
    if config.vocab_size != VOCABULARY:
        raise PublishError(
            f"{by} has a vocabulary of {config.vocab_size:,} tokens; this service's tokenizer is"
            f" CLIP's, with {VOCABULARY:,}, so publish a model that was trained with that one"
        )
    return config


def drop_defaults(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return `model_cfg` without options that state open_clip's default or change no vector."""
    kept = {key: value for key, value in model_cfg.items() if key not in _UNUSED_OPTIONS}
    if not kept.get("custom_text"):
        kept.pop("custom_text", None)
    for section, defaults in _DEFAULT_OPTIONS.items():
        options = kept.get(section)
        if isinstance(options, Mapping):
            kept[section] = {
                key: value
                for key, value in options.items()
                if key not in defaults or value != defaults[key]
            }
    return kept


def _name_other_architecture(model_cfg: Mapping[str, Any]) -> str | None:
    """Name an architecture that is not a CLIP vision transformer, None if nothing shows that."""
    vision, text = model_cfg.get("vision_cfg"), model_cfg.get("text_cfg")
    vision = vision if isinstance(vision, Mapping) else {}
    text = text if isinstance(text, Mapping) else {}
    if model_cfg.get("init_logit_bias") is not None:
        return "SigLIP (init_logit_bias)"
    if "multimodal_cfg" in model_cfg:
        return "CoCa (multimodal_cfg)"
    if timm := vision.get("timm_model_name"):
        return f"{'EVA' if str(timm).startswith('eva') else 'a timm image tower'} ({timm})"
    if isinstance(vision.get("layers"), list):
        return "a ResNet CLIP (vision_cfg.layers is a list)"
    if hugging_face := text.get("hf_model_name"):
        return f"a Hugging Face text tower ({hugging_face})"
    if tokenizer := text.get("hf_tokenizer_name"):
        return f"a model with another tokenizer ({tokenizer})"
    if model_cfg.get("custom_text"):
        return "open_clip's CustomTextCLIP (custom_text)"
    return None


# --- sizes --------------------------------------------------------------------------------------


def sizes_of_config(config: ClipConfig) -> Sizes:
    """Return the sizes that tensors of this architecture have."""
    return {
        "embed_dim": config.embed_dim,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "vision width": config.vision.width,
        "vision layers": config.vision.layers,
        "vision mlp width": int(config.vision.width * config.vision.mlp_ratio),
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "text width": config.text.width,
        "text layers": config.text.layers,
        "text mlp width": int(config.text.width * config.text.mlp_ratio),
    }


def sizes_of_tensors(tensors: Mapping[str, torch.Tensor]) -> Sizes:
    """Return the sizes that `tensors`, by open_clip's names, show. Not all, if some are missing."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def size(name: str, dimension: int, rank: int = 2) -> int | None:
        shape = shapes.get(name, ())
        return shape[dimension] if len(shape) == rank else None

    patch = size("visual.conv1.weight", 2, 4)
    positions = size("visual.positional_embedding", 0)
    grid = math.isqrt(positions - 1) if positions else 0
    square = positions is not None and grid * grid == positions - 1
    found = {
        "embed_dim": size("visual.proj", 1),
        "image_size": grid * patch if patch and square else None,
        "patch_size": patch,
        "vision width": size("visual.conv1.weight", 0, 4),
        "vision layers": _count_blocks(shapes, "visual.transformer.resblocks."),
        "vision mlp width": size("visual.transformer.resblocks.0.mlp.c_fc.weight", 0),
        "context_length": size("positional_embedding", 0),
        "vocab_size": size("token_embedding.weight", 0),
        "text width": size("token_embedding.weight", 1),
        "text layers": _count_blocks(shapes, "transformer.resblocks."),
        "text mlp width": size("transformer.resblocks.0.mlp.c_fc.weight", 0),
    }
    return {name: value for name, value in found.items() if value}


def _count_blocks(names: Mapping[str, object], prefix: str) -> int:
    numbers = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    blocks = [int(n) for n in numbers if n.isdecimal() and len(n) <= _MAX_BLOCK_DIGITS]
    return max(blocks, default=-1) + 1


def count_sizes() -> int:
    """Return how many sizes an architecture has."""
    return len(sizes_of_config(ClipConfig.from_open_clip(named_configs()[DEFAULT_MODEL])))


def describe_difference(found: Sizes, expected: Sizes) -> str:
    """List the sizes that differ: "embed_dim 96, not 768"; empty if those of both agree."""
    both = [name for name in found if name in expected and found[name] != expected[name]]
    more = f" and {len(both) - 3} more" if len(both) > 3 else ""
    return ", ".join(f"{name} {found[name]}, not {expected[name]}" for name in both[:3]) + more


def find_named(sizes: Sizes) -> str | None:
    """Return open_clip's name of the architecture with these sizes, without "-quickgelu"."""
    # Shorter names first: ViT-H-14 and not ViT-H-14-worldwide.
    for name in sorted(named_configs(), key=lambda name: (len(name), name)):
        if name.endswith(QUICK_GELU_SUFFIX):
            continue
        try:
            config = parse_config(named_configs()[name], name)
        except PublishError:
            continue
        if sizes_of_config(config) == sizes:
            return name
    return None


def build_model_cfg(sizes: Sizes, by: str) -> dict[str, Any]:
    """Return open_clip's `model_cfg` for sizes that no named architecture has.

    Heads are 64 channels wide, as in OpenAI's models. Raises PublishError if they cannot be.
    """
    vision, text = sizes["vision width"], sizes["text width"]
    if vision % HEAD_WIDTH or text % HEAD_WIDTH:
        raise PublishError(
            f"{by} does not say how many attention heads it has, and its widths {vision} and {text}"
            f" are no multiples of {HEAD_WIDTH}; give the architecture with --model FILE.json"
        )
    model_cfg: dict[str, Any] = {
        "embed_dim": sizes["embed_dim"],
        "vision_cfg": {
            "image_size": sizes["image_size"],
            "layers": sizes["vision layers"],
            "width": vision,
            "head_width": HEAD_WIDTH,
            "patch_size": sizes["patch_size"],
        },
        "text_cfg": {
            "context_length": sizes["context_length"],
            "vocab_size": sizes["vocab_size"],
            "width": text,
            "heads": text // HEAD_WIDTH,
            "layers": sizes["text layers"],
        },
    }
    for tower in ("vision", "text"):
        ratio = mlp_ratio(sizes[f"{tower} mlp width"], sizes[f"{tower} width"])
        if ratio != 4.0:
            model_cfg[f"{tower}_cfg"]["mlp_ratio"] = ratio
    return model_cfg


def mlp_ratio(hidden: int, width: int) -> float:
    """Return the ratio for which int(width · ratio) is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def name_config(config: ClipConfig) -> str:
    """Name the architecture of `config`, without "-quickgelu"."""
    name = find_named(sizes_of_config(config))
    # Shapes do not tell the heads.
    if name is not None and same_architecture(config, parse_config(named_configs()[name], name)):
        return name
    return name_sizes(sizes_of_config(config))


def name_sizes(sizes: Sizes) -> str:
    """Name an architecture that open_clip has no name for."""
    return f"ViT-{sizes['vision width']}x{sizes['vision layers']}-{sizes['patch_size']}"


def same_architecture(a: ClipConfig, b: ClipConfig) -> bool:
    """Compare everything but the activation, heads included."""
    return replace(a, quick_gelu=True) == replace(b, quick_gelu=True)
