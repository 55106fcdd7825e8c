"""Download 857 MB from a Cloud Storage API here, and from nginx with limited connections."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager

import weights
from clip_embed.checkpoint.manifest import SHARD_SUFFIX
from scripts.benchmarks.bucket import PREFIX, filled_bucket
from scripts.benchmarks.checkout import THIS, Checkout
from scripts.benchmarks.curl import Curl
from scripts.benchmarks.nginx import nginx
from scripts.benchmarks.range_sweep import sweep
from scripts.benchmarks.report import Figure, Section, in_turn, table, warm_memory
from scripts.benchmarks.worker import Worker
from scripts.lib.cog_server import CACHE
from scripts.lib.storage import open_storage
from scripts.publishing import DEFAULT_MODEL
from scripts.publishing.model import read_model
from scripts.publishing.publish import publish

CONNECTION_RATE = 50_000_000  # bytes/s
MEMORY = "/dev/shm"
STREAMS = (4, 8, 16)
PAIRS_PER_RUN = 16  # of a verified and an unverified pull

GCSFS = """
import sys, time, gcsfs
fs = gcsfs.GCSFileSystem(token="anon", endpoint_url=sys.argv[1])
starts = [n * 8 * 2**20 for n in range(8)]
ends = [start + 8 * 2**20 for start in starts]
for _ in range(2):  # the first one warms up
    begin = time.perf_counter()
    fs.cat_ranges([sys.argv[2]] * 8, starts, ends)
    seconds = time.perf_counter() - begin
