"""A photograph's file becomes the pixels CLIP looks at: ours and the libraries', in one process.

The large photographs are this repository's examples, enlarged to what a phone's camera writes and
given a sensor's grain: a file of 12 megapixels is not kept for it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from benchmarks.report import Figure, in_turn, table
from clip_embed.cpus import usable_cpus
from clip_embed.image import Preprocessing, prepare
from local_server import CACHE, ROOT

LARGE = (4032, 3024)
GRAIN = 6  # standard deviation, of 255
CONNECTIONS = 32
MAKE = 0x010F  # EXIF's tag for the camera's maker

CLIP = Preprocessing(
    224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, Image.Resampling.BICUBIC
)


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py preprocess` prints, and its figures."""
    transform = open_clip.image_transform(CLIP.size, is_train=False)
    processor = CLIPImageProcessor()
    small = sorted((ROOT / "examples").glob("*.jpg"))
    CACHE.mkdir(exist_ok=True)
    lines: list[str] = []
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        large = [_large(photo, Path(folder)) for photo in small]

        def ours(path: Path) -> object:
            return prepare(path, CLIP)

        def theirs(path: Path) -> object:
            with Image.open(path) as image:
                return transform(image)

        def transformers(path: Path) -> object:
            with Image.open(path) as image:
                return processor(image, return_tensors="pt")

        def milliseconds(call: Callable[[Path], object], paths: list[Path]) -> float:
            begin = time.perf_counter()
            for path in paths:
                call(path)
            return 1e3 * (time.perf_counter() - begin) / len(paths)

        torch.set_num_threads(1)  # a photograph is one core's work; all of them work side by side
        for kind, paths in (("12 megapixels, JPEG", large), ("the examples as they are", small)):
            what = {
                "this service": lambda paths=paths: milliseconds(ours, paths),
                "open_clip": lambda paths=paths: milliseconds(theirs, paths),
                "transformers": lambda paths=paths: milliseconds(transformers, paths),
            }
            each = in_turn(what, runs, "ms")
            lines += [table(kind, each, each[0]), ""]
            figures += [Figure(f"{kind}: {f.name}", f.values, f.unit) for f in each]
        lines += [_distance(large, transform), _side_by_side(large)]
    return "\n".join(lines), figures


def _large(photo: Path, folder: Path) -> Path:
    """`photo` as a camera would have written it."""
    with Image.open(photo) as image:
        enlarged = image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, GRAIN, (LARGE[1], LARGE[0], 3)).astype(np.float32)
    pixels = (np.asarray(enlarged) + grain).clip(0, 255).astype(np.uint8)
    tags = Image.Exif()
    tags[MAKE] = "a camera"
    path = folder / photo.name
    Image.fromarray(pixels).save(path, quality=90, exif=tags)
    return path


def _distance(paths: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> str:
    """How far our pixels are from open_clip's, in steps of 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP.mean, CLIP.std))
    means, most = [], 0.0
    for path in paths:
        with Image.open(path) as image:
            exact = (transform(image) * std + mean).permute(1, 2, 0).numpy() * 255
        difference = np.abs(prepare(path, CLIP).array - exact)
        means.append(float(difference.mean()))
        most = max(most, float(difference.max()))
    return (
        f"Large photographs against open_clip's pixels, of 255: mean {min(means):.2f} –"
        f" {max(means):.2f}, at most {most:.0f}."
    )


def _side_by_side(paths: list[Path]) -> str:
    """As predict.py prepares what many clients send at once."""
    waiting = (paths * CONNECTIONS)[:CONNECTIONS]
    with ThreadPoolExecutor(usable_cpus()) as pool:
        list(pool.map(lambda path: prepare(path, CLIP), paths))
        begin, busy = time.perf_counter(), time.process_time()
        list(pool.map(lambda path: prepare(path, CLIP), waiting))
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    return (
        f"{CONNECTIONS} large photographs at once: {CONNECTIONS / seconds:.1f} a second, on"
        f" {busy / seconds:.2f} of {usable_cpus()} cores."
    )
