"""Count the CPUs that this process may use, container quotas included."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """Return the number of usable CPUs, at least 1: CPU affinity, limited by the cgroup's quota.

    Python and torch know the first and not the second. On a large host, a container limited to two
    CPUs would run a thread for each CPU of the host, and be throttled most of the time.
    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, cpu.max; cgroup-v1, cpu.cfs_quota_us.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(cgroup)
    return max(1, min(bound or 1, math.ceil(quota) if quota else bound or 1))


def _quota(cgroup: Path) -> float | None:
    """Return the CPU quota of this container in CPUs, None without a limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cpus = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return cpus if cpus > 0 else None  # version 1 says -1
