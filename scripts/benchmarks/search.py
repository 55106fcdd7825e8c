"""What `scripts/search.py` costs: a query over 100,000 vectors, and indexing against the service.

The bare rate is that of a loop which sends the same pictures, made ready beforehand, over as many
connections, and throws the answers away.
"""

from __future__ import annotations

import base64
import functools
import http.client
import json
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import search
from benchmarks.report import Figure, in_turn, table
from drawings import held_out
from embedding_client import Client
from local_server import CACHE, ROOT, CogServer
from picture_index import PROBE, Entry, PictureIndex, Stamp

VECTORS, WIDTH = 100_000, 768
QUERIES = 20  # in a run
IN_FLIGHT = 32


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py search` prints, and its figures."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        queries = _queries(Path(directory), runs)
        indexing = _indexing(Path(directory), runs)
    parts = [
        table(f"a query over {VECTORS:,} vectors", queries, queries[0]),
        table("pictures of 64 pixels, the demo's model", indexing, indexing[0]),
    ]
    return "\n\n".join(parts), [*queries, *indexing]


def _queries(directory: Path, runs: int) -> list[Figure]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(VECTORS, WIDTH)).astype(np.float32)
    index = PictureIndex(directory / "vectors", vectors[0], create=True)
    for begin in range(0, VECTORS, 10_000):
        index.put(
            Entry(f"/pictures/{i}.jpg", Stamp(1, 1), vectors[i])
            for i in range(begin, begin + 10_000)
        )
    index.compact()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def timed(ask: Callable[[np.ndarray], object]) -> float:
        seconds = []
        for query in rng.normal(size=(QUERIES, WIDTH)).astype(np.float32):
            begin = time.perf_counter()
            ask(query)
            seconds.append(time.perf_counter() - begin)
        return 1e3 * float(np.median(seconds))

    return in_turn(
        {
            "search.py's index (LanceDB on disk, exact)": lambda: timed(
                lambda query: index.nearest(query, 12)
            ),
            "numpy, all in memory": lambda: timed(
                lambda query: np.argsort(-(vectors @ query))[:12]
            ),
        },
        runs,
        "ms",
    )


def _indexing(directory: Path, runs: int) -> list[Figure]:
    folder = directory / "pictures"
    folder.mkdir()
    for number, drawing in enumerate(held_out()):
        (folder / f"{number:04}.png").write_bytes(drawing.png())
    with CogServer({"CLIP_WEIGHTS": str(ROOT / "demo_model")}) as server:
        server.wait_ready()
        client = Client(server.url)
        probe = client.text(PROBE)

        def indexed() -> float:
            shutil.rmtree(directory / "index", ignore_errors=True)
            index = PictureIndex(directory / "index", probe, create=True)
            begin = time.perf_counter()
            report = search.index_folder(folder, client, index, IN_FLIGHT)
            return report.embedded / (time.perf_counter() - begin)

        bodies = [
            json.dumps(
                {"input": {"image": "data:image/png;base64," + base64.b64encode(data).decode()}}
            )
            for data in (path.read_bytes() for path in sorted(folder.iterdir()))
        ]
        return in_turn(
            {
                "search.py index, vectors stored": indexed,
                "the service's bare rate": functools.partial(_bare, server.port, bodies),
            },
            runs,
            "pictures/s",
            more_is_better=True,
        )


def _bare(port: int, bodies: list[str]) -> float:
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for body in bodies:
        waiting.put(body)

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            try:
                body = waiting.get_nowait()
            except queue.Empty:
                return
            connection.request("POST", "/predictions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise RuntimeError(f"the service answered {response.status}: {answer[:200]!r}")

    threads = [threading.Thread(target=send) for _ in range(IN_FLIGHT)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(bodies) / (time.perf_counter() - begin)
