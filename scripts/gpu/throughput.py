"""Encode texts and images by direct calls: this service and the libraries, in turn.

The parts `texts` and `images`.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Sequence

from scripts.benchmarks.model import image_flop
from scripts.benchmarks.worker import Worker
from scripts.gpu.contenders import (
    CATALOGS,
    CONTENDERS,
    LIBRARIES,
    SERVICE,
    command,
    read_configs,
)
from scripts.gpu.environment import peak_teraflops
from scripts.gpu.part import Recorder, Task

ROUNDS = 5
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RAW_BATCHES = (1, 32)
TITLES = {
    "short texts": "texts of 8 to 20 tokens",
    "raw texts": "texts of 8 to 20 tokens, tokenization included",
    "long texts": "texts of 77 tokens",
    "images": "preprocessed images",
}
OURS = {SERVICE, CATALOGS}
SHARE = "images: share of the rate of a matrix product"


def measure(task: Task, record: Recorder, kinds: Sequence[str]) -> None:
    """Record items per second of each contender, of images also the share of the device's peak.

    kinds: keys of TITLES.
    """
    batches = (1, 4) if task.tiny else BATCHES
    rounds, seconds = (2, 0.0) if task.tiny else (ROUNDS, 0.05)
    teraflop = image_flop(read_configs(task)[0]) / 1e12
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(command(name, task)))
            for name in CONTENDERS
            if task.libraries or name not in LIBRARIES
        }
        for kind in kinds:
            for batch in RAW_BATCHES if kind == "raw texts" else batches:
                rates = _measure_in_turn(
                    workers, kind, batch, record, rounds=rounds, seconds=seconds
                )
                _record(record, kind, batch, rates)
                if kind == "images":
                    _record_shares(record, batch, rates, teraflop, peak_teraflops(task))
        if task.device == "cuda":
            _record_memory(record, workers)


def _record_shares(
    record: Recorder, batch: int, rates: dict[str, list[float]], teraflop: float, peak: float
) -> None:
    """Record the service's share of `peak`, in TFLOP/s, measured right after the images: a warm GPU
    lowers its clock. teraflop: of one image."""
    record.figure(SHARE, str(batch), peak, "TFLOP/s", column="matrix product")
    for name in rates.keys() & OURS:
        shares = [rate * teraflop / peak for rate in rates[name]]
        record.figure(SHARE, str(batch), shares, "share", column=name, more_is_better=True)


def _record_memory(record: Recorder, workers: dict[str, Worker]) -> None:
    for what in ("allocated", "reserved"):
        for name, worker in workers.items():
            value = worker.measure(what, 0, 0)
            if not math.isnan(value):
                record.figure("peak memory on the GPU", name, value, "GiB", column=what)


def _measure_in_turn(
    workers: dict[str, Worker],
    kind: str,
    batch: int,
    record: Recorder,
    *,
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Return items per second of each round. Workers that have ended are removed."""
    values: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(workers), len(workers)):
            try:
                value = workers[name].measure(kind, batch, seconds)
            except (RuntimeError, OSError) as error:
                record.fail(f"{name} ended at {batch} {kind}: {error}")
                del workers[name]
                continue
            if not math.isnan(value):
                values[name].append(value)
    return {name: each for name, each in values.items() if each}


def _record(record: Recorder, kind: str, batch: int, rates: dict[str, list[float]]) -> None:
    for name, values in rates.items():
        record.figure(
            TITLES[kind], str(batch), values, "per second", column=name, more_is_better=True
        )
        if batch == 1:
            milliseconds = [1e3 / value for value in values]
            record.figure("one at a time", TITLES[kind], milliseconds, "ms", column=name)