print(8 * 8 * 2**20 / 1e6 / seconds)
"""


def run(runs: int, baseline: Checkout | None = None) -> list[Section]:
    """Run `bench.py download`."""
    CACHE.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(filled_bucket())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=CACHE)))
        pulls = {
            checkout.name: stack.enter_context(checkout.worker("pull"))
            for checkout in ([THIS, baseline] if baseline else [THIS])
        }
        return [
            _from_bucket(url, directory, pulls, runs),
            _cost_of_verification(pulls[THIS.name], runs),
            Section(sweep(url, min(runs, 3))),
            *_from_limited_connections(directory, pulls, runs),
        ]


def _from_bucket(url: str, directory: Path, pulls: dict[str, Worker], runs: int) -> Section:
    measurements: dict[str, Callable[[], float]] = {
        name: functools.partial(worker.measure, PREFIX) for name, worker in pulls.items()
    }
    measurements |= _peers_from_bucket(url, directory)
    figures = in_turn(measurements, runs, "MB/s", more_is_better=True)
    return Section(table("from the emulator", figures, figures[0]), figures)


def _peers_from_bucket(url: str, directory: Path) -> dict[str, Callable[[], float]]:
    client = storage.Client(project="emulator", credentials=AnonymousCredentials())
    blob = client.bucket("models").blob("open_clip/open_clip_model.safetensors")
    blob.reload()
    shards = {
        f"{url}/models/{found.name}": found.size
        for found in client.list_blobs("models", prefix=PREFIX.removeprefix("gs://models/"))
        if found.name.endswith(SHARD_SUFFIX)
    }
    curl = Curl(shards, directory / "curl.conf")

    def manager(worker_type: str) -> float:
        begin = time.perf_counter()
        transfer_manager.download_chunks_concurrently(
            blob, str(directory / "downloaded"), worker_type=worker_type
        )
        return blob.size / 1e6 / (time.perf_counter() - begin)

    def gcsfs() -> float:
        # In a process of its own: it loads gRPC, whose threads disturb transfer_manager's forks.
        environment = {**os.environ, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        command = [sys.executable, "-c", GCSFS, url, f"models/{blob.name}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout)

    def curl_to_memory() -> float:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            return curl.download(weights.STREAMS, Path(folder))

    downloads = {
        "transfer_manager, processes": lambda: manager(transfer_manager.PROCESS),
        "transfer_manager, threads": lambda: manager(transfer_manager.THREAD),
        "gcsfs cat_ranges (64 MiB of it)": gcsfs,
        "curl --parallel, the same ranges, discarded": lambda: curl.download(weights.STREAMS),
    }
    if os.path.isdir(MEMORY):  # macOS has no file system in memory
        downloads["curl --parallel, the same ranges, kept in memory"] = curl_to_memory
    return downloads


def _cost_of_verification(worker: Worker, runs: int) -> Section:
    """Compare verified and unverified pulls in pairs.

    Each of the two is first in every other pair, so that neither gains from memory that the other
    has touched. Many pairs: a pull's time varies by a tenth, and the difference is smaller.
    """
    rates: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(PAIRS_PER_RUN * runs):
        warm_memory()
        for verify in (True, False) if turn % 2 else (False, True):
            rates[verify].append(worker.measure(PREFIX, None, verify))
    verified, unverified = (
        Figure(name, tuple(rates[verify]), "MB/s", more_is_better=True)
        for name, verify in (("this service", True), ("this service, unverified", False))
    )
    cost = max(1 - verified.median / unverified.median, 0)
    text = (
        table("the same, in pairs", [verified, unverified], verified)
        + f"\n\nVerification costs {cost:.1%} of the pull's wall time where this machine's cores,"
        " which also serve the bytes, are the limit."
    )
    return Section(text, [verified, unverified])


def _from_limited_connections(
    directory: Path, pulls: dict[str, Worker], runs: int
) -> list[Section]:
    """Compare rates from nginx with the product of streams and CONNECTION_RATE."""
    if shutil.which("nginx") is None:
        print("  nginx is not installed: the scaling with streams is not measured")
        return []
    publish(read_model("random:0", DEFAULT_MODEL), open_storage(str(directory / "web")))
    most = STREAMS[-1]
    with nginx(directory, CONNECTION_RATE) as url:
        measurements = _limited_downloads(url, directory, pulls)
        figures = in_turn(
            {name: call for name, (_, call) in measurements.items()},
            runs,
            "MB/s",
            more_is_better=True,
        )
    lines = ["| nginx, 50 MB/s per connection | MB/s | of N × 50 |", "|---|---|---|"]
    for figure in figures:
        streams, _ = measurements[figure.name]
        limit = streams * CONNECTION_RATE / 1e6
        lines.append(f"| {figure.name} | {figure.median:,.0f} | {figure.median / limit:.2f} |")
    medians = {figure.name: figure.median for figure in figures}
    cost = max(1 - medians[f"{most} streams"] / medians[f"{most} streams, unverified"], 0)
    verification = f"With {most} × 50 MB/s, verification costs {cost:.1%} of the pull's wall time."
    return [Section("\n".join(lines), figures), Section(verification)]


def _limited_downloads(
    url: str, directory: Path, pulls: dict[str, Worker]
) -> dict[str, tuple[int, Callable[[], float]]]:
    """Return the streams and the measurement of each row. `url` serves directory/web."""
    shards = {
        f"{url}/{path.name}": path.stat().st_size
        for path in (directory / "web").glob(f"*{SHARD_SUFFIX}")
    }
    curl = Curl(shards, directory / "curl.conf")
    rows: dict[str, tuple[int, Callable[[], float]]] = {}
    for name, worker in pulls.items():
        prefix = "" if name == THIS.name else f"{name}, "
        for streams in STREAMS:
            measure = functools.partial(worker.measure, url, streams)
            rows[f"{prefix}{streams} streams"] = streams, measure
    most = STREAMS[-1]
    unverified = functools.partial(pulls[THIS.name].measure, url, most, False)
    rows[f"{most} streams, unverified"] = most, unverified
    for streams in STREAMS:
        download = functools.partial(curl.download, streams)
        rows[f"curl, {streams} streams, the same ranges"] = streams, download
    return rows
