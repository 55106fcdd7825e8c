"""Predictions that wait together run together.

Knows nothing of texts, images or torch: it turns single items, awaited one by one, into calls of a
function that takes many. Whatever is waiting when the device becomes free goes in one call; nobody
waits for company, so a lone request is as fast as a direct call.

All state lives on the event loop; only the calls themselves run in the one thread that owns the
device. So there are no locks, and a cancelled request is simply no longer there when its batch is
drawn or its result arrives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lane(Generic[Item, Result]):
    """One kind of work: `call` takes several items and returns one result for each.

    cost: of an item, in whatever unit its work is counted. limit: the costs of one batch add up to
    no more, which bounds both its memory and how long others wait for it; an item that costs more
    goes alone.
    """

    call: Callable[[Sequence[Item]], Iterable[Result]]
    limit: int
    cost: Callable[[Item], int]


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """A result, the seconds its item waited, the seconds its batch ran, and the batch's size."""

    result: Result
    queue_seconds: float
    encode_seconds: float
    batch_size: int


@dataclass(eq=False)
class _Waiting:
    lane: Lane[Any, Any]
    item: Any
    future: asyncio.Future[Timed[Any]]
    since: float = field(default_factory=perf_counter)


class Batcher:
    """Feeds one device from many coroutines."""

    def __init__(self) -> None:
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Waiting] = deque()
        self._drainer: asyncio.Task[None] | None = None

    async def submit(self, lane: Lane[Item, Result], item: Item) -> Timed[Result]:
        """Wait until a batch with `item` in it has run; its result, or the exception it raised."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the first call, or an earlier loop has ended
            self._loop, self._waiting, self._drainer = loop, deque(), None
        waiting = _Waiting(lane, item, loop.create_future())
        self._waiting.append(waiting)
        if self._drainer is None or self._drainer.done():
            self._drainer = loop.create_task(self._drain())
        return await waiting.future

    def run(self, call: Callable[[], Result]) -> Result:
        """Run `call` in the device's thread and wait for it: for set-up and health checks."""
        return self._device.submit(call).result()

    def close(self) -> None:
        """Let the running batch finish, then end the device's thread."""
        self._device.shutdown()

    async def _drain(self) -> None:
        batch: list[_Waiting] = []
        try:
            while batch := self._draw():
                await self._run(batch)
        finally:
            # Reached with waiters left only if this task was cancelled or is broken: nobody may
            # be left hanging.
            for waiting in [*batch, *self._waiting]:
                if not waiting.future.done():
                    waiting.future.set_exception(RuntimeError("the batch was abandoned; try again"))
            self._waiting.clear()

    def _draw(self) -> list[_Waiting]:
        """Those that have waited longest, of one lane and within its limit."""
        alive = [waiting for waiting in self._waiting if not waiting.future.done()]
        if not alive:
            self._waiting.clear()
            return []
        lane = alive[0].lane
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        room = lane.limit
        for waiting in alive:
            if waiting.lane is lane and room > 0:
                room -= lane.cost(waiting.item)
                if room >= 0 or not batch:
                    batch.append(waiting)
                    continue
            left.append(waiting)
        self._waiting = left
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        """Run one batch and give everyone in it a result or an exception."""
        assert self._loop is not None
        lane = batch[0].lane
        started = perf_counter()
        try:
            results = await self._loop.run_in_executor(
                self._device, _guarded, lane.call, [waiting.item for waiting in batch]
            )
            seconds = perf_counter() - started
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.future.done():  # a client that hung up has cancelled its own
                    waiting.future.set_result(
                        Timed(result, started - waiting.since, seconds, len(batch))
                    )
        except Exception as error:
            if len(batch) > 1:
                # One item may be at fault: alone, each finds out for itself.
                for waiting in batch:
                    if not waiting.future.done():
                        await self._run([waiting])
                return
            if not batch[0].future.done():
                batch[0].future.set_exception(error)


def _guarded(call: Callable[[Sequence[Any]], Iterable[Any]], items: Sequence[Any]) -> Iterable[Any]:
    """`call(items)`; an exit asked for in the device's thread is an error of this batch, where
    asyncio would end the whole event loop with it."""
    try:
        return call(items)
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"the device's thread was told to end ({error!r})") from error
