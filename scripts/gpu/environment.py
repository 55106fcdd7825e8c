"""Describe the machine, and measure the ceilings of its device."""

from __future__ import annotations

import itertools
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable

import torch

from clip_embed.startup.cpu_quota import usable_cpus
from scripts.benchmarks.model import sgemm_gflops
from scripts.benchmarks.report import memory_gib, processor
from scripts.gpu.part import Recorder, Task
from scripts.lib.cog_server import ROOT

RUNS = 20
SQUARE = 8192
MLP = (256 * 257, 1024, 4096)
"""Rows, inputs and outputs of the first product in an MLP of the image tower, for 256 images."""

COPY_BYTES = 2**30
CEILINGS = "ceilings"


def run(task: Task, record: Recorder) -> None:
    """Record facts, and the rates of matrix products and copies."""
    with record.section("facts"):
        _describe(task, record)
    if task.device == "cuda":
        with record.section("matrix products"):
            _measure_products(record)
        with record.section("copies"):
            _measure_copies(record)
        with record.section("clock"):
            _measure_clock(record)
    else:
        with record.section("matrix product"):
            row = f"float32 matrix product on the CPU, {_cpu_size(task)}³"
            record.figure(CEILINGS, row, peak_teraflops(task), "TFLOP/s", more_is_better=True)


def _describe(task: Task, record: Recorder) -> None:
    if task.device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        record.fact("GPU", gpu.name)
        record.fact("compute capability", f"{gpu.major}.{gpu.minor}")
        record.fact("GPU memory", f"{gpu.total_memory / 2**30:.1f} GiB")
        record.fact("driver", query_gpu("driver_version") or "unknown")
        record.fact("CUDA", str(torch.version.cuda))
        record.fact("cuDNN", str(torch.backends.cudnn.version()))
        if mode := query_gpu("persistence_mode"):
            record.fact("persistence mode", mode)
    record.fact("torch", torch.__version__)
    record.fact("Python", platform.python_version())
    record.fact("CPU", f"{processor()}, {usable_cpus()} cores, {memory_gib():.0f} GiB")
    record.fact("commit", _commit())


def _commit() -> str:
    """Return the commit that is checked out, "unknown" outside of Git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def query_gpu(*names: str) -> str | None:
    """Return what nvidia-smi says of the first GPU, None if it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}"]
    done = subprocess.run(
        [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip() if done.returncode == 0 else None


def measure_teraflops(rows: int, inputs: int, outputs: int, runs: int = RUNS) -> list[float]:
    """Return the TFLOP/s of float16 products of random matrices on the GPU."""
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.float16)
    w = torch.randn(outputs, inputs, device="cuda", dtype=torch.float16)
    seconds = _event_seconds(lambda: torch.nn.functional.linear(x, w), runs)
    return [2 * rows * inputs * outputs / each / 1e12 for each in seconds]


def peak_teraflops(task: Task) -> float:
    """Measure the ceiling of the network on the device: float16 on a GPU, float32 on a CPU."""
    if task.device == "cuda":
        return statistics.median(measure_teraflops(SQUARE, SQUARE, SQUARE))
    return sgemm_gflops(_cpu_size(task)) / 1e3


def _cpu_size(task: Task) -> int:
    return 512 if task.tiny else 2048


def _measure_products(record: Recorder) -> None:
    for title, shape in {f"{SQUARE}³": (SQUARE, SQUARE, SQUARE), "MLP of 256 images": MLP}.items():
        row = f"float16 matrix product, {title}"
        rates = measure_teraflops(*shape)
        record.figure(CEILINGS, row, rates, "TFLOP/s", more_is_better=True)


def _measure_copies(record: Recorder) -> None:
    first, second = (
        torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_() for _ in range(2)
    )
    rates = [2 * COPY_BYTES / each / 1e9 for each in _event_seconds(lambda: first.copy_(second))]
    row = "copy on the GPU, bytes read and written"
    record.figure(CEILINGS, row, rates, "GB/s", more_is_better=True)
    host = torch.empty(COPY_BYTES // 4, dtype=torch.uint8, pin_memory=True)
    part = first[: len(host)]
    seconds = _event_seconds(lambda: part.copy_(host, non_blocking=True))
    row = "copy from page-locked host memory"
    rates = [len(host) / each / 1e9 for each in seconds]
    record.figure(CEILINGS, row, rates, "GB/s", more_is_better=True)


def _event_seconds(call: Callable[[], object], runs: int = RUNS) -> list[float]:
    """Return the seconds of each call on the GPU, by its own clock, after three warm-ups."""
    for _ in range(3):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]


def _measure_clock(record: Recorder) -> None:
    """Record clock, power and temperature during matrix products, for about two seconds."""
    if shutil.which("nvidia-smi") is None:
        record.skip("clock: there is no nvidia-smi")
        return
    x = torch.randn(SQUARE, SQUARE, device="cuda", dtype=torch.float16)
    for _ in range(1000):
        torch.mm(x, x)
    answer = query_gpu("clocks.sm", "clocks.max.sm", "power.draw", "temperature.gpu")
    torch.cuda.synchronize()
    if answer is None:
        record.skip("clock: nvidia-smi does not answer")
        return
    record.note(
        "During matrix products: SM clock {} of {} MHz, {} W, {} °C.".format(*answer.split(", "))
    )
