"""Host memory for the weights, prefaulted in the background where the kernel can."""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import weights
from clip_embed.errors import LocationError
from clip_embed.startup import prefault
from clip_embed.startup.prefault import PrefaultedMemory

MEBIBYTE = 2**20


def start_prefault(
    memory: PrefaultedMemory, stored_bytes: Callable[[], int]
) -> list[threading.Thread]:
    """Start `memory.prepare` and return the threads that it started."""
    before = set(threading.enumerate())
    memory.prepare(stored_bytes)
    return [thread for thread in threading.enumerate() if thread not in before]


def wait_for(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def prefaulted(stored: int) -> PrefaultedMemory:
    """Return memory that has finished its background work for `stored` bytes."""
    memory = PrefaultedMemory()
    wait_for(start_prefault(memory, lambda: stored))
    return memory


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def kernel_can_populate() -> bool:
    """Return whether this is Linux 5.14 or newer."""
    version = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    return sys.platform == "linux" and version >= (5, 14)


@pytest.mark.parametrize("stored", [0, 5 * MEBIBYTE], ids=["no reserve", "reserve used up"])
def test_take_returns_separate_zeroed_pieces(stored: int) -> None:
    """Pieces have the requested size and do not overlap, inside the reserve and outside of it."""
    memory = prefaulted(stored)
    pieces = [memory.take(3 * MEBIBYTE + 1) for _ in range(5)]
    for number, piece in enumerate(pieces, 1):
        assert len(piece) == 3 * MEBIBYTE + 1
        assert not any(piece[:: 64 * 1024])
        piece[:] = bytes([number]) * len(piece)
    for number, piece in enumerate(pieces, 1):
        assert piece[0] == piece[-1] == number


def test_reserve_is_twice_the_stored_size() -> None:
    """The reserve has room for stored float16 values converted to float32."""
    memory = prefaulted(4 * MEBIBYTE)
    first, second = memory.take(4 * MEBIBYTE), memory.take(4 * MEBIBYTE)
    third = memory.take(1)
    assert first.obj is second.obj
    assert third.obj is not first.obj


@pytest.mark.skipif(not kernel_can_populate(), reason="this kernel cannot populate memory")
def test_prepare_makes_the_stored_size_resident() -> None:
    """The pages are backed before the first write to them."""
    before = resident_bytes()
    memory = prefaulted(64 * MEBIBYTE)
    grown = resident_bytes() - before
    assert 60 * MEBIBYTE < grown < 80 * MEBIBYTE
    assert len(memory.take(1)) == 1


def test_prepare_reserves_nothing_after_the_first_take() -> None:
    """A reserve that is ready too late would stay unused for the life of the process."""
    memory, weights_arrived = PrefaultedMemory(), threading.Event()
    threads = start_prefault(memory, lambda: weights_arrived.wait() * 64 * MEBIBYTE)
    first = memory.take(4 * MEBIBYTE)
    before = resident_bytes()
    weights_arrived.set()
    wait_for(threads)
    assert resident_bytes() - before < 16 * MEBIBYTE
    assert memory.take(4 * MEBIBYTE).obj is not first.obj


def test_memory_is_usable_after_a_failed_pull(capfd: pytest.CaptureFixture[str]) -> None:
    """The caller of `wait_complete` gets the error; the background thread prints nothing."""
    with weights.pull(None) as pull:
        memory = PrefaultedMemory()
        threads = start_prefault(memory, pull.wait_complete)
        with pytest.raises(LocationError):
            pull.wait_complete()
        wait_for(threads)
    assert len(memory.take(10)) == 10
    assert capfd.readouterr().err == ""


def test_memory_is_usable_without_populate_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 5.14 rejects MADV_POPULATE_WRITE; pages are then faulted on first use."""
    monkeypatch.setattr(prefault, "_MADV_POPULATE_WRITE", 9999)
    piece = prefaulted(4 * MEBIBYTE).take(4 * MEBIBYTE)
    piece[-1] = 1
    assert piece[-1] == 1


def test_only_linux_is_asked_to_populate(monkeypatch: pytest.MonkeyPatch) -> None:
    """To another kernel the number of MADV_POPULATE_WRITE may mean something else."""
    opened: list[object] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **_: opened.append(arguments))
    piece = prefaulted(4 * MEBIBYTE).take(4 * MEBIBYTE)
    piece[-1] = 1
    assert piece[-1] == 1
    assert not opened


class MapWithoutHugePages(mmap.mmap):
    """Memory of a kernel that was built without huge pages."""

    def madvise(self, *arguments: int) -> None:
        raise OSError(errno.EINVAL, "madvise")


@pytest.mark.parametrize("unsupported_by", ["kernel", "Python"])
def test_memory_is_usable_without_huge_pages(
    monkeypatch: pytest.MonkeyPatch, unsupported_by: str
) -> None:
    if unsupported_by == "kernel":
        monkeypatch.setattr(mmap, "mmap", MapWithoutHugePages)
    else:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert bytes(PrefaultedMemory().take(5)) == bytes(5)


def test_wait_complete_returns_the_size_of_the_shards(tiny_model: Path) -> None:
    """`wait_complete` returns when all bytes have arrived, before any block is taken."""
    with weights.pull(str(tiny_model)) as pull:
        arrived = pull.wait_complete()
        assert arrived == sum(path.stat().st_size for path in tiny_model.glob("*.safetensors"))
        assert sum(len(block.data) for block in pull.blocks()) == arrived
