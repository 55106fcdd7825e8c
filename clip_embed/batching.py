"""Dynamic batching: requests that wait for the device run as one batch.

When the device is idle, all queued items run as one batch; there is no batching delay, so a lone
request is as fast as a direct call. Independent of texts, images and torch.

All state lives on the event loop, and only the batches themselves run in the one thread that owns
the device. So there are no locks, and a cancelled request has left the queue by the time its batch
is formed or its result arrives.
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
class BatchQueue(Generic[Item, Result]):
    """One kind of item, batched separately from other kinds.

    run_batch: takes several items, returns one result for each. cost: of an item, in any unit.
    limit: the largest total cost of a batch, which bounds its memory and its duration. An item that
    costs more runs alone.
    """

    run_batch: Callable[[Sequence[Item]], Iterable[Result]]
    limit: int
    cost: Callable[[Item], int]


@dataclass(frozen=True)
class BatchResult(Generic[Result]):
    """The result for one item, and the seconds that it waited and that its batch ran."""

    result: Result
    queue_seconds: float
    encode_seconds: float


@dataclass(eq=False)
class _Request:
    queue: BatchQueue[Any, Any]
    item: Any
    future: asyncio.Future[BatchResult[Any]]
    submitted: float = field(default_factory=perf_counter)


class Batcher:
    """Runs the batches of all queues, one at a time, in the device's thread."""

    def __init__(self) -> None:
        self._device_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: deque[_Request] = deque()
        self._runner: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of requests in the queues."""
        return len(self._pending)

    async def submit(self, queue: BatchQueue[Item, Result], item: Item) -> BatchResult[Result]:
        """Run `item` in the next batch of `queue` and return its result.

        Raises the exception of the batch, if `item` also fails in a batch of its own.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the first call, or an earlier loop has ended
            self._loop, self._pending, self._runner = loop, deque(), None
        request = _Request(queue, item, loop.create_future())
        self._pending.append(request)
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._run_pending())
        return await request.future

    def run_on_device_thread(self, call: Callable[[], Result]) -> Result:
        """Run `call` in the device's thread and wait for it, after the batch that runs now."""
        return self._device_thread.submit(call).result()

    async def _run_pending(self) -> None:
        batch: list[_Request] = []
        try:
            while batch := self._next_batch():
                await self._run(batch)
        finally:
            # Requests are left here only if this task was cancelled or failed: end them, so that
            # none waits for ever.
            for request in [*batch, *self._pending]:
                if not request.future.done():
                    request.future.set_exception(RuntimeError("the batch was abandoned; try again"))
            self._pending.clear()

    def _next_batch(self) -> list[_Request]:
        """Take the oldest requests of one queue, up to its limit."""
        alive = [request for request in self._pending if not request.future.done()]
        if not alive:
            self._pending.clear()
            return []
        queue = alive[0].queue
        batch: list[_Request] = []
        left: deque[_Request] = deque()
        room = queue.limit
        for request in alive:
            if request.queue is queue and room > 0:
                room -= queue.cost(request.item)
                if room >= 0 or not batch:
                    batch.append(request)
                    continue
            left.append(request)
        self._pending = left
        return batch

    async def _run(self, batch: list[_Request]) -> None:
        """Run one batch and complete the futures of its requests."""
        assert self._loop is not None
        started = perf_counter()
        try:
            results = await self._loop.run_in_executor(
                self._device_thread,
                _call_without_exit,
                batch[0].queue.run_batch,
                [request.item for request in batch],
            )
            seconds = perf_counter() - started
            for request, result in zip(batch, results, strict=True):
                if not request.future.done():  # done if the client hung up, which cancels it
                    waited = started - request.submitted
                    request.future.set_result(BatchResult(result, waited, seconds))
        except Exception as error:
            if len(batch) > 1:
                # One item may be at fault: run each alone, so that the others succeed.
                for request in batch:
                    if not request.future.done():
                        await self._run([request])
                return
            if not batch[0].future.done():
                batch[0].future.set_exception(error)


def _call_without_exit(
    call: Callable[[Sequence[Any]], Iterable[Any]], items: Sequence[Any]
) -> Iterable[Any]:
    """Call `call(items)`, and raise SystemExit and KeyboardInterrupt as RuntimeError.

    asyncio would end the event loop with them.
    """
    try:
        return call(items)
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"the device's thread was told to exit ({error!r})") from error
