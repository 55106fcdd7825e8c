"""Process start → READY of the real Cog server with full-size ViT-L/14, ours and peers'."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.bucket import PREFIX, filled_bucket
from benchmarks.report import Figure, in_turn, table
from local_server import ROOT, CogServer

PEERS = Path(__file__).resolve().parent / "peers"
TRIES = 12


def start(predictor: Path, environment: dict[str, str], **more: object) -> CogServer:
    return CogServer(environment, predictor=f"{predictor}:Predictor", **more)  # type: ignore[arg-type]


def seconds_to_ready(predictor: Path, environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    with start(predictor, environment) as server:
        server.wait_ready(300)
        return time.perf_counter() - begin


def seconds_of(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def run(runs: int) -> tuple[str, list[Figure]]:
    """Everything `bench.py cold-start` prints, and its figures."""
    with filled_bucket(peers=True) as url:
        bucket = {"STORAGE_EMULATOR_HOST": url}
        ours = {**bucket, "CLIP_WEIGHTS": PREFIX}
        what = {
            "this service": lambda: seconds_to_ready(ROOT / "predict.py", ours),
            "(a) transfer_manager + open_clip": lambda: seconds_to_ready(
                PEERS / "open_clip_predict.py", bucket
            ),
            "(b) transfer_manager + transformers": lambda: seconds_to_ready(
                PEERS / "transformers_predict.py", bucket
            ),
            "import torch": lambda: seconds_of("import torch"),
            "Cog server, empty predictor": lambda: seconds_to_ready(PEERS / "empty_predict.py", {}),
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
    with start(ROOT / "predict.py", environment) as server:
        log = server.wait_ready()["setup"]["logs"]
        assert server.process is not None
        [worker] = psutil.Process(server.process.pid).children()
        peak = _peak_megabytes(worker.pid)
        times: dict[str, list[float]] = {}
        photo = f"data:image/jpeg;base64,{_photo()}"
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


def _photo() -> str:
    import base64

    return base64.b64encode((ROOT / "examples" / "cat.jpg").read_bytes()).decode()


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
