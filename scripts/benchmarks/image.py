"""Prepared images through the network: ours and the libraries', in one process."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks import model
from benchmarks.report import Figure, in_turn, table
from clip_embed.image import prepare
from local_server import ROOT

BATCH = 4


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py image` prints, and its figures."""
    models = model.load()
    photos = sorted((ROOT / "examples").glob("*.jpg"))[:BATCH]
    pixels = [prepare(photo, models.embedder.preprocessing) for photo in photos]
    batch = models.embedder.normalise(torch.stack([torch.from_numpy(p.array) for p in pixels]))

    def per_second(encode: Callable[[], object]) -> float:
        with torch.inference_mode():
            begin = time.perf_counter()
            encode()
            return BATCH / (time.perf_counter() - begin)

    figures = in_turn(
        {
            "this service": lambda: per_second(lambda: models.embedder.embed_images(pixels)),
            "open_clip": lambda: per_second(lambda: models.open_clip.encode_image(batch)),
            "transformers": lambda: per_second(
                lambda: models.transformers.get_image_features(pixel_values=batch)
            ),
            "this service, one at a time": lambda: per_second(
                lambda: [models.embedder.embed_images([one]) for one in pixels]
            ),
        },
        runs,
        "images/s",
        more_is_better=True,
    )
    mine = figures[0]
    config = models.embedder.config
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
