"""Measure `scripts/search.py`: queries over 100,000 vectors, and indexing against the service.

The service's own rate is that of a loop that sends the same pictures, encoded beforehand, over as
many connections, and discards the answers.
"""

from __future__ import annotations

import base64
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from scripts.benchmarks.report import Section, in_turn, table
from scripts.lib.cog_server import CACHE, ROOT, CogServer
from scripts.lib.drawings import held_out
from scripts.lib.embedding_client import Client
from scripts.lib.picture_index import PROBE, Entry, PictureIndex, Stamp
from scripts.lib.search import index_folder

VECTORS, WIDTH = 100_000, 768
QUERIES = 20  # per run
IN_FLIGHT = 32


def run(runs: int) -> list[Section]:
    """Run `bench.py search`."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        return [_queries(Path(directory), runs), _indexing(Path(directory), runs)]


def _queries(directory: Path, runs: int) -> Section:
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

    def milliseconds(query_index: Callable[[np.ndarray], object]) -> float:
        seconds = []
        for query in rng.normal(size=(QUERIES, WIDTH)).astype(np.float32):
            begin = time.perf_counter()
            query_index(query)
            seconds.append(time.perf_counter() - begin)
        return 1e3 * float(np.median(seconds))

    contenders: dict[str, Callable[[np.ndarray], object]] = {
        "search.py's index (LanceDB on disk, exact)": lambda query: index.nearest(query, 12),
        "numpy, all in memory": lambda query: np.argsort(-(vectors @ query))[:12],
    }
    measurements = {
        name: functools.partial(milliseconds, query_index)
        for name, query_index in contenders.items()
    }
    figures = in_turn(measurements, runs, "ms")
    return Section(table(f"a query over {VECTORS:,} vectors", figures, figures[0]), figures)


def _indexing(directory: Path, runs: int) -> Section:
    folder = directory / "pictures"
    folder.mkdir()
    for number, drawing in enumerate(held_out()):
        (folder / f"{number:04}.png").write_bytes(drawing.png())
    with CogServer({"CLIP_WEIGHTS": str(ROOT / "demo_model")}) as server:
        server.wait_ready()
        client = Client(server.url)
        probe = client.text(PROBE)

        def index_pictures() -> float:
            shutil.rmtree(directory / "index", ignore_errors=True)
            index = PictureIndex(directory / "index", probe, create=True)
            begin = time.perf_counter()
            report = index_folder(folder, client, index, IN_FLIGHT)
            return report.embedded / (time.perf_counter() - begin)

        bodies = [_request_body(path) for path in sorted(folder.iterdir())]
        figures = in_turn(
            {
                "search.py index, vectors stored": index_pictures,
                "the service's own rate": functools.partial(_send_all, server.url, bodies),
            },
            runs,
            "pictures/s",
            more_is_better=True,
        )
    return Section(table("pictures of 64 pixels, the demo's model", figures, figures[0]), figures)


def _request_body(picture: Path) -> str:
    encoded = base64.b64encode(picture.read_bytes()).decode()
    return json.dumps({"input": {"image": f"data:image/png;base64,{encoded}"}})


def _send_all(url: str, bodies: Sequence[str]) -> float:
    """Send all requests, IN_FLIGHT at a time; return requests per second."""
    headers = {"Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
    with (
        httpx.Client(
            base_url=url, headers=headers, limits=limits, timeout=60, trust_env=False
        ) as client,
        ThreadPoolExecutor(IN_FLIGHT) as pool,
    ):
        begin = time.perf_counter()
        for response in pool.map(lambda body: client.post("/predictions", content=body), bodies):
            response.raise_for_status()
        return len(bodies) / (time.perf_counter() - begin)
