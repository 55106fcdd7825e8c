"""Measure the memory of the service: of its processes, and on the GPU."""

from __future__ import annotations

import time

import psutil
import torch

from clip_embed.model.batch_limits import SERVICE_LIMITS
from scripts.gpu.contenders import load_ours, noise
from scripts.gpu.environment import query_gpu
from scripts.gpu.part import Recorder, Task
from scripts.gpu.samples import LONG_TEXT
from scripts.gpu.server import make_server

TABLE = "memory of the service"
SETTLE_SECONDS = 2.0
"""After a process has ended, until its memory on the GPU is free."""


def run(task: Task, record: Recorder) -> None:
    """Record memory after READY, and at the peak of the largest batches of the service."""
    with record.section("Cog server"):
        _measure_server(task, record)
    if task.device == "cuda":
        with record.section("network"):
            _measure_network(task, record)


def _measure_server(task: Task, record: Recorder) -> None:
    time.sleep(0 if task.tiny else SETTLE_SECONDS)
    before = query_gpu("memory.used") if task.device == "cuda" else None
    with make_server(task, task.ours) as server:
        server.wait_ready(120)
        assert server.process is not None
        processes = [psutil.Process(server.process.pid)]
        processes += processes[0].children(recursive=True)
        resident = sum(process.memory_info().rss for process in processes) / 2**30
        record.figure(TABLE, "resident, after READY, Cog included", resident, "GiB")
        if before is not None and (after := query_gpu("memory.used")) is not None:
            used = (float(after) - float(before)) / 2**10
            record.figure(TABLE, "on the GPU after READY, by nvidia-smi", used, "GiB")


def _measure_network(task: Task, record: Recorder) -> None:
    loaded = load_ours(task.ours, task.device)
    record.figure(TABLE, "tensors after warm-up", torch.cuda.memory_allocated() / 2**30, "GiB")
    record.figure(
        TABLE, "reserved by torch after warm-up", torch.cuda.memory_reserved() / 2**30, "GiB"
    )
    torch.cuda.reset_peak_memory_stats()
    limits = SERVICE_LIMITS[task.device]
    tokens = loaded.tokenizer.tokenize(LONG_TEXT)
    loaded.embedder.embed_texts([tokens] * (limits.tokens // len(tokens.ids)))
    loaded.embedder.embed_images(noise(limits.images, loaded.embedder.config.image_size))
    peak = torch.cuda.max_memory_allocated() / 2**30
    record.figure(TABLE, "tensors at the peak of the largest batches", peak, "GiB")
    reserved = torch.cuda.max_memory_reserved() / 2**30
    record.figure(TABLE, "reserved by torch at that peak", reserved, "GiB")
