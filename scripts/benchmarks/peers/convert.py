"""One model's weights in the forms peers read: the same numbers under other names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import open_clip
import safetensors.torch
import torch
import transformers

from clip_embed.config import ClipConfig

Tensors = Mapping[str, torch.Tensor]


def write_open_clip(directory: Path, loaded: Tensors) -> None:
    """A checkpoint for open_clip, float16 as OpenAI's release is."""
    half = {name: tensor.half().contiguous() for name, tensor in loaded.items()}
    safetensors.torch.save_file(half, directory / "open_clip_model.safetensors")


def write_openai(file: Path, loaded: Tensors) -> None:
    """A state dict for OpenAI's `clip.load`, float16 as its release is."""
    torch.save({name: tensor.half().contiguous() for name, tensor in loaded.items()}, file)


def write_transformers(directory: Path, config: ClipConfig, loaded: Tensors) -> None:
    """A directory for transformers' from_pretrained, float32 as OpenAI's release there is."""
    transformers_model(config, loaded).save_pretrained(directory)
    write_tokenizer(directory)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(directory, local_files_only=True)
    size = config.image_size
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(open_clip.OPENAI_DATASET_MEAN),
        image_std=list(open_clip.OPENAI_DATASET_STD),
    )
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(directory)


def for_older_transformers(directory: Path) -> None:
    """Make of what `write_transformers` wrote a directory that transformers 4 reads."""
    processor = json.loads((directory / "processor_config.json").read_text())
    (directory / "processor_config.json").unlink()
    images = {**processor["image_processor"], "image_processor_type": "CLIPImageProcessor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
    # Its tokenizer comes from vocab.json and merges.txt alone.
    (directory / "tokenizer.json").unlink(missing_ok=True)
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def write_tokenizer(directory: Path) -> None:
    """The files of transformers' CLIPTokenizer."""
    vocabulary, merges = _vocabulary()
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's byte-pair vocabulary as transformers' vocab.json and merges.txt hold it."""
    with gzip.open(open_clip.tokenizer.default_bpe()) as file:
        merges = file.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += ["".join(merge.split()) for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return {piece: index for index, piece in enumerate(pieces)}, merges


def transformers_model(config: ClipConfig, loaded: Tensors) -> transformers.CLIPModel:
    """transformers' CLIPModel with our tensors under its names."""
    towers = {
        "vision_config": (config.vision, {"image_size": config.image_size}),
        "text_config": (config.text, {"vocab_size": config.vocab_size}),
    }
    settings = {
        name: {
            "hidden_size": tower.width,
            "intermediate_size": int(tower.width * tower.mlp_ratio),
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "projection_dim": config.embed_dim,
            "hidden_act": "quick_gelu",
            **more,
        }
        for name, (tower, more) in towers.items()
    }
    settings["vision_config"]["patch_size"] = config.patch_size
    settings["text_config"]["eos_token_id"] = config.vocab_size - 1
    with torch.device("meta"):
        model = transformers.CLIPModel(
            transformers.CLIPConfig(projection_dim=config.embed_dim, **settings)
        )
    state = {
        "logit_scale": loaded["logit_scale"],
        "visual_projection.weight": loaded["visual.proj"].T,
        "text_projection.weight": loaded["text_projection"].T,
        "vision_model.embeddings.class_embedding": loaded["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": loaded["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": loaded["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": loaded["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": loaded["positional_embedding"],
    }
    for ours, theirs in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ):
        for kind in ("weight", "bias"):
            state[f"{theirs}.{kind}"] = loaded[f"{ours}.{kind}"]
    for ours, theirs, tower in (
        ("visual.transformer", "vision_model", config.vision),
        ("transformer", "text_model", config.text),
    ):
        for layer in range(tower.layers):
            a, b = f"{ours}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                qkv = loaded[f"{a}.attn.in_proj_{kind}"].chunk(3)
                for letter, part in zip("qkv", qkv, strict=True):
                    state[f"{b}.self_attn.{letter}_proj.{kind}"] = part
                for mine, other in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    state[f"{b}.{other}.{kind}"] = loaded[f"{a}.{mine}.{kind}"]
    model.load_state_dict(state, strict=False, assign=True)
    for part in (model.vision_model, model.text_model):  # buffers, not weights
        length = part.embeddings.position_ids.shape[-1]
        part.embeddings.position_ids = torch.arange(length).expand(1, -1)
    return model.eval()
