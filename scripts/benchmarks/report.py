"""Run measurements in turn, and report them as medians, ratios and tables."""

from __future__ import annotations

import mmap
import os
import platform
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Figure:
    """The values of several runs of one measurement.

    unit: of each value. more_is_better: for rates; false for times.
    """

    name: str
    values: tuple[float, ...]
    unit: str
    more_is_better: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def ratio_to(self, ours: Figure) -> float:
        """Return how many times better `ours` is than this figure."""
        if self.more_is_better:
            return ours.median / self.median
        return self.median / ours.median


@dataclass(frozen=True)
class Section:
    """A part of a benchmark's report. text: Markdown."""

    text: str
    figures: Sequence[Figure] = ()


def processor() -> str:
    """Return the name of this machine's CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory_gib() -> float:
    """Return the GiB of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def machine() -> str:
    """Describe this machine in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{os.cpu_count()} cores ({processor()}), {memory_gib():.0f} GiB, {gpu};"
        f" Python {platform.python_version()}, torch {torch.__version__}"
    )


WARM_BYTES = 5 * 2**30
"""More memory than any contender needs."""


def warm_memory() -> None:
    """Touch WARM_BYTES of memory and release them.

    A virtual machine returns unused memory to its host, and touching it again takes up to a second
    per gigabyte. The contenders should not be measured with that.
    """
    with mmap.mmap(-1, WARM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1


def in_turn(
    measurements: Mapping[str, Callable[[], float]],
    runs: int,
    unit: str,
    more_is_better: bool = False,
) -> list[Figure]:
    """Run each measurement once to warm up, then `runs` times, one round after another.

    If the machine becomes slower, all of them are affected alike. Memory is warmed before each one.
    The order differs from round to round, because a measurement can affect the next one.
    """
    values: dict[str, list[float]] = {name: [] for name in measurements}
    for turn in range(runs + 1):
        for name in random.Random(turn).sample(list(measurements), len(measurements)):
            warm_memory()
            value = measurements[name]()
            label = f"run {turn}" if turn else "warm-up"
            print(f"  {label:<8} {name}: {value:,.2f} {unit}", flush=True)
            if turn:
                values[name].append(value)
    return [Figure(name, tuple(each), unit, more_is_better) for name, each in values.items()]


def table(title: str, figures: Sequence[Figure], ours: Figure) -> str:
    """Return a Markdown table of medians, ranges and ratios. ours: one of `figures`."""
    rows = [
        f"| {figure.name} | {figure.median:,.2f} | {min(figure.values):,.2f} –"
        f" {max(figure.values):,.2f} |"
        f" {'' if figure is ours else f'{figure.ratio_to(ours):.2f}×'} |"
        for figure in figures
    ]
    head = (
        f"| {title} | median {ours.unit} | range | this service is faster by |\n|---|---|---|---|"
    )
    return "\n".join([head, *rows])
