"""Full-size ViT-L/14 with the weights of `random:0`, in this process: ours and the libraries'."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers

import publish_weights
import weights
from benchmarks.peers import convert
from clip_embed import manifest, tensors
from clip_embed.config import ClipConfig
from clip_embed.cpus import usable_cpus
from clip_embed.embedder import Embedder
from clip_embed.text import Tokenizer
from local_server import CACHE

OPEN_CLIP_NAME = publish_weights.DEFAULT_MODEL


@dataclass(frozen=True)
class Models:
    """The same numbers in three networks."""

    embedder: Embedder
    tokenizer: Tokenizer
    open_clip: Any
    open_clip_tokenizer: Any
    open_clip_transform: Any
    transformers: Any


def load() -> Models:
    """All of them, in float32 on the CPU."""
    torch.set_num_threads(usable_cpus())
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        model = publish_weights.read_model("random:0", OPEN_CLIP_NAME)
        publish_weights.publish(model, publish_weights.Directory(folder))
        with weights.pull(folder) as pull:
            ours = tensors.load(pull.blocks(), torch.device("cpu"), torch.float32)
            embedder = Embedder.build(pull.file(manifest.CONFIG_NAME), ours)
            tokenizer = Tokenizer(
                pull.file(manifest.TOKENIZER_NAME), embedder.config.context_length
            )
        checkpoint = Path(folder) / "checkpoint"
        checkpoint.mkdir()
        convert.write_open_clip(checkpoint, model.tensors)
        reference, _, transform = open_clip.create_model_and_transforms(
            OPEN_CLIP_NAME, pretrained=str(checkpoint / "open_clip_model.safetensors")
        )
    config = ClipConfig.from_open_clip(model.config["model_cfg"])
    return Models(
        embedder,
        tokenizer,
        reference.eval(),
        open_clip.get_tokenizer(OPEN_CLIP_NAME),
        transform,
        convert.transformers_model(config, ours),
    )


def transformers_tokenizer() -> Any:
    """CLIP's, as transformers' users have it: padding to the longest caption of a batch."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        convert.write_tokenizer(Path(folder))
        return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def sgemm_gflops(rows: int, inputs: int, outputs: int) -> float:
    """What this machine's matrix product brings, in GFLOP/s: the limit of any forward pass."""
    import time

    x, w = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    best = 0.0
    for _ in range(12):
        begin = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = max(best, 2 * rows * inputs * outputs / (time.perf_counter() - begin) / 1e9)
    return best
