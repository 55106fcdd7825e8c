"""Time process start → READY of the real Cog server with full-size ViT-L/14, and of peers."""

from __future__ import annotations

import base64
import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

import weights
from scripts.benchmarks.bucket import PREFIX, filled_bucket
from scripts.benchmarks.checkout import THIS, Checkout
from scripts.benchmarks.report import Figure, Section, in_turn, table
from scripts.lib.cog_server import CACHE, ROOT, CogServer

PEERS = Path(__file__).resolve().parent / "peers"
PREDICTIONS = 12  # of each kind, after READY
FLOAT32_MEGABYTES = 1711  # the weights in memory on a CPU

IMPORT_TORCH = "import torch"
EMPTY_SERVER = "Cog server, empty predictor"


def peer(name: str, environment: Mapping[str, str], schema: Path | None = None) -> CogServer:
    """Return the server of a predictor in `peers/`: synchronous, so one prediction at a time."""
    return CogServer(
        {**environment, "COG_MAX_CONCURRENCY": "1"},
        predictor=f"{PEERS / name}:Predictor",
        schema=schema,
    )


def run(runs: int, baseline: Checkout | None = None) -> list[Section]:
    """Run `bench.py cold-start`. Raises SystemExit on other systems than Linux."""
    if sys.platform != "linux":
        raise SystemExit(
            "bench.py cold-start needs Linux: it reads peak memory from /proc, and drops files from"
            " the page cache"
        )
    CACHE.mkdir(exist_ok=True)
    with filled_bucket() as url, tempfile.TemporaryDirectory(dir=CACHE) as cache:
        bucket = {"STORAGE_EMULATOR_HOST": url}
        environment = {**bucket, "CLIP_WEIGHTS": PREFIX}
        _fill_cache(cache)

        def start(checkout: Checkout) -> float:
            return _seconds_to_ready(checkout.server(environment))

        starts: dict[str, Callable[[], float]] = {
            checkout.name: functools.partial(start, checkout)
            for checkout in ([THIS, baseline] if baseline else [THIS])
        }
        starts |= _peer_starts(bucket) | _cached_starts(environment, Path(cache))
        figures = in_turn(starts, runs, "s")
        return [
            Section(table("process start → READY", figures, figures[0]), figures),
            Section(_compare_with_floor(figures)),
            Section(_describe_server(environment)),
        ]


def _peer_starts(bucket: Mapping[str, str]) -> dict[str, Callable[[], float]]:
    open_clip, transformers, empty = (
        f"{name}_predict.py" for name in ("open_clip", "transformers", "empty")
    )
    return {
        "(a) transfer_manager + open_clip": lambda: _seconds_to_ready(peer(open_clip, bucket)),
        "(b) transfer_manager + transformers": lambda: _seconds_to_ready(
            peer(transformers, bucket)
        ),
        IMPORT_TORCH: _seconds_to_import_torch,
        EMPTY_SERVER: lambda: _seconds_to_ready(peer(empty, {})),
    }


def _cached_starts(environment: Mapping[str, str], cache: Path) -> dict[str, Callable[[], float]]:
    def start(prepare: Callable[[Path], None]) -> float:
        for path in cache.iterdir():
            prepare(path)
        return _seconds_to_ready(THIS.server({**environment, "CLIP_WEIGHTS_CACHE": str(cache)}))

    return {
        "this service, cache filled": lambda: start(_read_into_page_cache),
        "this service, cache on a cold disk": lambda: start(_drop_from_page_cache),
    }


def _seconds_to_ready(server: CogServer) -> float:
    begin = time.perf_counter()
    with server:
        server.wait_ready(300)
        return time.perf_counter() - begin


def _seconds_to_import_torch() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - begin


def _fill_cache(directory: str) -> None:
    with weights.pull(PREFIX, cache=directory) as pull:
        for _ in pull.blocks():
            pass
    thread = pull.fill_cache()
    assert thread is not None
    thread.join()


def _read_into_page_cache(path: Path) -> None:
    """Make the kernel hold the file in memory, as after a recent start."""
    with open(path, "rb", buffering=0) as file:
        while file.read(2**20):
            pass


def _drop_from_page_cache(path: Path) -> None:
    """Make the kernel drop the file from memory, as after a restart of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _compare_with_floor(figures: list[Figure]) -> str:
    medians = {figure.name: figure.median for figure in figures}
    floor = medians[IMPORT_TORCH] + medians[EMPTY_SERVER]
    return (
        f"Floor (import torch + empty Cog server): {floor:.2f} s; this service is at"
        f" {medians[THIS.name] / floor:.2f}× of it."
    )


def _describe_server(environment: Mapping[str, str]) -> str:
    """Report the worker's peak memory, the first predictions after READY, and the setup log."""
    with THIS.server(environment) as server:
        server.wait_ready()
        log = server.setup_log()
        assert server.process is not None
        [worker] = psutil.Process(server.process.pid).children()
        peak = _peak_megabytes(Path(f"/proc/{worker.pid}/status").read_text())
        photo = base64.b64encode((ROOT / "examples" / "cat.jpg").read_bytes()).decode()
        predictions = [
            _compare_first_prediction(server, "text", "a photo of a cat"),
            _compare_first_prediction(server, "image", f"data:image/jpeg;base64,{photo}"),
        ]
    torch = _torch_megabytes()
    lines = [
        f"Worker's peak memory: {peak:,.0f} MB; torch alone {torch:,.0f} MB + float32 weights"
        f" {FLOAT32_MEGABYTES:,} MB = {torch + FLOAT32_MEGABYTES:,.0f} MB.",
        *predictions,
        *(f"Setup log: {line}" for line in re.findall(r"ready: .*", log)),
    ]
    return "\n".join(lines)


def _compare_first_prediction(server: CogServer, kind: str, value: str) -> str:
    seconds = [
        server.predict(**{kind: value})["metrics"]["predict_time"] for _ in range(PREDICTIONS)
    ]
    first, later = seconds[0], Figure(kind, tuple(seconds[1:]), "s").median
    return (
        f"First {kind} prediction after READY: {first * 1e3:.0f} ms; median of the next"
        f" {PREDICTIONS - 1}: {later * 1e3:.0f} ms ({first / later:.2f}×)."
    )


def _torch_megabytes() -> float:
    """Return the peak memory of a process that imports torch and multiplies two matrices."""
    code = (
        "import torch; torch.ones(8, 8) @ torch.ones(8, 8); print(open('/proc/self/status').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return _peak_megabytes(done.stdout)


def _peak_megabytes(process_status: str) -> float:
    """Read the peak from the text of /proc/PID/status."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", process_status)[0]) / 1e3
