"""The download queue: order, hedged requests and their limits, completion."""

from __future__ import annotations

import pytest

from clip_embed.checkpoint import download_queue
from clip_embed.checkpoint.download_queue import (
    BlockRange,
    DownloadQueue,
    Request,
    block_ranges,
)
from clip_embed.checkpoint.manifest import BLOCK_SIZE, PublishedFile


def make_blocks(count: int) -> list[BlockRange]:
    return block_ranges(PublishedFile("model.safetensors", "a", count * BLOCK_SIZE, "", ()))


def take_all(queue: DownloadQueue, count: int) -> list[Request]:
    """Return the next `count` requests. Fails if there are fewer."""
    requests = [queue.take() for _ in range(count)]
    present = [request for request in requests if request is not None]
    assert len(present) == count
    return present


@pytest.fixture
def _hedge_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count every request as slow from its start."""
    monkeypatch.setattr(download_queue, "HEDGE_MIN_SECONDS", 0.0)
    monkeypatch.setattr(download_queue, "HEDGE_FACTOR", 0.0)
    monkeypatch.setattr(download_queue, "HEDGE_DEFAULT_SECONDS", 0.0)


def test_block_ranges_cover_the_file() -> None:
    """Each block has 8 MiB, the last one is shorter; an empty file has no blocks."""
    assert BLOCK_SIZE == 8 * 2**20
    file = PublishedFile("model.safetensors", "a", 2 * BLOCK_SIZE + 5, "", ())
    assert [(block.index, block.start, block.end) for block in block_ranges(file)] == [
        (0, 0, BLOCK_SIZE),
        (1, BLOCK_SIZE, 2 * BLOCK_SIZE),
        (2, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 5),
    ]
    assert block_ranges(PublishedFile("empty", "empty", 0, "", ())) == []


def test_take_returns_blocks_in_order() -> None:
    """Each block is handed out once; a request is hedged only if it is slow."""
    requests = take_all(DownloadQueue(make_blocks(3)), 3)
    assert [(request.block.index, request.hedged) for request in requests] == [
        (0, False),
        (1, False),
        (2, False),
    ]


def test_take_returns_none_when_every_block_is_complete() -> None:
    queue = DownloadQueue(make_blocks(2))
    for request in take_all(queue, 2):
        assert queue.complete(request)
    assert queue.take() is None


@pytest.mark.parametrize(
    ("count", "hedged"), [pytest.param(64, 4, id="large"), pytest.param(8, 2, id="small")]
)
@pytest.mark.usefixtures("_hedge_at_once")
def test_hedged_requests_are_limited(count: int, hedged: int) -> None:
    """Hedged requests ask for at most 1/16 of all bytes, or for two blocks of a small model."""
    requests = take_all(DownloadQueue(make_blocks(count)), count + hedged)
    assert sum(request.hedged for request in requests) == hedged
    assert sum(request.block.size for request in requests if request.hedged) == hedged * BLOCK_SIZE
    first = {request.block.index for request in requests if not request.hedged}
    assert first == set(range(count))


@pytest.mark.usefixtures("_hedge_at_once")
def test_a_block_is_hedged_at_most_once() -> None:
    requests = take_all(DownloadQueue(make_blocks(3)), 5)
    assert [request.hedged for request in requests] == [False, True, False, True, False]
    assert len({(request.block.index, request.hedged) for request in requests}) == 5


@pytest.mark.usefixtures("_hedge_at_once")
def test_a_postponed_request_is_not_hedged() -> None:
    """The pause before a retry does not count as slowness: a busy server gets no extra request."""
    queue = DownloadQueue(make_blocks(2))
    [first] = take_all(queue, 1)
    queue.postpone(first, 60.0)
    [second] = take_all(queue, 1)
    assert (second.block.index, second.hedged) == (1, False)


@pytest.mark.usefixtures("_hedge_at_once")
def test_complete_accepts_the_first_of_two_responses() -> None:
    queue = DownloadQueue(make_blocks(1))
    first, second = take_all(queue, 2)
    assert [first.hedged, second.hedged] == [False, True]
    assert first.block == second.block
    assert queue.needs(second)
    assert queue.complete(second)
    assert not queue.needs(first)
    assert not queue.complete(first)
    assert queue.take() is None


@pytest.mark.usefixtures("_hedge_at_once")
def test_abandon_loses_a_block_with_its_last_request() -> None:
    """While another request for the block is in flight, that request decides."""
    queue = DownloadQueue(make_blocks(1))
    first, second = take_all(queue, 2)
    assert not queue.abandon(first)
    assert queue.abandon(second)


@pytest.mark.usefixtures("_hedge_at_once")
def test_abandon_loses_nothing_if_the_block_is_complete() -> None:
    queue = DownloadQueue(make_blocks(1))
    first, second = take_all(queue, 2)
    assert queue.complete(first)
    assert not queue.abandon(second)


def test_close_ends_the_queue() -> None:
    """A closed queue hands out nothing and needs no bytes."""
    queue = DownloadQueue(make_blocks(2))
    [request] = take_all(queue, 1)
    queue.close()
    assert queue.take() is None
    assert not queue.needs(request)
