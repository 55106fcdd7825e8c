"""The number of CPUs that a process may use: affinity and container quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clip_embed.startup.cpu_quota import usable_cpus

AFFINITY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000", AFFINITY),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("150000 100000", min(2, AFFINITY)),
        ("99900000 100000", AFFINITY),
        ("nonsense", AFFINITY),
        ("1 0", AFFINITY),
    ],
)
def test_usable_cpus_respects_the_quota(tmp_path: Path, cpu_max: str, expected: int) -> None:
    """cpu.max holds quota and period in microseconds; a fraction of a CPU counts as one."""
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert usable_cpus(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", AFFINITY), ("100000", 1)])
def test_usable_cpus_respects_the_quota_of_cgroup_v1(
    tmp_path: Path, quota: str, expected: int
) -> None:
    """Version 1 has one file for the quota, -1 if there is none, and one for the period."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path) == expected


def test_usable_cpus_respects_the_affinity(tmp_path: Path) -> None:
    """Without cgroups, the CPUs that the process is bound to are counted."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cpus(tmp_path) == AFFINITY
