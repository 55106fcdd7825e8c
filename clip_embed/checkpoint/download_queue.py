"""Queue of byte ranges to download, with hedged requests for stragglers.

A range whose request takes much longer than others is handed out a second time, to the next idle
worker, and the first response counts (Dean and Barroso, "The Tail at Scale", 2013). The bytes that
this may cost are bounded, so that a slow network is not made slower. Knows times and sizes, and
nothing of networks or checksums.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from clip_embed.checkpoint.manifest import BLOCK_SIZE, PublishedFile

HEDGE_FACTOR = 4.0
"""A range is requested again after this many times the median duration of a request."""

HEDGE_MIN_SECONDS = 0.25
"""Minimum delay before a hedged request, in seconds."""

HEDGE_DEFAULT_SECONDS = 2.0
"""Delay before a hedged request while no request of a similar size has completed, in seconds."""

HEDGE_SHARE = 1 / 16
"""Largest share of all bytes that hedged requests may ask for, and at least two whole ranges."""


@dataclass(frozen=True)
class BlockRange:
    """One block to download: bytes start to end of the file, its block number `index`."""

    file: PublishedFile
    index: int
    start: int
    end: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.start

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the range, and is cheap to hash."""
        return self.file.name, self.index


def block_ranges(file: PublishedFile) -> list[BlockRange]:
    """Return the blocks of `file`, in order."""
    return [
        BlockRange(file, index, start, min(start + BLOCK_SIZE, file.size))
        for index, start in enumerate(range(0, file.size, BLOCK_SIZE))
    ]


@dataclass(eq=False)
class Request:
    """A request in flight. hedged: it is the second one for its range. started: perf_counter."""

    block: BlockRange
    hedged: bool = False
    started: float = field(default_factory=time.perf_counter)


@dataclass
class _InFlight:
    """The requests for one range: the first of them, and how many are left."""

    first: Request
    requests: int = 1
    hedged: bool = False


class DownloadQueue:
    """Hands ranges to several worker threads, in order."""

    def __init__(self, blocks: Iterable[BlockRange] = ()) -> None:
        self._waiting = deque(blocks)
        self._in_flight: dict[tuple[str, int], _InFlight] = {}
        self._durations: deque[tuple[int, float]] = deque(maxlen=32)  # bytes, seconds
        total = sum(block.size for block in self._waiting)
        largest = max((block.size for block in self._waiting), default=0)
        self._hedge_budget = max(int(total * HEDGE_SHARE), 2 * largest)  # bytes
        self._closed = False
        self._changed = threading.Condition()

    def take(self) -> Request | None:
        """Return the next request to make; None when every range is complete.

        While all ranges are in flight, waits until one is slow enough for a hedged request.
        """
        with self._changed:
            while not self._closed:
                now = time.perf_counter()
                slow, wait = self._find_slow(now)
                if slow is not None:
                    slow.hedged, slow.requests = True, slow.requests + 1
                    self._hedge_budget -= slow.first.block.size
                    return Request(slow.first.block, hedged=True, started=now)
                if self._waiting:
                    request = Request(self._waiting.popleft(), started=now)
                    self._in_flight[request.block.key] = _InFlight(request)
                    return request
                if not self._in_flight:
                    return None
                self._changed.wait(wait)
            return None

    def complete(self, request: Request, from_cache: bool = False) -> bool:
        """Report that the bytes of `request` have arrived. False if they are no longer needed.

        from_cache: its duration tells nothing about the network.
        """
        with self._changed:
            if self._in_flight.pop(request.block.key, None) is None:
                return False
            if not from_cache:
                seconds = time.perf_counter() - request.started
                self._durations.append((request.block.size, seconds))
            self._changed.notify_all()
            return True

    def abandon(self, request: Request) -> bool:
        """Report that `request` has failed for good. True if its range is lost with it.

        False if the range is complete, or if another request for it is in flight and decides.
        """
        with self._changed:
            in_flight = self._in_flight.get(request.block.key)
            if in_flight is None:
                return False
            in_flight.requests -= 1
            return in_flight.requests == 0

    def postpone(self, request: Request, seconds: float) -> None:
        """Report that `request` is retried after a pause, which does not count as slowness."""
        with self._changed:
            request.started = time.perf_counter() + seconds

    def needs(self, request: Request) -> bool:
        """Return whether the bytes of `request` are still needed."""
        with self._changed:
            return not self._closed and request.block.key in self._in_flight

    def close(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._in_flight.clear()
            self._changed.notify_all()

    def _find_slow(self, now: float) -> tuple[_InFlight | None, float | None]:
        """Return a range that is slow by now, or the seconds until one may be."""
        wait: float | None = None
        for in_flight in self._in_flight.values():
            request = in_flight.first
            if in_flight.hedged or request.block.size > self._hedge_budget:
                continue
            delay = HEDGE_MIN_SECONDS
            if now - request.started >= delay:  # the median is needed only then
                similar = [
                    seconds for size, seconds in self._durations if size * 4 >= request.block.size
                ]
                delay = (
                    max(delay, HEDGE_FACTOR * median(similar)) if similar else HEDGE_DEFAULT_SECONDS
                )
            left = request.started + delay - now
            if left <= 0:
                return in_flight, None
            wait = left if wait is None else min(wait, left)
        return None, wait
