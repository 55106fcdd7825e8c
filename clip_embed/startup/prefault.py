"""Memory for the weights on a CPU, its pages populated while torch is being imported.

The first touch of memory costs about as much as filling it: the kernel has to find and clear every
page. During the import of torch a core has time for that. Independent of torch.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import sys
import threading
from collections.abc import Callable

log = logging.getLogger("clip_embed.prefault")

_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python 3.11 has no name for it
_STEP = 32 * 2**20  # bytes


class PrefaultedMemory:
    """Memory in huge pages (2 MiB, 512 times fewer faults), populated if there was time for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reserve: mmap.mmap | None = None
        self._size = 0
        self._taken = 0
        self._too_late = False

    def prepare(self, stored_bytes: Callable[[], int]) -> None:
        """Reserve memory in a background thread, as soon as `stored_bytes` returns.

        stored_bytes: waits until the weights have arrived, and returns their size as stored. As
        float32 they take one to two times that, so twice that is reserved and half of it populated.
        If it raises, if the kernel cannot populate, or if memory was taken before, `take` allocates
        on demand: slower, and otherwise the same.
        """
        threading.Thread(
            target=self._prepare, args=(stored_bytes,), name="prefault", daemon=True
        ).start()

    def take(self, size: int) -> memoryview:
        """Return `size` bytes of zeros, used by no other caller."""
        with self._lock:
            begin = -(-self._taken // mmap.PAGESIZE) * mmap.PAGESIZE
            if self._reserve is not None and begin + size <= self._size:
                self._taken = begin + size
                return memoryview(self._reserve)[begin : begin + size]
            # A reserve made after this would stay unused for as long as the process runs.
            self._too_late = True
        return memoryview(_map_huge_pages(size))[:size]

    def _prepare(self, stored_bytes: Callable[[], int]) -> None:
        try:
            stored = stored_bytes()
            reserve = _map_huge_pages(2 * stored)
            with self._lock:
                if self._too_late:
                    return
                self._reserve, self._size = reserve, 2 * stored
            _populate(reserve, stored)
        except Exception as error:  # of any kind: the pull reports its own to its caller
            log.debug("no memory was prefaulted: %r", error)


def _populate(memory: mmap.mmap, size: int) -> None:
    """Have the kernel back the first `size` bytes with pages. Raises OSError if it cannot."""
    if sys.platform != "linux":  # to another kernel the number may mean something else
        raise OSError(errno.ENOTSUP, "only Linux populates memory")
    # mmap's own madvise would keep the interpreter lock, and block the import.
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    # In steps: the import maps memory too, and waits for the step that is running.
    for begin in range(0, size, _STEP):
        if madvise(address + begin, min(_STEP, size - begin), _MADV_POPULATE_WRITE):
            raise OSError(ctypes.get_errno(), "madvise")


def _map_huge_pages(size: int) -> mmap.mmap:
    # Private: shared memory, the default, gets no huge pages. mmap refuses a size of zero.
    memory = mmap.mmap(-1, size or mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel built without them
            log.debug("no huge pages here")
    return memory
