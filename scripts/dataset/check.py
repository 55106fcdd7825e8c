"""Check embed_dataset.py at full size: the body of scripts/check_embed_dataset.py."""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import weights
from clip_embed.inputs.preprocess import Pixels, preprocess_image
from clip_embed.model.batch_limits import CATALOG_LIMITS
from clip_embed.service import load_embedder
from scripts.lib.cog_server import CogServer
from scripts.lib.gcs_emulator import gcs_emulator
from scripts.lib.storage import Storage, open_storage

if TYPE_CHECKING:
    from clip_embed.embedder import Embedder

ROOT = Path(__file__).resolve().parents[2]
IMAGES, BAD_EVERY, CAPTIONS = 2000, 33, 20_000
IMAGES_PER_PART, CAPTIONS_PER_PART = 50, 500
WORDS = ("red", "blue", "old", "new", "dog", "cat", "bicycle", "shoe", "lamp", "under", "a", "the")
PLAIN_LOOP_IMAGES = 400

MAX_DIFFERENCE = 2e-5
MIN_SPEED = 0.9  # of the plain loop
MAX_MEMORY_GROWTH = 1.15  # from a tenth of the images to all of them

Rows = dict[str, tuple[Any, str | None]]
"""Id → vector and error."""


def require(condition: bool, requirement: str) -> None:
    if not condition:
        raise SystemExit(f"not met: {requirement}")


# --- inputs -----------------------------------------------------------------------------------


