"""Preprocess images and tokenize texts on the CPUs, as the service does before the device."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clip_embed.inputs.preprocess import preprocess_image
from clip_embed.inputs.tokenizer import Tokenizer
from clip_embed.startup.cpu_quota import usable_cpus
from scripts.benchmarks.camera import write_camera_photo
from scripts.benchmarks.captions import captions
from scripts.gpu.contenders import preprocess_config
from scripts.gpu.part import Recorder, Task
from scripts.gpu.samples import PHOTOS
from scripts.lib.cog_server import ROOT

THREADS = (1, 4, 8)


def run(task: Task, record: Recorder) -> None:
    """Record items per second, by threads."""
    seconds = 0.2 if task.tiny else 1.5
    config = preprocess_config(task)
    large = Path(task.folder) / "camera.jpg"
    write_camera_photo(PHOTOS[0], large)
    works: dict[str, tuple[Callable[[Path], object], Sequence[Path]]] = {
        "examples": (functools.partial(preprocess_image, config=config), PHOTOS),
        "12-megapixel JPEG": (functools.partial(preprocess_image, config=config), [large]),
        "12-megapixel JPEG, CLIP_FAST_JPEG=1": (
            functools.partial(preprocess_image, config=config, fast_jpeg=True),
            [large],
        ),
    }
    table = "images preprocessed"
    for row, (work, paths) in works.items():
        with record.section(row):
            for threads in sorted({*THREADS, usable_cpus()}):
                rate = _rate(work, paths, threads, seconds)
                column = f"{threads} thread{'s' if threads > 1 else ''}"
                record.figure(table, row, rate, "per second", column=column, more_is_better=True)
    with record.section("tokenizations"):
        # The tokenizer of every model here is CLIP's.
        tokenizer = Tokenizer((ROOT / "demo_model" / "tokenizer.json").read_bytes(), 77)
        rates = [_rate(tokenizer.tokenize, captions(200), 1, seconds / 3) for _ in range(3)]
        record.figure("texts tokenized", "one thread", rates, "per second", more_is_better=True)


def _rate(
    work: Callable[..., object], items: Sequence[object], threads: int, seconds: float
) -> float:
    """Return the items per second of `threads` that work for about `seconds`."""
    end = time.perf_counter() + seconds

    def repeat(first: int) -> int:
        done = 0
        while time.perf_counter() < end:
            work(items[(first + done) % len(items)])
            done += 1
        return done

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(repeat, range(threads)))
    return done / (time.perf_counter() - begin)
