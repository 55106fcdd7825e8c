"""Predictions that wait together run together, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from clip_embed.batching import Batcher, Lane


class Device:
    """A call that records its batches and can be held, or made to fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.poison: Callable[[Sequence[int]], None] = lambda items: None

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.free.wait(10)
        self.batches.append(list(items))
        self.poison(items)
        return [10 * item for item in items]


def lane(device: Device, limit: int = 100) -> Lane[int, int]:
    """Work of which every item costs 1."""
    return Lane(device, limit=limit, cost=lambda item: 1)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0.005)


def test_alone_it_runs_at_once() -> None:
    """A lone item is a batch of its own; nobody waits for company."""
    device = Device()

    async def main() -> None:
        done = await Batcher().submit(lane(device), 7)
        assert done.result == 70
        assert done.batch_size == 1
        assert done.queue_seconds < 0.5

    asyncio.run(main())
    assert device.batches == [[7]]


def test_what_waits_together_runs_together() -> None:
    """While the device is busy items gather, and go in one batch when it is free."""
    device = Device()

    async def main() -> None:
        batcher, work = Batcher(), lane(device)
        device.free.clear()
        tasks = [asyncio.create_task(batcher.submit(work, item)) for item in range(9)]
        await settle()
        device.free.set()
        results = [done.result for done in await asyncio.gather(*tasks)]
        assert results == [10 * item for item in range(9)]

    asyncio.run(main())
    # All nine were submitted before the drainer first ran.
    assert [len(batch) for batch in device.batches] == [9]


def test_a_batch_is_limited_by_what_it_costs() -> None:
    """In order of waiting, until the next would cost too much; one that always would goes alone."""
    device = Device()

    async def main() -> None:
        batcher = Batcher()
        work: Lane[int, int] = Lane(device, limit=10, cost=lambda item: item)
        items = [4, 5, 2, 8, 30, 1, 9]
        await asyncio.gather(*(batcher.submit(work, item) for item in items))

    asyncio.run(main())
    assert device.batches == [[4, 5], [2, 8], [30], [1, 9]]


def test_lanes_do_not_mix() -> None:
    """Items of different lanes never share a batch, and the longest waiting lane goes first."""
    texts, images = Device(), Device()

    async def main() -> None:
        batcher, one, other = Batcher(), lane(texts), lane(images)
        await asyncio.gather(
            *(batcher.submit(one if item % 2 else other, item) for item in range(6))
        )

    asyncio.run(main())
    assert [sorted(batch) for batch in texts.batches] == [[1, 3, 5]]
    assert [sorted(batch) for batch in images.batches] == [[0, 2, 4]]


def test_a_cancelled_item_hurts_nobody() -> None:
    """Cancelled before its batch it is not computed; cancelled during it the others get theirs."""
    device = Device()

    async def main() -> None:
        batcher, work = Batcher(), lane(device)
        device.free.clear()
        running = [asyncio.create_task(batcher.submit(work, item)) for item in (1, 2)]
        await settle()
        waiting = [asyncio.create_task(batcher.submit(work, item)) for item in (3, 4)]
        await settle()
        running[0].cancel()
        waiting[0].cancel()
        await settle()
        device.free.set()
        assert (await running[1]).result == 20
        assert (await waiting[1]).result == 40
        for cancelled in (running[0], waiting[0]):
            with pytest.raises(asyncio.CancelledError):
                await cancelled

    asyncio.run(main())
    assert device.batches == [[1, 2], [4]]


def test_a_failing_item_fails_alone() -> None:
    """If a batch raises, its items are tried one by one: only the one at fault fails."""
    device = Device()

    def poison(items: Sequence[int]) -> None:
        if 3 in items:
            raise ValueError("three")

    async def main() -> None:
        device.poison = poison
        batcher, work = Batcher(), lane(device)
        results = await asyncio.gather(
            *(batcher.submit(work, item) for item in range(5)), return_exceptions=True
        )
        assert [getattr(r, "result", None) for r in results] == [0, 10, 20, None, 40]
        assert isinstance(results[3], ValueError)
        assert (await batcher.submit(work, 6)).result == 60

    asyncio.run(main())


