"""Load full-size ViT-L/14 with the weights of `random:0`: ours, and the libraries'."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import weights
from clip_embed.model.config import ClipConfig, TowerConfig
from clip_embed.service import LoadedModel, load_embedder
from clip_embed.startup.cpu_quota import usable_cpus
from scripts.benchmarks.peers import convert
from scripts.lib.cog_server import CACHE
from scripts.lib.storage import open_storage
from scripts.publishing import DEFAULT_MODEL
from scripts.publishing.model import read_model
from scripts.publishing.publish import publish

LIBRARIES = {"open_clip": "open_clip", "clip": "OpenAI's clip", "transformers": "transformers"}
"""Argument of a worker → name in tables."""


@contextlib.contextmanager
def model_files() -> Iterator[Path]:
    """Write the same weights in the format of every contender; yield the folder."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        model = read_model("random:0", DEFAULT_MODEL)
        publish(model, open_storage(str(folder / "ours")))
        (folder / "open_clip").mkdir()
        convert.write_open_clip(folder / "open_clip", model.tensors)
        convert.write_openai(folder / "openai.pt", model.tensors)
        (folder / "transformers").mkdir()
        config = ClipConfig.from_open_clip(model.config["model_cfg"])
        convert.write_transformers(folder / "transformers", config, model.tensors)
        del model
        yield folder


def load_ours(folder: Path) -> LoadedModel:
    """Load the service's network, in float32 on the CPU, and its tokenizer."""
    with weights.pull(str(folder / "ours")) as pull:
        return load_embedder(pull, "cpu")


def load_library(name: str, folder: Path) -> tuple[Any, Any]:
    """Load the network and the tokenizer of one of LIBRARIES."""
    torch.set_num_threads(usable_cpus())
    if name == "open_clip":
        import open_clip

        model, _, _ = open_clip.create_model_and_transforms(
            DEFAULT_MODEL, pretrained=str(folder / "open_clip" / "open_clip_model.safetensors")
        )
        return model.eval(), open_clip.get_tokenizer(DEFAULT_MODEL)
    if name == "clip":
        import clip  # warns on import

        model, _ = clip.load(str(folder / "openai.pt"), device="cpu")
        return model, clip.tokenize
    import transformers

    return (
        transformers.CLIPModel.from_pretrained(folder / "transformers", local_files_only=True),
        transformers.CLIPTokenizer.from_pretrained(folder / "transformers", local_files_only=True),
    )


def items_per_second(count: int, encode: Callable[[], object]) -> float:
    """Time `encode`, which encodes `count` items."""
    with torch.inference_mode():
        begin = time.perf_counter()
        encode()
        return count / (time.perf_counter() - begin)


def text_flop(config: ClipConfig, tokens: float) -> float:
    """Return the floating-point operations of this service for a text: weights times tokens."""
    return _block_flop(config.text, tokens)


def image_flop(config: ClipConfig) -> float:
    """Return the floating-point operations of this service for an image.

    Weights times tokens, and attention's two products of tokens with tokens.
    """
    tower, tokens = config.vision, (config.image_size // config.patch_size) ** 2 + 1
    return _block_flop(tower, tokens) + (tower.layers - 1) * 4 * tokens**2 * tower.width


def _block_flop(tower: TowerConfig, tokens: float) -> float:
    """Return the operations of the projections of attention and the MLPs. Of the last block, keys
    and values alone are computed for all tokens (model/clip.py)."""
    keys_and_values, others = 2, 2 + 2 * tower.mlp_ratio
    weights = tower.layers * keys_and_values + (tower.layers - 1) * others
    return 2 * weights * tower.width**2 * tokens


def sgemm_gflops(size: int = 2048) -> float:
    """Return the GFLOP/s of a float32 matrix product here: the limit of any forward pass."""
    torch.set_num_threads(usable_cpus())
    x, w = torch.randn(size, size), torch.randn(size, size)
    best = 0.0
    for _ in range(12):
        begin = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = max(best, 2 * size**3 / (time.perf_counter() - begin) / 1e9)
    return best
