"""Texts per second by direct calls."""

from __future__ import annotations

from scripts.gpu.part import Recorder, Task
from scripts.gpu.throughput import measure


def run(task: Task, record: Recorder) -> None:
    """Record texts per second of each contender."""
    measure(task, record, ["short texts", "raw texts", "long texts"])
