"""The number of CPUs that a process may use: affinity and container quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clip_embed.startup.cpu_quota import usable_cpus


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bind the process to four CPUs, as far as `usable_cpus` can see."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000", 4),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("150000 100000", 2),
        ("99900000 100000", 4),
        ("nonsense", 4),
        ("1 0", 4),
    ],
)
def test_usable_cpus_respects_the_quota(tmp_path: Path, cpu_max: str, expected: int) -> None:
    """cpu.max holds quota and period in microseconds; a fraction of a CPU counts as one."""
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    assert usable_cpus(tmp_path) == expected


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(("quota", "expected"), [("-1", 4), ("100000", 1)])
def test_usable_cpus_respects_the_quota_of_cgroup_v1(
    tmp_path: Path, quota: str, expected: int
) -> None:
    """Version 1 has one file for the quota, -1 if there is none, and one for the period."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path) == expected


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to CPUs"
)
def test_usable_cpus_respects_the_affinity(tmp_path: Path) -> None:
    """Without cgroups, the CPUs that the process is bound to are counted."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cpus(tmp_path) == len(before)


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_usable_cpus_is_the_number_of_cpus_without_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None, expected: int
) -> None:
    """macOS has no affinity and no cgroups. Python returns None if it cannot count."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cpus(tmp_path / "missing") == expected
