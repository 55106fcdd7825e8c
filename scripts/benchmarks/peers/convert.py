"""Convert one model's weights to the formats of the peers: the same numbers under other names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from clip_embed.model.config import ClipConfig

if TYPE_CHECKING:  # each takes seconds to import, and a machine may lack one
    import transformers

Tensors = Mapping[str, torch.Tensor]


def write_open_clip(directory: Path, tensors: Tensors) -> None:
    """Write a checkpoint for open_clip, in float16 like OpenAI's release."""
    safetensors.torch.save_file(_half(tensors), directory / "open_clip_model.safetensors")


def write_openai(file: Path, tensors: Tensors) -> None:
    """Write a state dict for OpenAI's `clip.load`, in float16 like its release."""
    torch.save(_half(tensors), file)


def _half(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def write_transformers(directory: Path, config: ClipConfig, tensors: Tensors) -> None:
    """Write a directory for transformers' from_pretrained, in the precision of `tensors`.

    OpenAI's on the Hub is in float32.
    """
    import open_clip
    import transformers

    transformers_model(config, tensors).save_pretrained(directory)
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


def convert_for_transformers_4(directory: Path) -> None:
    """Change a directory of `write_transformers` so that transformers 4 can read it."""
    processor = json.loads((directory / "processor_config.json").read_text())
    (directory / "processor_config.json").unlink()
    images = {**processor["image_processor"], "image_processor_type": "CLIPImageProcessor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
    # Version 4 makes its tokenizer from vocab.json and merges.txt alone.
    (directory / "tokenizer.json").unlink(missing_ok=True)
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def write_tokenizer(directory: Path) -> None:
    """Write the files of transformers' CLIPTokenizer."""
    vocabulary, merges = _read_vocabulary()
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def _read_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Return CLIP's byte-pair vocabulary, as vocab.json and merges.txt hold it."""
    import open_clip

    with gzip.open(open_clip.tokenizer.default_bpe()) as file:
        merges = file.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += ["".join(merge.split()) for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return {piece: index for index, piece in enumerate(pieces)}, merges


def transformers_model(config: ClipConfig, tensors: Tensors) -> transformers.CLIPModel:
    """Return transformers' CLIPModel with `tensors`, which have open_clip's names."""
    import transformers

    with torch.device("meta"):
        model = transformers.CLIPModel(_transformers_config(config))
    state = {
        "logit_scale": tensors["logit_scale"],
        "visual_projection.weight": tensors["visual.proj"].T,
        "text_projection.weight": tensors["text_projection"].T,
    }
    for theirs, ours in _parameter_names(config):
        state[theirs] = tensors[ours]
    for ours, theirs, layers in _towers(config):
        for layer in range(layers):
            attention = f"{theirs}.encoder.layers.{layer}.self_attn"
            for kind in ("weight", "bias"):
                qkv = tensors[f"{ours}.resblocks.{layer}.attn.in_proj_{kind}"]
                for letter, part in zip("qkv", qkv.chunk(3), strict=True):
                    state[f"{attention}.{letter}_proj.{kind}"] = part
    model.load_state_dict(state, strict=False, assign=True)
    # Buffers, which are not in a checkpoint and so still on "meta".
    for tower in (model.vision_model, model.text_model):
        length = tower.embeddings.position_ids.shape[-1]
        tower.embeddings.position_ids = torch.arange(length).expand(1, -1)
    return model.eval()


def _transformers_config(config: ClipConfig) -> transformers.CLIPConfig:
    import transformers

    towers = {
        "vision_config": (
            config.vision,
            {"image_size": config.image_size, "patch_size": config.patch_size},
        ),
        "text_config": (
            config.text,
            {"vocab_size": config.vocab_size, "eos_token_id": config.vocab_size - 1},
        ),
    }
    options = {
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
    return transformers.CLIPConfig(projection_dim=config.embed_dim, **options)


def _towers(config: ClipConfig) -> tuple[tuple[str, str, int], ...]:
    """Return open_clip's name, transformers' name and the number of layers of each tower."""
    return (
        ("visual.transformer", "vision_model", config.vision.layers),
        ("transformer", "text_model", config.text.layers),
    )


def _parameter_names(config: ClipConfig) -> Iterator[tuple[str, str]]:
    """Yield transformers' and open_clip's name of each parameter that both store alike."""
    yield "vision_model.embeddings.class_embedding", "visual.class_embedding"
    yield "vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"
    yield "vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"
    yield "text_model.embeddings.token_embedding.weight", "token_embedding.weight"
    yield "text_model.embeddings.position_embedding.weight", "positional_embedding"
    modules = [
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.final_layer_norm", "ln_final"),
    ]
    for ours, theirs, layers in _towers(config):
        for layer in range(layers):
            their_block, our_block = f"{theirs}.encoder.layers.{layer}", f"{ours}.resblocks.{layer}"
            modules += [
                (f"{their_block}.self_attn.out_proj", f"{our_block}.attn.out_proj"),
                (f"{their_block}.layer_norm1", f"{our_block}.ln_1"),
                (f"{their_block}.layer_norm2", f"{our_block}.ln_2"),
                (f"{their_block}.mlp.fc1", f"{our_block}.mlp.c_fc"),
                (f"{their_block}.mlp.fc2", f"{our_block}.mlp.c_proj"),
            ]
    for theirs, ours in modules:
        for kind in ("weight", "bias"):
            yield f"{theirs}.{kind}", f"{ours}.{kind}"
