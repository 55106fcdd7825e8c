"""Which ranges are asked for a second time: those that are slow, within a bound, and no others."""

from __future__ import annotations

import pytest

from clip_embed import ranges
from clip_embed.manifest import BLOCK_SIZE, PublishedFile
from clip_embed.ranges import Task, WorkList

FILE = PublishedFile("model.safetensors", 64 * BLOCK_SIZE, "", None, ())


def tasks(count: int) -> list[Task]:
    return [Task(FILE, i, i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE) for i in range(count)]


@pytest.fixture
def _all_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every range is slow from the moment it is asked for."""
    monkeypatch.setattr(ranges, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(ranges, "SLOW_FACTOR", 0.0)
    monkeypatch.setattr(ranges, "UNKNOWN_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("count", "bound"), [pytest.param(64, 4, id="large"), pytest.param(8, 2, id="small")]
)
@pytest.mark.usefixtures("_all_is_slow")
def test_a_slow_network_is_not_asked_for_everything_twice(count: int, bound: int) -> None:
    """A sixteenth of the bytes at most is asked for twice, of a small model two ranges."""
    work = WorkList(tasks(count))
    taken = [work.take() for _ in range(count + bound)]
    assert sum(again for _, again in filter(None, taken)) == bound
    assert work.extra_bytes == bound * BLOCK_SIZE
    assert {task.index for task, again in filter(None, taken) if not again} == set(range(count))


@pytest.mark.usefixtures("_all_is_slow")
def test_a_range_is_asked_for_twice_at_most() -> None:
    """There is no third request for what two could not bring."""
    work = WorkList(tasks(3))
    taken = [work.take() for _ in range(5)]
    assert [again for _, again in filter(None, taken)] == [False, True, False, True, False]
    assert len({(task.index, again) for task, again in filter(None, taken)}) == 5


@pytest.mark.usefixtures("_all_is_slow")
def test_a_failed_range_is_not_slow() -> None:
    """What failed and will be tried again after a pause is nobody else's: a server that is busy is
    not asked twice as often."""
    work = WorkList(tasks(2))
    taken = work.take()
    assert taken is not None
    work.postpone(taken[0], 60.0)
    following = work.take()
    assert following is not None
    assert following == (tasks(2)[1], False)


@pytest.mark.usefixtures("_all_is_slow")
def test_the_first_answer_counts() -> None:
    """Whichever of two requests brings a range first has brought it; the other one is told so."""
    work = WorkList(tasks(1))
    first, second = work.take(), work.take()
    assert first == (tasks(1)[0], False)
    assert second == (tasks(1)[0], True)
    assert work.finish(tasks(1)[0], 0.1)
    assert work.is_done(tasks(1)[0])
    assert not work.finish(tasks(1)[0], 0.2)
    assert work.take() is None
