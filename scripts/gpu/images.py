"""Images per second by direct calls."""

from __future__ import annotations

from scripts.gpu.part import Recorder, Task
from scripts.gpu.throughput import measure


def run(task: Task, record: Recorder) -> None:
    """Record images per second of each contender, and the share of the device's peak."""
    measure(task, record, ["images"])
