"""Dynamic batching: grouping, limits, cancellation and errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from clip_embed.batching import Batcher, BatchQueue


class FakeDevice:
    """Multiplies each item by ten and records the batches. Can be made to block or to raise."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.idle = threading.Event()
        self.idle.set()
        self.before_return: Callable[[Sequence[int]], None] = lambda items: None

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.idle.wait(10)
        self.batches.append(list(items))
        self.before_return(items)
        return [10 * item for item in items]


def make_queue(device: FakeDevice, limit: int = 100) -> BatchQueue[int, int]:
    """Return a queue in which every item costs 1."""
    return BatchQueue(device, limit=limit, cost=lambda item: 1)


async def run_ready_tasks() -> None:
    """Yield to the event loop until the other tasks are blocked."""
    for _ in range(5):
        await asyncio.sleep(0.005)


def test_batcher_runs_a_lone_item_at_once() -> None:
    """A lone item forms a batch of one, without a batching delay."""
    device = FakeDevice()

    async def main() -> None:
        done = await Batcher().submit(make_queue(device), 7)
        assert done.result == 70
        assert done.queue_seconds < 0.5

    asyncio.run(main())
    assert device.batches == [[7]]


def test_batcher_groups_queued_items() -> None:
    """Items that are queued together run as one batch."""
    device = FakeDevice()

    async def main() -> None:
        batcher, queue = Batcher(), make_queue(device)
        device.idle.clear()
        tasks = [asyncio.create_task(batcher.submit(queue, item)) for item in range(9)]
        await run_ready_tasks()
        device.idle.set()
        results = [done.result for done in await asyncio.gather(*tasks)]
        assert results == [10 * item for item in range(9)]

    asyncio.run(main())
    # All nine were submitted before the batcher's task first ran.
    assert [len(batch) for batch in device.batches] == [9]


def test_batcher_limits_the_cost_of_a_batch() -> None:
    """A batch takes queued items in order up to the limit; a costlier item runs alone."""
    device = FakeDevice()

    async def main() -> None:
        batcher = Batcher()
        queue: BatchQueue[int, int] = BatchQueue(device, limit=10, cost=lambda item: item)
        items = [4, 5, 2, 8, 30, 1, 9]
        await asyncio.gather(*(batcher.submit(queue, item) for item in items))

    asyncio.run(main())
    assert device.batches == [[4, 5], [2, 8], [30], [1, 9]]


def test_batcher_keeps_queues_separate() -> None:
    """Items of different queues never share a batch; the oldest item's queue runs first."""
    texts, images = FakeDevice(), FakeDevice()
    order: list[str] = []
    texts.before_return = lambda items: order.append("texts")
    images.before_return = lambda items: order.append("images")

    async def main() -> None:
        batcher, odd, even = Batcher(), make_queue(texts), make_queue(images)
        await asyncio.gather(
            *(batcher.submit(odd if item % 2 else even, item) for item in range(6))
        )

    asyncio.run(main())
    assert [sorted(batch) for batch in texts.batches] == [[1, 3, 5]]
    assert [sorted(batch) for batch in images.batches] == [[0, 2, 4]]
    assert order == ["images", "texts"]


def test_batcher_drops_cancelled_items() -> None:
    """An item cancelled in the queue is not computed; the rest of its batch is unaffected."""
    device = FakeDevice()

    async def main() -> None:
        batcher, queue = Batcher(), make_queue(device)
        device.idle.clear()
        running = [asyncio.create_task(batcher.submit(queue, item)) for item in (1, 2)]
        await run_ready_tasks()
        queued = [asyncio.create_task(batcher.submit(queue, item)) for item in (3, 4)]
        await run_ready_tasks()
        running[0].cancel()
        queued[0].cancel()
        await run_ready_tasks()
        device.idle.set()
        assert (await running[1]).result == 20
        assert (await queued[1]).result == 40
        for cancelled in (running[0], queued[0]):
            with pytest.raises(asyncio.CancelledError):
                await cancelled

    asyncio.run(main())
    assert device.batches == [[1, 2], [4]]


