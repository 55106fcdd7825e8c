"""Which byte ranges are still to be fetched, and which are worth asking for a second time.

Knows time and sizes; nothing of networks or checksums. A range that takes much longer than others
like it is given out once more, to whoever is free: the first answer counts. What this may cost in
bytes is bounded, so that a slow network is not made slower.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

from clip_embed.manifest import PublishedFile

TAIL_PARTS = 8
"""Requests for each of the last blocks. When fewer blocks are left than streams, whole blocks would
leave most streams idle for as long as one takes; parts end together."""

PART_ALIGNMENT = 64
"""Bytes: no number of a tensor lies in two parts."""

SLOW_FACTOR = 4.0
"""A range that takes this many times the median is asked for again."""

SLOW_SECONDS = 0.25
"""… though never sooner than this: ordinary jitter is not slowness."""

UNKNOWN_SECONDS = 2.0
"""How long is slow while no range of the like has come yet."""

EXTRA_SHARE = 1 / 16
"""Of all bytes, what may be asked for twice because of slowness; two whole ranges are always."""


@dataclass(frozen=True)
class Task:
    """A block to fetch, or part of one: bytes start to end of the file."""

    file: PublishedFile
    index: int
    start: int
    end: int
    joint: Joint | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.start

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from others."""
        return self.file.name, self.start, self.end


class Joint:
    """A block that several requests fetch in parts."""

    def __init__(self, block: Task) -> None:
        self.block = block
        step = -(-block.size // TAIL_PARTS // PART_ALIGNMENT) * PART_ALIGNMENT
        self.parts = [
            replace(block, start=start, end=min(start + step, block.end), joint=self)
            for start in range(block.start, block.end, step)
        ]
        self._came: dict[int, memoryview] = {}
        self._lock = threading.Lock()

    def add(self, part: Task, data: memoryview) -> list[memoryview] | None:
        """`data` is what came for `part`; all parts in their order once none is missing."""
        with self._lock:
            self._came[part.start] = data
            if len(self._came) < len(self.parts):
                return None
            return [self._came[each.start] for each in self.parts]


@dataclass
class _Flight:
    task: Task
    since: float
    twice: bool = False


class WorkList:
    """Tasks, handed to several threads in order. extra_bytes: asked for twice so far."""

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        self._waiting = deque(tasks)
        self._flying: dict[tuple[str, int, int], _Flight] = {}
        self._took: deque[tuple[int, float]] = deque(maxlen=32)
        total = sum(task.size for task in self._waiting)
        largest = max((task.size for task in self._waiting), default=0)
        self._extra_limit = max(int(total * EXTRA_SHARE), 2 * largest)
        self._closed = False
        self._changed = threading.Condition()
        self.extra_bytes = 0

    def take(self) -> tuple[Task, bool] | None:
        """The next task, and whether it is a second try at a slow one; waits for one to become
        slow if there is nothing else to do. None when all is done."""
        with self._changed:
            while not self._closed:
                now = time.perf_counter()
                slow, wait = self._slow(now)
                if slow is not None:
                    slow.twice = True
                    self.extra_bytes += slow.task.size
                    return slow.task, True
                if self._waiting:
                    task = self._waiting.popleft()
                    self._flying[task.key] = _Flight(task, now)
                    return task, False
                if not self._flying:
                    return None
                self._changed.wait(wait)
            return None

    def finish(self, task: Task, seconds: float | None) -> bool:
        """Say that `task` has come; False if it had come already. seconds: how long the network
        took, None if it was not asked."""
        with self._changed:
            if self._flying.pop(task.key, None) is None:
                return False
            if seconds is not None:
                self._took.append((task.size, seconds))
            self._changed.notify_all()
            return True

    def postpone(self, task: Task, pause: float) -> None:
        """Say that the request failed and comes again after `pause` seconds: until then it is not
        slow, and a busy server is not asked twice as often."""
        with self._changed:
            flight = self._flying.get(task.key)
            if flight is not None:
                flight.since = time.perf_counter() + pause

    def is_done(self, task: Task) -> bool:
        """Whether `task` has come, or is not wanted any more."""
        with self._changed:
            return self._closed or task.key not in self._flying

    def close(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._flying.clear()
            self._changed.notify_all()

    def _slow(self, now: float) -> tuple[_Flight | None, float | None]:
        """A task that is slow by now, or in how many seconds to look again."""
        wait: float | None = None
        for flight in self._flying.values():
            if flight.twice or self.extra_bytes + flight.task.size > self._extra_limit:
                continue
            limit = SLOW_SECONDS
            if now - flight.since >= limit:  # only then does the rest matter
                alike = [seconds for size, seconds in self._took if size * 4 >= flight.task.size]
                limit = max(limit, SLOW_FACTOR * median(alike)) if alike else UNKNOWN_SECONDS
            left = flight.since + limit - now
            if left <= 0:
                return flight, None
            wait = left if wait is None else min(wait, left)
        return None, wait
