"""Publish the model of `demo_model/`: the last stage of scripts/train_demo.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from clip_embed.inputs.tokenizer import Tokenizer
from clip_embed.model.clip import Clip, Packing
from clip_embed.model.config import ClipConfig
from scripts.lib.cog_server import ROOT
from scripts.lib.demo import chosen_drawings
from scripts.lib.storage import open_storage
from scripts.publishing.model import read_model
from scripts.publishing.publish import publish
from scripts.publishing.tokenizer_json import tokenizer_json
from scripts.training import pictures, retrieval
from scripts.training.batches import lay_on_white
from scripts.training.pictures import Drawings
from scripts.training.train import ARCHITECTURE

SENTENCES_FILE = ROOT / "examples" / "sentences.json"

Vector = npt.NDArray[np.float32]


def publish_and_measure(weights: Path, out: Path, cache: Path) -> None:
    """Publish `weights` to `out`, and print the results on the held-out styles."""
    publish(read_model(str(weights), str(ARCHITECTURE)), open_storage(str(out)))
    clip = Clip(ClipConfig.from_open_clip(json.loads(ARCHITECTURE.read_bytes())))
    tensors = torch.load(weights, weights_only=True)
    clip.load({name: tensor.float() for name, tensor in tensors.items()})
    emojis = pictures.emojis(cache)
    for style in pictures.HELD_OUT:
        drawings = pictures.drawings(style, emojis, cache)
        images = embed_drawings(clip, drawings)
        names = [emojis[index].label for index in drawings.classes]
        print(retrieval.table_row(style.name, embed_texts(clip, names), images))
        if style == pictures.TWEMOJI:
            print(measure_sentences(clip, dict(zip(names, images, strict=True))))


def measure_sentences(clip: Clip, images: Mapping[str, Vector]) -> str:
    """Return how many sentences of examples/sentences.json find a right drawing of the demo.

    images: the vector of each drawing, by its name.
    """
    items = json.loads(SENTENCES_FILE.read_bytes())
    names = [drawing.name for drawing in chosen_drawings()]
    texts = embed_texts(clip, [item["sentence"] for item in items])
    similarity = texts @ normalize([images[name] for name in names]).T
    right = [[names.index(name) for name in item["drawings"]] for item in items]
    ranks = np.array([retrieval.best_rank(*each) for each in zip(similarity, right, strict=True)])
    return (
        f"{len(items)} sentences, {len(names)} drawings: a right one is first for"
        f" {(ranks == 1).sum()}, among five for {(ranks <= 5).sum()}"
    )


@torch.inference_mode()
def embed_drawings(clip: Clip, drawings: Drawings) -> npt.NDArray[np.float32]:
    """Return vectors [N, D], not normalized."""
    parts = torch.from_numpy(drawings.pixels).split(128)
    images = torch.cat([clip.encode_image(lay_on_white(part)) for part in parts])
    return images.numpy()  # type: ignore[no-any-return]


@torch.inference_mode()
def embed_texts(clip: Clip, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return vectors [N, D], not normalized."""
    tokenizer = Tokenizer(tokenizer_json(), clip.config.context_length)
    tokens = [tokenizer.tokenize(text) for text in texts]
    ids = [each.ids[: each.eot_index + 1] for each in tokens]
    packing = Packing([len(each) for each in ids], torch.device("cpu"))
    return clip.encode_text(torch.from_numpy(np.concatenate(ids)), packing).numpy()  # type: ignore[no-any-return]


def normalize(vectors: Sequence[Vector]) -> npt.NDArray[np.float32]:
    """Scale vectors to length 1: [N, D]."""
    stacked = np.stack(vectors)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)  # type: ignore[no-any-return]
