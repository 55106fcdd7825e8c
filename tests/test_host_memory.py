"""Memory for the weights: separate pieces, made ready ahead of time where that is possible."""

from __future__ import annotations

import errno
import mmap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import weights
from clip_embed import host_memory
from clip_embed.errors import LocationError
from clip_embed.host_memory import HostMemory

MEBIBYTE = 2**20


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def prepared(stored: int) -> HostMemory:
    """Memory whose background work for `stored` bytes is done."""
    memory = HostMemory()
    memory.prepare(lambda: stored)
    wait_until(lambda: all(t.name != "host-memory" for t in threading.enumerate()))
    return memory


@pytest.mark.parametrize("stored", [0, 5 * MEBIBYTE])
def test_pieces_are_zero_and_nobody_elses(stored: int) -> None:
    """Whether set aside or not, or both as it runs out: of the size asked for, and apart."""
    memory = prepared(stored)
    pieces = [memory.take(3 * MEBIBYTE + 1) for _ in range(5)]
    for number, piece in enumerate(pieces, 1):
        assert len(piece) == 3 * MEBIBYTE + 1
        assert not any(piece[:: 64 * 1024])
        piece[:] = bytes([number]) * len(piece)
    for number, piece in enumerate(pieces, 1):
        assert piece[0] == piece[-1] == number


def test_what_is_set_aside_is_twice_what_is_stored() -> None:
    """float16 that becomes float32 finds its place there."""
    memory = prepared(4 * MEBIBYTE)
    first, second = memory.take(4 * MEBIBYTE), memory.take(4 * MEBIBYTE)
    third = memory.take(1)
    assert first.obj is second.obj
    assert third.obj is not first.obj


def test_as_much_as_is_stored_is_resident_before_it_is_touched() -> None:
    """The point of it all: these pages cost nothing any more when the weights are put there."""
    before = _resident()
    memory = prepared(64 * MEBIBYTE)
    grown = _resident() - before
    assert 60 * MEBIBYTE < grown < 80 * MEBIBYTE
    assert len(memory.take(1)) == 1


def test_what_comes_too_late_is_not_set_aside() -> None:
    """Weights that found their place while others were still arriving get no second one."""
    memory, landed = HostMemory(), threading.Event()
    memory.prepare(lambda: landed.wait() * 64 * MEBIBYTE)
    first = memory.take(4 * MEBIBYTE)
    before = _resident()
    landed.set()
    wait_until(lambda: all(t.name != "host-memory" for t in threading.enumerate()))
    assert _resident() - before < 16 * MEBIBYTE
    assert memory.take(4 * MEBIBYTE).obj is not first.obj


def test_a_pull_that_fails_leaves_memory_usable(capfd: pytest.CaptureFixture[str]) -> None:
    """The error reaches who waits for the weights, not the terminal of a background thread."""
    with weights.pull(None) as pull:
        memory = HostMemory()
        memory.prepare(pull.wait_landed)
        with pytest.raises(LocationError):
            pull.wait_landed()
        wait_until(lambda: all(t.name != "host-memory" for t in threading.enumerate()))
    assert len(memory.take(10)) == 10
    assert capfd.readouterr().err == ""


def test_a_kernel_that_cannot_populate_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 5.14 refuses the advice: memory is then touched when it is used."""
    monkeypatch.setattr(host_memory, "_POPULATE_WRITE", 9999)
    memory = prepared(4 * MEBIBYTE)
    piece = memory.take(4 * MEBIBYTE)
    piece[-1] = 1
    assert piece[-1] == 1


class NoHugePages(mmap.mmap):
    """Memory of a kernel that was built without huge pages."""

    def madvise(self, *arguments: int) -> None:
        raise OSError(errno.EINVAL, "madvise")


@pytest.mark.parametrize("lacking", ["the kernel", "Python"])
def test_without_huge_pages_memory_is_memory(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    """Whether the kernel or this Python does not know them: pieces are as asked for."""
    if lacking == "the kernel":
        monkeypatch.setattr(mmap, "mmap", NoHugePages)
    else:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert bytes(HostMemory().take(5)) == bytes(5)


def test_landed_bytes_are_those_of_the_shards(tiny_model: Path) -> None:
    """`wait_landed` returns once everything is here, though nobody has taken a block."""
    with weights.pull(str(tiny_model)) as pull:
        landed = pull.wait_landed()
        assert landed == sum(path.stat().st_size for path in tiny_model.glob("*.safetensors"))
        assert sum(len(block.data) for block in pull.blocks()) == landed


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024
