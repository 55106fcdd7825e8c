"""Measure bare range requests by their size and the number in flight, without verification.

Runs as a worker, with the image's memory settings: range_sweep.py URL, and requests
[streams, bytes per range] → MB/s.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import obstore
from obstore.store import GCSStore

from scripts.benchmarks.worker import Worker, memory_settings, serve

OBJECT = "open_clip/open_clip_model.safetensors"
STREAMS = (1, 2, 4, 8, 16, 32)
MEBIBYTES = (1, 4, 8, 16, 32)


def sweep(url: str, runs: int) -> str:
    """Return a Markdown table of medians, from the emulator at `url`."""
    rows = []
    with Worker(["-m", __name__, url], memory_settings()) as worker:
        for mebibytes in MEBIBYTES:
            rates = [
                statistics.median(worker.measure(streams, mebibytes * 2**20) for _ in range(runs))
                for streams in STREAMS
            ]
            cells = " | ".join(f"{rate:,.0f}" for rate in rates)
            rows.append(f"| {mebibytes} MiB | {cells} |")
    head = "| MB/s, range by streams | " + " | ".join(map(str, STREAMS)) + " |"
    rule = "|---" * (len(STREAMS) + 1) + "|"
    return "\n".join([head, rule, *rows])


def main() -> None:
    store = GCSStore(
        "models",
        base_url=sys.argv[1],
        skip_signature=True,
        client_options={"allow_http": True},
    )
    size = obstore.head(store, OBJECT)["size"]

    def measure(streams: int, length: int) -> float:
        def fetch(start: int) -> int:
            return len(obstore.get_range(store, OBJECT, start=start, length=length))

        with ThreadPoolExecutor(streams) as pool:
            begin = time.perf_counter()
            fetched = sum(pool.map(fetch, range(0, size - length, length)))
            return fetched / 1e6 / (time.perf_counter() - begin)

    serve(measure)


if __name__ == "__main__":
    main()
