"""Threads for the processors there are, a container's quota included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clip_embed.cpus import usable_cpus

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000", HERE),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("150000 100000", min(2, HERE)),
        ("99900000 100000", HERE),
        ("nonsense", HERE),
        ("1 0", HERE),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path: Path, cpu_max: str, expected: int) -> None:
    """cpu.max is quota and period in microseconds; part of a processor is one thread's worth."""
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert usable_cpus(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", HERE), ("100000", 1)])
def test_so_does_that_of_older_kernels(tmp_path: Path, quota: str, expected: int) -> None:
    """cgroups of version 1 have a file for each, and -1 for no quota."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path) == expected


def test_without_cgroups_it_is_what_the_process_is_bound_to(tmp_path: Path) -> None:
    """Bound to one processor, one is usable; afterwards all are again."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cpus(tmp_path) == HERE
