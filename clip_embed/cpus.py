"""How many processors this process may use: what threads are worth having."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """Processors, at least one: those it is bound to, or fewer where a container has a quota.

    Python and torch know the first and not the second: on a large host, a container limited to two
    processors would run a thread for each of the host's and be stopped most of the time.
    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, cpu.max; cgroup-v1, cpu.cfs_quota_us.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(cgroup)
    return max(1, min(bound or 1, math.ceil(quota) if quota else bound or 1))


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that this container may use, None where nothing limits it."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        processors = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return processors if processors > 0 else None  # version 1 says -1
