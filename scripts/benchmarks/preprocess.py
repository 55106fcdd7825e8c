"""Turn the file of a photograph into the pixels that CLIP reads: this service and the libraries.

The large photographs are the examples of this repository, enlarged (camera.py).
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from clip_embed.inputs.preprocess import Pixels, PreprocessConfig, preprocess_image
from clip_embed.startup.cpu_quota import usable_cpus
from scripts.benchmarks.camera import write_camera_photo
from scripts.benchmarks.report import Figure, Section, in_turn, table
from scripts.lib.cog_server import CACHE, ROOT

CONCURRENT = 32  # photographs

CONFIG = PreprocessConfig(
    224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, Image.Resampling.BICUBIC
)

OURS: dict[str, Callable[[Path], Pixels]] = {
    "this service": functools.partial(preprocess_image, config=CONFIG),
    "this service, CLIP_FAST_JPEG=1": functools.partial(
        preprocess_image, config=CONFIG, fast_jpeg=True
    ),
}


def run(runs: int) -> list[Section]:
    """Run `bench.py preprocess`."""
    torch.set_num_threads(1)  # one core per photograph, as in the service
    examples = sorted((ROOT / "examples").glob("*.jpg"))
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        large = [Path(folder, photo.name) for photo in examples]
        for photo, path in zip(examples, large, strict=True):
            write_camera_photo(photo, path)
        photographs = {"12 megapixels, JPEG": large, "the examples as they are": examples}
        return [
            *(_compare(title, paths, runs) for title, paths in photographs.items()),
            *(_difference_from_open_clip(title, paths) for title, paths in photographs.items()),
            *(_throughput(name, preprocess, large) for name, preprocess in OURS.items()),
        ]


def _compare(title: str, paths: Sequence[Path], runs: int) -> Section:
    transform = open_clip.image_transform(CONFIG.size, is_train=False)
    processor = CLIPImageProcessor()

    def with_open_clip(path: Path) -> object:
        with Image.open(path) as image:
            return transform(image)

    def with_transformers(path: Path) -> object:
        with Image.open(path) as image:
            return processor(image, return_tensors="pt")

    def milliseconds(preprocess: Callable[[Path], object]) -> float:
        begin = time.perf_counter()
        for path in paths:
            preprocess(path)
        return 1e3 * (time.perf_counter() - begin) / len(paths)

    contenders = {**OURS, "open_clip": with_open_clip, "transformers": with_transformers}
    measurements = {
        name: functools.partial(milliseconds, preprocess) for name, preprocess in contenders.items()
    }
    figures = in_turn(measurements, runs, "ms")
    named = [Figure(f"{title}: {each.name}", each.values, each.unit) for each in figures]
    return Section(table(title, figures, figures[0]), named)


def _difference_from_open_clip(title: str, paths: Sequence[Path]) -> Section:
    references = [_open_clip_pixels(path) for path in paths]
    lines = [f"Difference from open_clip's pixels, of 255 ({title}):", ""]
    for name, preprocess in OURS.items():
        differences = [
            np.abs(preprocess(path).array.astype(np.int16) - reference)
            for path, reference in zip(paths, references, strict=True)
        ]
        means = [float(difference.mean()) for difference in differences]
        largest = max(int(difference.max()) for difference in differences)
        lines.append(f"- {name}: mean {min(means):.2f} – {max(means):.2f}, maximum {largest}")
    return Section("\n".join(lines))


def _open_clip_pixels(path: Path) -> np.ndarray:
    """Return open_clip's pixels before normalization, int16 [S, S, 3]."""
    transform = open_clip.image_transform(CONFIG.size, is_train=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONFIG.mean, CONFIG.std))
    with Image.open(path) as image:
        values = transform(image) * std + mean  # [3, S, S]
    return (values * 255).round().permute(1, 2, 0).numpy().astype(np.int16)


def _throughput(name: str, preprocess: Callable[[Path], Pixels], paths: Sequence[Path]) -> Section:
    """Preprocess many photographs at once in threads, as the service does."""
    photographs = [paths[i % len(paths)] for i in range(CONCURRENT)]
    with ThreadPoolExecutor(usable_cpus()) as pool:
        list(pool.map(preprocess, paths))
        begin, cpu_begin = time.perf_counter(), time.process_time()
        list(pool.map(preprocess, photographs))
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    return Section(
        f"{name}, {CONCURRENT} photographs of 12 megapixels at once: {CONCURRENT / seconds:.1f}"
        f" per second, on {cpu_seconds / seconds:.2f} of {usable_cpus()} cores."
    )