def test_batcher_isolates_a_failing_item() -> None:
    """After a batch raises, its items run one by one and only the one at fault fails."""
    device = FakeDevice()

    def fail_on_three(items: Sequence[int]) -> None:
        if 3 in items:
            raise ValueError("three")

    async def main() -> None:
        device.before_return = fail_on_three
        batcher, queue = Batcher(), make_queue(device)
        results = await asyncio.gather(
            *(batcher.submit(queue, item) for item in range(5)), return_exceptions=True
        )
        assert [getattr(r, "result", None) for r in results] == [0, 10, 20, None, 40]
        assert isinstance(results[3], ValueError)
        assert (await batcher.submit(queue, 6)).result == 60

    asyncio.run(main())


def test_batcher_survives_system_exit_in_a_batch() -> None:
    """SystemExit in the device's thread becomes an error of that batch; the next batch runs."""
    device = FakeDevice()

    def exit_thread(items: Sequence[int]) -> None:
        raise SystemExit("stop")

    async def main() -> None:
        batcher, queue = Batcher(), make_queue(device)
        device.before_return = exit_thread
        results = await asyncio.wait_for(
            asyncio.gather(
                *(batcher.submit(queue, item) for item in range(3)), return_exceptions=True
            ),
            timeout=5,
        )
        assert len(results) == 3
        assert all("told to exit" in str(result) for result in results)
        device.before_return = lambda items: None
        assert (await asyncio.wait_for(batcher.submit(queue, 6), timeout=5)).result == 60

    asyncio.run(main())


def test_batcher_fails_pending_items_if_its_task_is_cancelled() -> None:
    """Cancelling the task that runs the batches raises an error for every pending item."""
    device = FakeDevice()

    async def main() -> None:
        batcher, queue = Batcher(), make_queue(device, limit=1)
        device.idle.clear()
        tasks = [asyncio.create_task(batcher.submit(queue, item)) for item in (1, 2)]
        await run_ready_tasks()
        assert batcher._runner is not None
        batcher._runner.cancel()
        device.idle.set()
        for task in tasks:
            with pytest.raises(RuntimeError, match="abandoned"):
                await asyncio.wait_for(task, timeout=5)
        assert (await asyncio.wait_for(batcher.submit(queue, 3), timeout=5)).result == 30

    asyncio.run(main())


def test_batcher_leaves_cancelled_items_cancelled() -> None:
    """A cancelled item stays cancelled if its batch later fails or is abandoned."""
    device = FakeDevice()

    def fail(items: Sequence[int]) -> None:
        raise ValueError("no good")

    async def main() -> None:
        batcher, queue = Batcher(), make_queue(device, limit=1)
        device.before_return = fail
        for abandoned in (False, True):
            device.idle.clear()
            task = asyncio.create_task(batcher.submit(queue, 1))
            await run_ready_tasks()
            task.cancel()
            await run_ready_tasks()
            runner = batcher._runner
            assert runner is not None
            if abandoned:
                runner.cancel()
            device.idle.set()
            await asyncio.wait_for(asyncio.wait([task, runner]), timeout=5)
            assert task.cancelled()
            assert runner.cancelled() == abandoned
            assert abandoned or runner.exception() is None

    asyncio.run(main())


def test_batcher_retries_items_alone_if_results_are_missing() -> None:
    """A batch that returns too few results is an error, so its items run one by one."""

    async def main() -> None:
        queue: BatchQueue[int, int] = BatchQueue(lambda items: [1], limit=9, cost=lambda item: 0)
        batcher = Batcher()
        results = await asyncio.wait_for(
            asyncio.gather(
                *(batcher.submit(queue, item) for item in (1, 2)), return_exceptions=True
            ),
            timeout=5,
        )
        assert [getattr(result, "result", None) for result in results] == [1, 1]

    asyncio.run(main())


def test_batcher_works_in_successive_event_loops() -> None:
    device, batcher = FakeDevice(), Batcher()
    for item in (1, 2):
        assert asyncio.run(batcher.submit(make_queue(device), item)).result == 10 * item


def test_run_uses_the_thread_of_the_batches() -> None:
    """`Batcher.run` and the batches share one thread."""
    batcher = Batcher()
    names: list[str] = []

    def record_thread(items: Sequence[int]) -> list[int]:
        names.append(threading.current_thread().name)
        return list(items)

    batcher.run_on_device_thread(lambda: record_thread([0]))
    asyncio.run(batcher.submit(BatchQueue(record_thread, limit=1, cost=lambda item: 0), 1))
    assert len(names) == 2
    assert len(set(names)) == 1