def test_a_dying_call_leaves_nobody_hanging() -> None:
    """SystemExit in the device's thread is an error for its batch, and the next one runs."""
    device = Device()

    def die(items: Sequence[int]) -> None:
        raise SystemExit("the thread was told to end")

    async def main() -> None:
        batcher, work = Batcher(), lane(device)
        device.poison = die
        results = await asyncio.wait_for(
            asyncio.gather(
                *(batcher.submit(work, item) for item in range(3)), return_exceptions=True
            ),
            timeout=5,
        )
        assert len(results) == 3
        assert all("told to end" in str(result) for result in results)
        device.poison = lambda items: None
        assert (await asyncio.wait_for(batcher.submit(work, 6), timeout=5)).result == 60

    asyncio.run(main())


def test_a_cancelled_drainer_leaves_nobody_hanging() -> None:
    """If the task that feeds the device is cancelled, those waiting get an error."""
    device = Device()

    async def main() -> None:
        batcher, work = Batcher(), lane(device, limit=1)
        device.free.clear()
        tasks = [asyncio.create_task(batcher.submit(work, item)) for item in (1, 2)]
        await settle()
        assert batcher._drainer is not None
        batcher._drainer.cancel()
        device.free.set()
        for task in tasks:
            with pytest.raises(RuntimeError, match="abandoned"):
                await asyncio.wait_for(task, timeout=5)
        assert (await asyncio.wait_for(batcher.submit(work, 3), timeout=5)).result == 30

    asyncio.run(main())


def test_who_hung_up_is_told_nothing() -> None:
    """A cancelled item whose batch fails, or is abandoned, stays cancelled; nothing breaks."""
    device = Device()

    def fail(items: Sequence[int]) -> None:
        raise ValueError("no good")

    async def main() -> None:
        batcher, work = Batcher(), lane(device, limit=1)
        device.poison = fail
        for abandoned in (False, True):
            device.free.clear()
            task = asyncio.create_task(batcher.submit(work, 1))
            await settle()
            task.cancel()
            await settle()
            drainer = batcher._drainer
            assert drainer is not None
            if abandoned:
                drainer.cancel()
            device.free.set()
            await asyncio.wait_for(asyncio.wait([task, drainer]), timeout=5)
            assert task.cancelled()
            assert drainer.cancelled() == abandoned
            assert abandoned or drainer.exception() is None

    asyncio.run(main())


def test_a_result_for_each_or_an_error_for_all() -> None:
    """A call that returns too few results is an error, not a wrong pairing or a hang."""

    async def main() -> None:
        short: Lane[int, int] = Lane(lambda items: [1], limit=9, cost=lambda item: 0)
        batcher = Batcher()
        results = await asyncio.wait_for(
            asyncio.gather(
                *(batcher.submit(short, item) for item in (1, 2)), return_exceptions=True
            ),
            timeout=5,
        )
        # Alone, each gets the one result there is.
        assert [getattr(result, "result", None) for result in results] == [1, 1]

    asyncio.run(main())


def test_it_outlives_an_event_loop() -> None:
    """One batcher serves event loops one after another."""
    device, batcher = Device(), Batcher()
    for item in (1, 2):
        assert asyncio.run(batcher.submit(lane(device), item)).result == 10 * item


def test_run_uses_the_device_thread() -> None:
    """Set-up's calls run in the thread that later runs the batches."""
    batcher = Batcher()
    names: list[str] = []

    def call(items: Sequence[int]) -> list[int]:
        names.append(threading.current_thread().name)
        return list(items)

    batcher.run(lambda: call([0]))
    asyncio.run(batcher.submit(Lane(call, limit=1, cost=lambda item: 0), 1))
    assert len(names) == 2
    assert len(set(names)) == 1
    batcher.close()
