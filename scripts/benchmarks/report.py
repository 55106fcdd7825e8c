"""Medians, ratios and tables: how every benchmark says what it found."""

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
    """Several runs of one thing. unit: of each value. more_is_better: for ratios."""

    name: str
    values: tuple[float, ...]
    unit: str
    more_is_better: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def ratio_to(self, ours: Figure) -> float:
        """How many times better ours is."""
        if self.more_is_better:
            return ours.median / self.median
        return self.median / ours.median


def machine() -> str:
    """The machine in a line."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        model = names[0] if names else model
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {gpu};"
        f" Python {platform.python_version()}, torch {torch.__version__}"
    )


WARM_BYTES = 5 * 2**30


def warm_memory() -> None:
    """Touch more memory than any contender needs, and let it go.

    A virtual machine hands memory it does not use back to its host, and first touching it again
    takes up to a second per gigabyte: that would be measured instead of the contenders.
    """
    with mmap.mmap(-1, WARM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1


def in_turn(
    what: Mapping[str, Callable[[], float]], runs: int, unit: str, more_is_better: bool = False
) -> list[Figure]:
    """Run everything once to warm up, then `runs` times in turn, so that a machine whose speed
    drifts drifts under all alike; memory is warmed before each. Every turn has an order of its own,
    since what ran just before is felt."""
    values: dict[str, list[float]] = {name: [] for name in what}
    for turn in range(runs + 1):
        for name in random.Random(turn).sample(list(what), len(what)):
            warm_memory()
            value = what[name]()
            print(f"  {'warm-up' if not turn else f'run {turn}':<8} {name}: {value:,.2f} {unit}")
            if turn:
                values[name].append(value)
    return [Figure(name, tuple(each), unit, more_is_better) for name, each in values.items()]


def table(title: str, figures: Sequence[Figure], ours: Figure) -> str:
    """Markdown: median, range, and how many times better ours is."""
    rows = [
        f"| {figure.name} | {figure.median:,.2f} | {min(figure.values):,.2f} –"
        f" {max(figure.values):,.2f} |"
        f" {'' if figure is ours else f'{figure.ratio_to(ours):.2f}×'} |"
        for figure in figures
    ]
    head = f"| {title} | median {ours.unit} | range | ours is better by |\n|---|---|---|---|"
    return "\n".join([head, *rows])
