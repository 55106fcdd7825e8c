"""Encode preprocessed images in batches of 4: this service and the libraries.

Runs as a worker: image.py NAME FOLDER, and requests [batch size] → images/s.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from PIL import Image

from clip_embed.inputs.preprocess import preprocess_image
from clip_embed.model.config import ClipConfig
from scripts.benchmarks.model import (
    LIBRARIES,
    image_flop,
    items_per_second,
    load_library,
    load_ours,
    model_files,
    sgemm_gflops,
)
from scripts.benchmarks.report import Figure, Section, in_turn, table
from scripts.benchmarks.worker import Worker, memory_settings, serve
from scripts.lib.cog_server import ROOT
from scripts.publishing import DEFAULT_MODEL

BATCH = 4
PHOTOS = sorted((ROOT / "examples").glob("*.jpg"))[:BATCH]

Encode = Callable[[int], object]
"""Encodes PHOTOS in batches of the given size."""


def run(runs: int) -> list[Section]:
    """Run `bench.py image`."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(model_files())

        def start(name: str, environment: dict[str, str]) -> Worker:
            worker = Worker(["-m", __name__, name, str(folder)], environment)
            return stack.enter_context(worker)

        ours = start("ours", memory_settings())
        workers = {
            "this service": ours,
            "open_clip, with this service's memory settings": start("open_clip", memory_settings()),
            **{title: start(name, {}) for name, title in LIBRARIES.items()},
        }
        measurements = {
            name: functools.partial(worker.measure, BATCH) for name, worker in workers.items()
        }
        measurements["this service, one at a time"] = functools.partial(ours.measure, 1)
        figures = in_turn(measurements, runs, "images/s", more_is_better=True)
    return [
        Section(table("images in batches of 4", figures, figures[0]), figures),
        Section(_compare_with_matrix_product(figures[0])),
    ]


def _compare_with_matrix_product(ours: Figure) -> str:
    config = ClipConfig.from_open_clip(open_clip.get_model_config(DEFAULT_MODEL))
    flop = image_flop(config)
    rate = flop * ours.median / 1e9
    limit = sgemm_gflops()
    return (
        f"{flop / 1e9:.0f} GFLOP per image: {rate:.0f} GFLOP/s, which is {rate / limit:.2f} of the"
        f" {limit:.0f} GFLOP/s of a float32 matrix product here."
    )


def _our_encode(folder: Path) -> Encode:
    embedder = load_ours(folder).embedder
    pixels = [preprocess_image(photo, embedder.preprocess_config) for photo in PHOTOS]
    return lambda size: [
        embedder.embed_images(pixels[start : start + size]) for start in range(0, BATCH, size)
    ]


def _library_encode(name: str, folder: Path) -> Encode:
    transform = open_clip.image_transform(224, is_train=False)
    pixels = torch.stack([transform(Image.open(photo)) for photo in PHOTOS])
    model, _ = load_library(name, folder)
    encode = model.get_image_features if name == "transformers" else model.encode_image
    return lambda size: [encode(batch) for batch in pixels.split(size)]


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    encode = _our_encode(folder) if name == "ours" else _library_encode(name, folder)
    serve(lambda size: items_per_second(BATCH, lambda: encode(size)))


if __name__ == "__main__":
    main()