def jpeg(number: int, height: int = 320) -> bytes:
    """Return a JPEG of colored noise, coarse enough to decode like a photograph."""
    noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    size = (height * 4 // 3, height)
    data = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(data, "JPEG", quality=85)
    return data.getvalue()


def image_name(number: int) -> str:
    return f"{number // 100:03}/{number:06}.jpg"


def is_bad(number: int) -> bool:
    return number % BAD_EVERY == BAD_EVERY - 1


def write_images(storage: Storage, count: int, height: int = 320, some_bad: bool = True) -> None:
    def write(number: int) -> None:
        data = jpeg(number, height)
        if some_bad and is_bad(number):  # in turn: not an image, truncated, empty
            data = (b"not an image", data[: len(data) // 3], b"")[number // BAD_EVERY % 3]
        storage.write(image_name(number), data)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(count)))


def caption(number: int) -> str:
    random = np.random.default_rng(number)
    return " ".join([*random.choice(WORDS, random.integers(3, 12)), str(number)])


def publish(destination: str, model: str) -> None:
    """Publish random weights, and set CLIP_WEIGHTS for all that follows."""
    command = [sys.executable, str(ROOT / "scripts" / "publish_weights.py"), "random:1"]
    subprocess.run([*command, destination, "--model", model], check=True, capture_output=True)
    os.environ["CLIP_WEIGHTS"] = destination


# --- runs -------------------------------------------------------------------------------------


class Run:
    """A running embed_dataset.py with two embedders of one core each.

    started, ended: in seconds of `time.perf_counter`. peak_bytes: of the memory of its processes
    together, as PSS, which counts shared memory once.
    """

    def __init__(self, source: str, destination: str, *options: str) -> None:
        self._destination = open_storage(destination)
        self.started = time.perf_counter()
        self.ended, self.peak_bytes = 0.0, 0
        script = str(ROOT / "scripts" / "embed_dataset.py")
        self._process = subprocess.Popen(
            [
                *(sys.executable, script, source, destination),
                *("--cores-per-embedder", "1", "--embedders", "2", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def parts(self) -> list[str]:
        """Return the names of the parts that are written."""
        return list(self._destination.names("part-"))

    def wait_for_parts(self, count: int) -> None:
        while len(self.parts()) < count and self._process.poll() is None:
            time.sleep(0.05)

    def kill(self) -> list[str]:
        """Kill every process of the run. Return the parts that are written."""
        for process in self._processes():
            process.kill()
        self._process.communicate()
        return self.parts()

    def kill_embedders(self) -> int:
        """Kill the embedders. Return their number."""
        killed = 0
        for process in self._processes():
            if "MapWorker" in " ".join(process.cmdline()):
                process.kill()
                killed += 1
        return killed

    def watch_memory(self) -> None:
        """Measure `peak_bytes` in the background."""
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def _watch_memory(self) -> None:
        while self._process.poll() is None:
            try:
                total = sum(process.memory_full_info().pss for process in self._processes())
            except psutil.Error:  # a process has ended meanwhile
                continue
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(0.5)

    def finish(self) -> str:
        """Wait for the end of the run. Return its last line of output."""
        output, _ = self._process.communicate()
        self.ended = time.perf_counter()
        if self._process.returncode:
            raise SystemExit(output)
        return str(output.splitlines()[-1])

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]


def read_rows(storage: Storage) -> Rows:
    """Read all parts. Require that no id is present twice."""
    rows: Rows = {}
    for name in storage.names("part-"):
        table = pq.read_table(pa.BufferReader(storage.read(name)))
        for row in table.to_pylist():
            require(row["id"] not in rows, f"{row['id']} is present once")
            rows[row["id"]] = row["vector"], row["error"]
    return rows


# --- rows -------------------------------------------------------------------------------------


def check_rows() -> None:
    with gcs_emulator("models", "shop") as url:
        os.environ["STORAGE_EMULATOR_HOST"] = url
        publish("gs://models/tiny", str(ROOT / "tests" / "data" / "tiny.json"))
        images = check_images()
        captions = check_captions()
        environment = {"CLIP_WEIGHTS": "gs://models/tiny", "STORAGE_EMULATOR_HOST": url}
        with CogServer(environment) as server:
            server.wait_ready()
            image_difference = largest_difference(server, image_requests(), images)
            requests = {f"c{n}": {"text": caption(n)} for n in range(CAPTIONS)}
            text_difference = largest_difference(server, requests, captions)
    print(
        f"largest difference from the service: {image_difference:.1e} for images,"
        f" {text_difference:.1e} for texts"
    )
    require(
        max(image_difference, text_difference) <= MAX_DIFFERENCE,
        f"a difference of at most {MAX_DIFFERENCE}",
    )


def check_images() -> Rows:
    """Embed images while embedders are killed. Require one row per image, errors for bad ones."""
    write_images(open_storage("gs://shop/pictures"), IMAGES)
    options = ("--rows-per-part", str(IMAGES_PER_PART))
    run = Run("gs://shop/pictures", "gs://shop/out-pictures", *options)
    run.wait_for_parts(8)
    before, killed = len(run.parts()), run.kill_embedders()
    total = IMAGES // IMAGES_PER_PART
    require(before < total, "the run still works when the embedders are killed")
    require(killed > 0, "an embedder is found")
    print(f"images: {killed} embedders killed after {before} of {total} parts")
    print(run.finish())
    rows = read_rows(open_storage("gs://shop/out-pictures"))
    require(rows.keys() == {image_name(n) for n in range(IMAGES)}, "every image has a row")
    failed = {n for n in range(IMAGES) if rows[image_name(n)][0] is None}
    require(failed == set(filter(is_bad, range(IMAGES))), "bad images, and no others, have errors")
    return rows


def check_captions() -> Rows:
    """Embed texts, kill the run, run it again. Require that no finished part is written again."""
    lines = [json.dumps({"sku": f"c{n}", "title": caption(n)}) for n in range(CAPTIONS)]
    open_storage("gs://shop/texts").write("titles.jsonl", "\n".join(lines).encode())
    source, destination = "gs://shop/texts/titles.jsonl", "gs://shop/out-texts"
    options = ("--text-column", "title", "--id-column", "sku")
    options += ("--rows-per-part", str(CAPTIONS_PER_PART))
    storage = open_storage(destination)
    run = Run(source, destination, *options)
    run.wait_for_parts(5)
    finished = run.kill()
    total = CAPTIONS // CAPTIONS_PER_PART
    require(0 < len(finished) < total, "the run is killed between its first and its last part")
    require("_SUCCESS" not in list(storage.names()), "a killed run leaves no _SUCCESS")
    versions = [storage.version(name) for name in finished]
    print(f"captions: run killed after {len(finished)} of {total} parts")
    print(Run(source, destination, *options).finish())
    require(
        [storage.version(name) for name in finished] == versions,
        "finished parts are not written again",
    )
    rows = read_rows(storage)
    require(rows.keys() == {f"c{n}" for n in range(CAPTIONS)}, "every caption has a row")
    return rows


def image_requests() -> dict[str, dict[str, str]]:
    """Return id → request of all images but the bad ones: Cog itself refuses some of those."""
    storage = open_storage("gs://shop/pictures")
    return {
        image_name(n): {"image": f"data:image/jpeg;base64,{_base64(storage, image_name(n))}"}
        for n in range(IMAGES)
        if not is_bad(n)
    }


def _base64(storage: Storage, name: str) -> str:
    return base64.b64encode(storage.read(name)).decode()


def largest_difference(server: CogServer, requests: dict[str, dict[str, str]], rows: Rows) -> float:
    """Return the largest difference between the service's vectors and those in `rows`."""

    def difference(identity: str) -> float:
        response = server.predict(**requests[identity])
        vector, error = rows[identity]
        require(response.get("status") == "succeeded", f"the service embeds {identity}")
        require(vector is not None, f"{identity} has a vector, as in the service; it has: {error}")
        return float(np.abs(np.array(vector) - np.array(response["output"])).max())

    with ThreadPoolExecutor(16) as threads:
        return max(threads.map(difference, requests))


# --- throughput -------------------------------------------------------------------------------


def check_throughput(images: int) -> None:
    """Measure ViT-B/32 at 224 pixels, embed_dim 512, with images of 683 × 512 pixels."""
    with gcs_emulator("models", "shop") as url:
        os.environ["STORAGE_EMULATOR_HOST"] = url
        publish("gs://models/b32", "ViT-B-32-quickgelu")
        _, small_peak = measure_run(images // 10)
        rate, peak = measure_run(images)
        # In a new process: an interpreter that has run other things is not a fair comparison.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            plain, encode = process.submit(run_plain_loop, f"gs://shop/p{images}").result()
    print(f"plain loop, {CATALOG_LIMITS['cpu'].images} images per batch: {plain:.1f}/s")
    print(f"plain loop, images preprocessed beforehand: {encode:.1f}/s")
    print(
        f"speed: {rate / plain:.2f} of the plain loop, {rate / encode:.2f} of encoding alone;"
        f" memory: {peak / small_peak:.2f} times that of a tenth of the images"
    )
    require(rate >= MIN_SPEED * plain, f"at least {MIN_SPEED} of the plain loop's speed")
    require(peak <= MAX_MEMORY_GROWTH * small_peak, f"at most {MAX_MEMORY_GROWTH} times the memory")


def measure_run(count: int) -> tuple[float, int]:
    """Embed `count` images. Return images per second once started, and the peak memory."""
    source, destination, rows_per_part = f"gs://shop/p{count}", f"gs://shop/o{count}", 32
    write_images(open_storage(source), count, height=512, some_bad=False)
    run = Run(source, destination, "--rows-per-part", str(rows_per_part))
    run.watch_memory()
    run.wait_for_parts(2)
    begin, present = time.perf_counter(), len(run.parts())
    run.wait_for_parts(-(-count // rows_per_part))
    rate = (count - rows_per_part * present) / (time.perf_counter() - begin)
    run.finish()
    print(
        f"{count} images: {rate:.1f}/s once started,"
        f" {count / (run.ended - run.started):.1f}/s with the start of the cluster;"
        f" peak {run.peak_bytes / 1e6:,.0f} MB"
    )
    return rate, run.peak_bytes


def run_plain_loop(location: str) -> tuple[float, float]:
    """Embed images one batch after another. Return images per second, and of encoding alone."""
    with weights.pull(os.environ["CLIP_WEIGHTS"]) as pull:
        embedder = load_embedder(pull, "cpu").embedder
    embedder.warm_up()
    storage = open_storage(location)
    names = list(storage.names())[:PLAIN_LOOP_IMAGES]
    size = CATALOG_LIMITS["cpu"].images
    batches = [names[start : start + size] for start in range(0, len(names), size)]
    embedder.embed_images(list(read_images(storage, batches[0], embedder)))
    encode_seconds, started = 0.0, time.perf_counter()
    for batch in batches:
        pixels = list(read_images(storage, batch, embedder))
        encode_started = time.perf_counter()
        embedder.embed_images(pixels)
        encode_seconds += time.perf_counter() - encode_started
    return len(names) / (time.perf_counter() - started), len(names) / encode_seconds


def read_images(storage: Storage, names: list[str], embedder: Embedder) -> Iterator[Pixels]:
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        for name in names:
            Path(file.name).write_bytes(storage.read(name))
            yield preprocess_image(file.name, embedder.preprocess_config)
