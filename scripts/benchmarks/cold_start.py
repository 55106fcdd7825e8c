"""Process start → READY of the real Cog server with full-size ViT-L/14, ours and peers'."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

import weights
from benchmarks.bucket import PREFIX, filled_bucket
from benchmarks.report import Figure, in_turn, table
from local_server import CACHE, ROOT, CogServer

PEERS = Path(__file__).resolve().parent / "peers"
TRIES = 12


def peer(name: str, environment: dict[str, str], schema: Path | None = None) -> CogServer:
    """A predictor of `peers/`: synchronous, so one prediction at a time."""
    return CogServer(
        {**environment, "COG_MAX_CONCURRENCY": "1"},
        predictor=f"{PEERS / name}:Predictor",
        schema=schema,
    )


def seconds_to_ready(starting: CogServer) -> float:
    begin = time.perf_counter()
    with starting as server:
        server.wait_ready(300)
        return time.perf_counter() - begin


def in_memory(path: Path) -> None:
    """Have the kernel keep the file's bytes, as after a start a while ago."""
    with open(path, "rb", buffering=0) as file:
        while file.read(2**20):
            pass


def on_disk_alone(path: Path) -> None:
    """Have the kernel forget the file's bytes, as after a restart of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def seconds_of(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py cold-start` prints, and its figures."""
    CACHE.mkdir(exist_ok=True)
    with filled_bucket(peers=True) as url, tempfile.TemporaryDirectory(dir=CACHE) as folder:
        bucket = {"STORAGE_EMULATOR_HOST": url}
        ours = {**bucket, "CLIP_WEIGHTS": PREFIX}
        cached = {**ours, "CLIP_WEIGHTS_CACHE": str(folder)}
        with weights.pull(PREFIX, cache=str(folder)) as pull:
            for _ in pull.blocks():
                pass
        filling = pull.keep()
        assert filling is not None
        filling.join()

        def start_from_cache(first: Callable[[Path], None]) -> float:
            for path in Path(folder).iterdir():
                first(path)
            return seconds_to_ready(CogServer(cached))

        what = {
            "this service": lambda: seconds_to_ready(CogServer(ours)),
            "(a) transfer_manager + open_clip": lambda: seconds_to_ready(
                peer("open_clip_predict.py", bucket)
            ),
            "(b) transfer_manager + transformers": lambda: seconds_to_ready(
                peer("transformers_predict.py", bucket)
            ),
            "import torch": lambda: seconds_of("import torch"),
            "Cog server, empty predictor": lambda: seconds_to_ready(peer("empty_predict.py", {})),
            "this service, cache filled": lambda: start_from_cache(in_memory),
            "this service, cache on a cold disk": lambda: start_from_cache(on_disk_alone),
        }
        figures = in_turn(what, runs, "s")
        by_name = {figure.name: figure for figure in figures}
        mine = by_name["this service"]
        floor = by_name["import torch"].median + by_name["Cog server, empty predictor"].median
        lines = [
            table("process start → READY", figures, mine),
            "",
            f"Floor (import torch + empty Cog server): {floor:.2f} s; this service is at"
            f" {mine.median / floor:.2f}× of it.",
            *_first_predictions(ours),
        ]
    return "\n".join(lines), figures


def _first_predictions(environment: dict[str, str]) -> list[str]:
    """Memory of the worker, and whether the first prediction is an ordinary one."""
    with CogServer(environment) as server:
        server.wait_ready()
        log = server.setup_log()
        assert server.process is not None
        [worker] = psutil.Process(server.process.pid).children()
        peak = _peak_megabytes(worker.pid)
        times: dict[str, list[float]] = {}
        encoded = base64.b64encode((ROOT / "examples" / "cat.jpg").read_bytes()).decode()
        photo = f"data:image/jpeg;base64,{encoded}"
        for kind, inputs in (("text", {"text": "a photo of a cat"}), ("image", {"image": photo})):
            times[kind] = [
                server.predict(**inputs)["metrics"]["predict_time"] for _ in range(TRIES)
            ]
    bare = _bare_torch_megabytes()
    lines = [
        f"Worker's peak memory: {peak:,.0f} MB; bare torch {bare:,.0f} MB + float32 weights"
        f" 1,711 MB = {bare + 1711:,.0f} MB.",
    ]
    for kind, values in times.items():
        steady = Figure(kind, tuple(values[1:]), "s").median
        lines.append(
            f"First {kind} prediction after READY: {values[0] * 1e3:.0f} ms, the median of the"
            f" next {TRIES - 1} {steady * 1e3:.0f} ms ({values[0] / steady:.2f}×)."
        )
    lines += [f"Set-up's own log: {line}" for line in re.findall(r"ready: .*", log)]
    return lines


def _peak_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1e3


def _bare_torch_megabytes() -> float:
    code = (
        "import torch, re; torch.ones(8, 8) @ torch.ones(8, 8);"
        "print(re.findall(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e3
