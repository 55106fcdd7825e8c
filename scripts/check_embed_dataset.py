"""scripts/embed_dataset.py at the size its promises are made for, on this machine's cores.

    check_embed_dataset.py rows|throughput

rows        2,000 pictures, 3% of them bad, embedders killed on the way; 20,000 captions, the run
            killed and resumed: every row there once, and equal to the service's. From and to the
            emulator, with a tiny random model.
throughput  against a plain loop over `Embedder`, and memory of a tenth of the input against that of
            all of it (ViT-B/32, random weights).

Ends with an error if a promise is not kept. The first takes minutes, the second more.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataset.places import Place, open_place
from gcs_emulator import gcs_emulator
from local_server import CogServer

PICTURES, BAD_EVERY, CAPTIONS = 2000, 33, 20_000
MAX_DIFFERENCE = 2e-5
WORDS = ("red", "blue", "old", "new", "dog", "cat", "bicycle", "shoe", "lamp", "under", "a", "the")
LEAST_OF_PLAIN_LOOP = 0.9
MOST_MEMORY_GROWTH = 1.15


def picture(number: int, side: int = 320) -> bytes:
    """A JPEG of coloured noise, coarse enough to decode like a photograph."""
    noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return data.getvalue()


def bad(number: int) -> bool:
    return number % BAD_EVERY == BAD_EVERY - 1


def fill(place: Place, count: int, side: int = 320, spoil: bool = True) -> None:
    def put(number: int) -> None:
        data = picture(number, side)
        if spoil and bad(number):  # in turn: no picture, cut short, empty
            data = (b"not a picture", data[: len(data) // 3], b"")[number // BAD_EVERY % 3]
        place.write(f"{number // 100:03}/{number:06}.jpg", data)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, range(count)))


def caption(number: int) -> str:
    random = np.random.default_rng(number)
    return " ".join([*random.choice(WORDS, random.integers(3, 12)), str(number)])


class Run:
    """The script at work. peak: of its processes' memory together, in bytes (PSS: what processes
    share is counted once); started, done: seconds of the clock."""

    def __init__(self, source: str, destination: str, *options: str) -> None:
        self._destination = open_place(destination)
        self.started = time.perf_counter()
        self.peak, self.done = 0, 0.0
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "scripts" / "embed_dataset.py"), source, destination),
                *("--cores-per-embedder", "1", "--embedders", "2", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def family(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def parts(self) -> list[str]:
        return list(self._destination.names("part-"))

    def wait_for(self, parts: int) -> None:
        while len(self.parts()) < parts and self.process.poll() is None:
            time.sleep(0.05)

    def kill(self) -> list[str]:
        """End all of it at once; the parts that are there."""
        for process in self.family():
            process.kill()
        self.process.communicate()
        return self.parts()

    def kill_embedders(self) -> int:
        killed = 0
        for process in self.family():
            if "MapWorker" in " ".join(process.cmdline()):
                process.kill()
                killed += 1
        return killed

    def watch_memory(self) -> None:
        def watch() -> None:
            while self.process.poll() is None:
                total = 0
                try:
                    for process in self.family():
                        total += process.memory_full_info().pss
                except psutil.Error:
                    continue
                self.peak = max(self.peak, total)
                time.sleep(0.5)

        threading.Thread(target=watch, daemon=True).start()

    def finish(self) -> str:
        output, _ = self.process.communicate()
        self.done = time.perf_counter()
        if self.process.returncode:
            raise SystemExit(output)
        return str(output)


def rows_of(place: Place) -> dict[str, tuple[Any, str | None]]:
    rows: dict[str, tuple[Any, str | None]] = {}
    for name in place.names("part-"):
        table = pq.read_table(pa.BufferReader(place.read(name)))
        for row in table.to_pylist():
            must(row["id"] not in rows, f"{row['id']} is there twice")
            rows[row["id"]] = row["vector"], row["error"]
    return rows


def must(kept: bool, what: str) -> None:
    if not kept:
        raise SystemExit(f"not kept: {what}")


def largest_difference(
    server: CogServer, inputs: dict[str, dict[str, str]], rows: dict[str, tuple[Any, str | None]]
) -> float:
    """Between what the service answers and what was written, over all `inputs`."""

    def one(item: tuple[str, dict[str, str]]) -> float:
        identity, request = item
        try:
            answer = server.predict(**request)
        except urllib.error.HTTPError as error:
            answer = json.load(error)
        vector, error_text = rows[identity]
        if answer.get("status") == "succeeded":
            must(vector is not None, f"{identity}: {error_text}, and the service embeds it")
            return float(np.abs(np.array(vector) - np.array(answer["output"])).max())
        must(vector is None and bool(error_text), f"{identity} has a vector; the service: {answer}")
        return 0.0

    with ThreadPoolExecutor(16) as threads:
        return max(threads.map(one, inputs.items()))


def check_rows() -> None:
    with gcs_emulator("models", "shop") as url:
        os.environ["STORAGE_EMULATOR_HOST"] = url
        publish("gs://models/tiny", str(ROOT / "tests" / "tiny.json"))
        shop = open_place("gs://shop/pictures")
        fill(shop, PICTURES)
        lines = [json.dumps({"sku": f"c{n}", "title": caption(n)}) for n in range(CAPTIONS)]
        open_place("gs://shop/texts").write("titles.jsonl", "\n".join(lines).encode())

        run = Run("gs://shop/pictures", "gs://shop/out-pictures", "--rows-per-part", "50")
        run.wait_for(8)
        before, killed = len(run.parts()), run.kill_embedders()
        must(before < PICTURES / 50, "the run was over before an embedder could be killed")
        must(killed > 0, "no embedder was found")
        print(f"pictures: {killed} embedders killed after {before} of {PICTURES // 50} parts")
        print(run.finish().splitlines()[-1])
        pictures = rows_of(open_place("gs://shop/out-pictures"))
        wanted = {f"{n // 100:03}/{n:06}.jpg": n for n in range(PICTURES)}
        must(pictures.keys() == wanted.keys(), "every picture has its row")
        failed = {n for name, n in wanted.items() if pictures[name][0] is None}
        must(failed == {n for n in range(PICTURES) if bad(n)}, "errors where pictures are bad")

        options = ("--text-column", "title", "--id-column", "sku", "--rows-per-part", "500")
        run = Run("gs://shop/texts/titles.jsonl", "gs://shop/out-texts", *options)
        run.wait_for(5)
        done = run.kill()
        must(0 < len(done) < CAPTIONS / 500, "killed on the way")
        must("_SUCCESS" not in list(open_place("gs://shop/out-texts").names()), "no marker")
        generations = _generations(done)
        print(f"captions: run killed after {len(done)} of {CAPTIONS // 500} parts")
        run = Run("gs://shop/texts/titles.jsonl", "gs://shop/out-texts", *options)
        print(run.finish().splitlines()[-1])
        must(_generations(done) == generations, "finished parts were not written again")
        texts = rows_of(open_place("gs://shop/out-texts"))
        must(texts.keys() == {f"c{n}" for n in range(CAPTIONS)}, "every caption has its row")

        environment = {"CLIP_WEIGHTS": "gs://models/tiny", "STORAGE_EMULATOR_HOST": url}
        with CogServer(environment) as server:
            server.wait_ready()
            head = "data:image/jpeg;base64,"
            images = {
                name: {"image": head + base64.b64encode(shop.read(name)).decode()}
                for name, number in wanted.items()
                if not bad(number)  # Cog refuses some of those before the service sees them
            }
            of_images = largest_difference(server, images, pictures)
            of_texts = largest_difference(
                server, {f"c{n}": {"text": caption(n)} for n in range(CAPTIONS)}, texts
            )
        print(f"largest difference to the service: {of_images:.1e} images, {of_texts:.1e} texts")
        must(max(of_images, of_texts) <= MAX_DIFFERENCE, f"at most {MAX_DIFFERENCE}")


def _generations(names: list[str]) -> list[Any]:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(project="emulator", credentials=AnonymousCredentials())
    bucket = client.bucket("shop")
    return [bucket.get_blob(f"out-texts/{name}").generation for name in names]


def publish(destination: str, model: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "publish_weights.py"), "random:1"]
    subprocess.run([*command, destination, "--model", model], check=True, capture_output=True)
    os.environ["CLIP_WEIGHTS"] = destination


def check_throughput(pictures: int) -> None:
    """ViT-B/32 at 224 pixels, embed_dim 512; pictures of 683 × 512."""
    from dataset import stages

    with gcs_emulator("models", "shop") as url:
        os.environ["STORAGE_EMULATOR_HOST"] = url
        publish("gs://models/b32", "ViT-B-32-quickgelu")
        peaks, rates = [], []
        for count in (pictures // 10, pictures):
            source, out = f"gs://shop/p{count}", f"gs://shop/o{count}"
            fill(open_place(source), count, side=512, spoil=False)
            run = Run(source, out, "--rows-per-part", "32")
            run.watch_memory()
            run.wait_for(2)
            begun, there = time.perf_counter(), len(run.parts())
            run.wait_for(-(-count // 32))
            rates.append((count - 32 * there) / (time.perf_counter() - begun))
            run.finish()
            peaks.append(run.peak)
            print(
                f"{count} pictures: {rates[-1]:.1f}/s once started,"
                f" {count / (run.done - run.started):.1f}/s with starting the cluster;"
                f" peak {run.peak / 1e6:,.0f} MB"
            )
        # The plain loop, last: everything the pipeline does to a picture, one after another.
        plain = subprocess.run(
            [sys.executable, "-c", PLAIN_LOOP, f"gs://shop/p{pictures}"],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"},
        )
        whole, encode = (float(word) for word in plain.stdout.split())
        print(f"plain loop, {stages.IMAGES_PER_BATCH['cpu']} to a batch: {whole:.1f}/s")
        print(f"plain loop, pictures prepared beforehand: {encode:.1f}/s")
        print(
            f"of the plain loop: {rates[-1] / whole:.2f}; of encoding alone:"
            f" {rates[-1] / encode:.2f}; memory {peaks[1] / peaks[0]:.2f} times"
        )
        must(rates[-1] >= LEAST_OF_PLAIN_LOOP * whole, f"{LEAST_OF_PLAIN_LOOP} of the plain loop")
        must(peaks[1] <= MOST_MEMORY_GROWTH * peaks[0], f"memory within {MOST_MEMORY_GROWTH}")


PLAIN_LOOP = """
import json, os, sys, tempfile, time
import weights
from clip_embed import image, manifest, tensors
from clip_embed.device import choose_device, choose_dtype
from clip_embed.embedder import Embedder
from dataset.places import open_place
with weights.pull(os.environ["CLIP_WEIGHTS"]) as pull:
    device = choose_device("cpu")
    loaded = tensors.load(pull.blocks(), device, choose_dtype(device))
    embedder = Embedder.build(pull.file(manifest.CONFIG_NAME), loaded)
embedder.warm_up()
place = open_place(sys.argv[1])
names = list(place.names())[:400]
batches = [names[start : start + 8] for start in range(0, len(names), 8)]
path = os.path.join(tempfile.mkdtemp(), "picture.jpg")
def prepared(batch):
    for name in batch:
        with open(path, "wb") as file:
            file.write(place.read(name))
        yield image.prepare(path, embedder.preprocessing)
embedder.embed_images(list(prepared(batches[0])))
encode, started = 0.0, time.perf_counter()
for batch in batches:
    pixels = list(prepared(batch))
    before = time.perf_counter()
    embedder.embed_images(pixels)
    encode += time.perf_counter() - before
print(len(names) / (time.perf_counter() - started), len(names) / encode)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("rows", "throughput"))
    parser.add_argument("--pictures", type=int, default=PICTURES, help="for throughput")
    arguments = parser.parse_args()
    if arguments.what == "rows":
        check_rows()
    else:
        check_throughput(arguments.pictures)


if __name__ == "__main__":
    main()
