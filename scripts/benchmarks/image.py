"""Prepared images through the network: ours and the libraries'."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import open_clip
import torch
from PIL import Image

from benchmarks import model
from benchmarks.model import Contender, per_second
from benchmarks.report import Figure, in_turn, table
from clip_embed.config import ClipConfig
from clip_embed.image import prepare
from local_server import ROOT

BATCH = 4
PHOTOS = sorted((ROOT / "examples").glob("*.jpg"))[:BATCH]


def contender(name: str, folder: Path) -> Mapping[str, Callable[[], float]]:
    """What can be asked of `name`: images/s of a batch, or of the same one after the other."""
    if name == "ours":
        embedder, _ = model.ours(folder)
        pixels = [prepare(photo, embedder.preprocessing) for photo in PHOTOS]
        return {
            "batch": lambda: per_second(BATCH, lambda: embedder.embed_images(pixels)),
            "single": lambda: per_second(
                BATCH, lambda: [embedder.embed_images([one]) for one in pixels]
            ),
        }
    transform = open_clip.image_transform(224, is_train=False)
    batch = torch.stack([transform(Image.open(photo)) for photo in PHOTOS])
    if name in ("open_clip", "clip"):
        load = model.with_open_clip if name == "open_clip" else model.with_openai
        theirs, _ = load(folder)
        return {"batch": lambda: per_second(BATCH, lambda: theirs.encode_image(batch))}
    theirs, _ = model.with_transformers(folder)
    return {
        "batch": lambda: per_second(BATCH, lambda: theirs.get_image_features(pixel_values=batch))
    }


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py image` prints, and its figures."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(model.files())

        def start(name: str, as_in_image: bool = False) -> Contender:
            return stack.enter_context(Contender("image", name, folder, as_in_image))

        ours, tuned = start("ours", True), start("open_clip", True)
        open_clips, openais, transformers = start("open_clip"), start("clip"), start("transformers")
        figures = in_turn(
            {
                "this service": lambda: ours.ask("batch"),
                "open_clip": lambda: open_clips.ask("batch"),
                "open_clip, with this service's memory settings": lambda: tuned.ask("batch"),
                "OpenAI's clip": lambda: openais.ask("batch"),
                "transformers": lambda: transformers.ask("batch"),
                "this service, one at a time": lambda: ours.ask("single"),
            },
            runs,
            "images/s",
            more_is_better=True,
        )
    mine = figures[0]
    config = ClipConfig.from_open_clip(open_clip.get_model_config(model.OPEN_CLIP_NAME))
    tower, places = config.vision, (config.image_size // config.patch_size) ** 2 + 1
    weights = tower.layers * (4 + 2 * tower.mlp_ratio) * tower.width**2
    # Weights times tokens, and each token's scores with, and sums of, all the others.
    flop = 2 * weights * places + tower.layers * 4 * places**2 * tower.width
    rate = flop * mine.median / 1e9
    limit = model.sgemm_gflops(2048, 2048, 2048)
    lines = [
        table("images in batches of 4", figures, mine),
        "",
        f"{flop / 1e9:.0f} GFLOP per image: {rate:.0f} GFLOP/s, which is {rate / limit:.2f} of the"
        f" {limit:.0f} GFLOP/s of a float32 matrix product here.",
    ]
    return "\n".join(lines), figures


if __name__ == "__main__":
    model.answer(contender)
