"""855 MB from a Cloud Storage API on this machine, and from nginx that limits every connection."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import DEVNULL
from unittest import mock

import obstore
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager
from obstore.store import GCSStore

import publish_weights
import weights
from benchmarks.bucket import PREFIX, filled_bucket
from benchmarks.report import Figure, in_turn, table, warm_memory
from clip_embed.manifest import SHARD_SUFFIX
from local_server import CACHE, free_port

CONNECTION_RATE = 50_000_000  # bytes/s
MEMORY = "/dev/shm"
STREAMS = (4, 8, 16)
PAIRS_PER_RUN = 16  # of a verified and an unverified pull
SWEEP_STREAMS = (1, 2, 4, 8, 16, 32)
SWEEP_MEBIBYTES = (1, 4, 8, 16, 32)

GCSFS = """
import sys, time, gcsfs
fs = gcsfs.GCSFileSystem(token="anon", endpoint_url=sys.argv[1])
starts = [n * 8 * 2**20 for n in range(8)]
ends = [start + 8 * 2**20 for start in starts]
for _ in range(2):  # the first to warm up
    begin = time.perf_counter()
    fs.cat_ranges([sys.argv[2]] * 8, starts, ends)
    seconds = time.perf_counter() - begin
print(8 * 8 * 2**20 / 1e6 / seconds)
"""


def ours(location: str, streams: int = weights.STREAMS) -> float:
    """MB/s of a whole pull, manifest and verification included."""
    begin = time.perf_counter()
    with weights.pull(location, streams) as pull:
        for _ in pull.blocks():
            pass
        return pull.stats.bytes_landed / 1e6 / (time.perf_counter() - begin)


def unverified(location: str, streams: int = weights.STREAMS) -> float:
    """The same with verification left out: what it costs is the difference."""

    def trust(*_: object) -> bool:  # a Mock would remember, and so keep, every block
        return True

    with mock.patch.object(weights.Pull, "_verify", trust):
        return ours(location, streams)


def timed(megabytes: float, call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return megabytes / (time.perf_counter() - begin)


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py download` prints, and its figures."""
    CACHE.mkdir(exist_ok=True)
    with (
        filled_bucket(peers=True) as url,
        tempfile.TemporaryDirectory(dir=CACHE) as directory,
    ):
        figures = in_turn(_from_bucket(url, Path(directory)), runs, "MB/s", more_is_better=True)
        pairs = _verification(runs)
        cost = 1 - pairs[0].median / pairs[1].median
        parts = [
            table("from the emulator", figures, figures[0]),
            table("the same, in pairs", pairs, pairs[0]),
            f"Verification costs {max(cost, 0):.1%} of the pull's wall time where this machine's"
            " cores, which also serve the bytes, are the limit.",
            _sweep(url, min(runs, 3)),
        ]
        limited = _limited(Path(directory), runs)
    if limited:
        (line, _), (unverified_line, _) = limited[len(STREAMS) - 1 : len(STREAMS) + 1]
        cost = 1 - line.median / unverified_line.median
        parts.append(
            f"On a line of {STREAMS[-1]} × 50 MB/s verification costs {max(cost, 0):.1%} of it."
        )
    rows = [
        f"| {figure.name} | {figure.median:,.0f} | {figure.median / expected:.2f} |"
        for figure, expected in limited
    ]
    head = "| nginx, 50 MB/s per connection | MB/s | of N × 50 |\n|---|---|---|"
    parts.append("\n".join([head, *rows]))
    return "\n\n".join(parts), [*figures, *pairs, *(figure for figure, _ in limited)]


def _from_bucket(url: str, directory: Path) -> dict[str, Callable[[], float]]:
    client = storage.Client(project="emulator", credentials=AnonymousCredentials())
    blob = client.bucket("models").blob("open_clip/open_clip_model.safetensors")
    blob.reload()
    megabytes = blob.size / 1e6
    file = str(directory / "downloaded")
    prefix = PREFIX.removeprefix("gs://models/")
    shards = {
        f"{url}/models/{found.name}": found.size
        for found in client.list_blobs("models", prefix=prefix)
        if found.name.endswith(SHARD_SUFFIX)
    }
    thrown_away, kept = directory / "curl.conf", directory / "curl-kept.conf"
    thrown_away.write_text(_curl_config(shards, None))

    def manager(kind: str) -> float:
        return timed(
            megabytes,
            lambda: transfer_manager.download_chunks_concurrently(blob, file, worker_type=kind),
        )

    def some_ranges() -> float:
        # In a process of its own: it brings gRPC, whose threads disturb transfer_manager's forks.
        environment = {**os.environ, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        command = [sys.executable, "-c", GCSFS, url, f"models/{blob.name}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout)

    def curl_into_memory() -> float:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            kept.write_text(_curl_config(shards, Path(folder)))
            return _curl(kept, sum(shards.values()))

    return {
        "this service": lambda: ours(PREFIX),
        "transfer_manager, processes": lambda: manager(transfer_manager.PROCESS),
        "transfer_manager, threads": lambda: manager(transfer_manager.THREAD),
        "gcsfs cat_ranges (64 MiB of it)": some_ranges,
        "curl --parallel, the same ranges, thrown away": lambda: _curl(
            thrown_away, sum(shards.values())
        ),
        "curl --parallel, the same ranges, kept in memory": curl_into_memory,
    }


def _verification(runs: int) -> list[Figure]:
    """Verified and unverified pulls in pairs, each first in every other pair, so that neither gains
    from memory the other has touched, nor from a drift of the machine. Many pairs: a pull's time
    moves by a tenth here, and what is sought is a difference of less."""
    values: dict[Callable[[str], float], list[float]] = {ours: [], unverified: []}
    for turn in range(PAIRS_PER_RUN * runs):
        warm_memory()
        for pull in (ours, unverified) if turn % 2 else (unverified, ours):
            values[pull].append(pull(PREFIX))
    names = "this service", "this service, unverified"
    return [
        Figure(name, tuple(each), "MB/s", more_is_better=True)
        for name, each in zip(names, values.values(), strict=True)
    ]


def _sweep(url: str, runs: int) -> str:
    """MB/s of bare ranges, unverified, by their size and the number in flight."""
    store = GCSStore(
        "models",
        base_url=url,
        skip_signature=True,
        client_options={"allow_http": True},
    )
    name = "open_clip/open_clip_model.safetensors"
    size = obstore.head(store, name)["size"]

    def fetch(streams: int, length: int) -> float:
        def one(start: int) -> int:
            return len(obstore.get_range(store, name, start=start, length=length))

        with ThreadPoolExecutor(streams) as pool:
            starts = range(0, size - length, length)
            return timed(len(starts) * length / 1e6, lambda: sum(pool.map(one, starts)))

    rows = []
    for mebibytes in SWEEP_MEBIBYTES:
        rates = [
            statistics.median(fetch(streams, mebibytes * 2**20) for _ in range(runs))
            for streams in SWEEP_STREAMS
        ]
        rows.append(f"| {mebibytes} MiB | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")
    head = "| MB/s, range by streams | " + " | ".join(map(str, SWEEP_STREAMS)) + " |"
    rule = "|---" * (len(SWEEP_STREAMS) + 1) + "|"
    return "\n".join([head, rule, *rows])


def _curl_config(shards: Mapping[str, int], folder: Path | None) -> str:
    """curl's configuration: every block of every shard, into files of `folder`, or thrown away.

    shards: bytes by URL.
    """
    lines: list[str] = []
    for url, size in shards.items():
        for start in range(0, size, weights.BLOCK_SIZE):
            end = min(start + weights.BLOCK_SIZE, size) - 1
            lines += [f'url = "{url}"', f'range = "{start}-{end}"']
            output = folder / str(len(lines)) if folder else os.devnull
            lines += [f'output = "{output}"', "next"]  # `next`: a range for each URL
    return "\n".join(lines[:-1]) + "\n"


def _curl(config: Path, size: int, streams: int = weights.STREAMS) -> float:
    command = ["curl", "--silent", "--fail", "--parallel", "--parallel-immediate"]
    command += ["--parallel-max", str(streams), "--config", str(config)]
    return timed(size / 1e6, lambda: subprocess.run(command, check=True, stderr=DEVNULL))


def _limited(directory: Path, runs: int) -> list[tuple[Figure, float]]:
    """Rates from nginx with N streams, beside what N limited connections can bring: ours in the
    order of STREAMS, the last of them unverified, then curl's."""
    if shutil.which("nginx") is None:
        print("  nginx is not installed: the scaling with streams is not measured")
        return []
    model = publish_weights.read_model("random:0", publish_weights.DEFAULT_MODEL)
    publish_weights.publish(model, publish_weights.Directory(str(directory / "web")))
    del model
    config = directory / "curl-limited.conf"
    with nginx(directory, CONNECTION_RATE) as location:
        shards = {
            f"{location}/{path.name}": path.stat().st_size
            for path in (directory / "web").glob(f"*{SHARD_SUFFIX}")
        }
        config.write_text(_curl_config(shards, None))
        what: dict[str, tuple[int, Callable[[int], float]]] = {
            f"{streams} streams": (streams, lambda streams: ours(location, streams))
            for streams in STREAMS
        }
        most = STREAMS[-1]
        what[f"{most} streams, unverified"] = most, lambda streams: unverified(location, streams)
        for streams in STREAMS:
            what[f"{streams} of curl's, the same ranges"] = (
                streams,
                lambda streams: _curl(config, sum(shards.values()), streams),
            )
        figures = in_turn(
            {name: functools.partial(call, streams) for name, (streams, call) in what.items()},
            runs,
            "MB/s",
            more_is_better=True,
        )
    return [
        (figure, streams * CONNECTION_RATE / 1e6)
        for figure, (streams, _) in zip(figures, what.values(), strict=True)
    ]


@contextlib.contextmanager
def nginx(directory: Path, rate: int) -> Iterator[str]:
    """The real nginx on directory/web, `rate` bytes/s per connection; yields its URL."""
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        f"""
        daemon off; worker_processes auto; pid {directory}/nginx.pid; error_log stderr crit;
        user {os.environ.get("USER", "root")};
        events {{ worker_connections 256; }}
        http {{
            access_log off; sendfile on; keepalive_requests 10000;
            # nginx waits after every chunk but the last: small chunks make the limit exact.
            sendfile_max_chunk 256k;
            client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2;
            fastcgi_temp_path {directory}/t3; uwsgi_temp_path {directory}/t4;
            scgi_temp_path {directory}/t5;
            server {{ listen 127.0.0.1:{port}; root {directory}/web; limit_rate {rate}; }}
        }}
        """
    )
    process = subprocess.Popen(["nginx", "-p", str(directory), "-c", str(config)])
    try:
        time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
