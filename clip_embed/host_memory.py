"""Memory of this host for the weights, made ready while torch is still being imported.

Knows nothing of torch, tensors or networks. First touching memory costs about as much as filling it
does: the kernel has to find and clear every page. While torch is imported one core has little to
do, and can do that.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import threading
from collections.abc import Callable

log = logging.getLogger("clip_embed.host_memory")

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14, which Python 3.11 does not name
_STEP = 32 * 2**20


class HostMemory:
    """Pieces of memory, in pages of 2 MiB where the kernel has them: 512 times fewer faults."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reserve: mmap.mmap | None = None
        self._size = 0
        self._taken = 0
        self._too_late = False

    def prepare(self, stored_bytes: Callable[[], int]) -> None:
        """Set memory aside in the background, as soon as `stored_bytes` returns.

        stored_bytes: waits until the weights have arrived, and returns their size as stored. They
        take at least that and at most twice that as float32, so that much is made ready and twice
        that is set aside. Only a matter of speed: if it raises, or the kernel cannot do this, or
        pieces are taken already, then `take` allocates as it is asked.
        """
        threading.Thread(
            target=self._prepare, args=(stored_bytes,), name="host-memory", daemon=True
        ).start()

    def take(self, size: int) -> memoryview:
        """`size` bytes of zeros that nobody else has."""
        with self._lock:
            begin = -(-self._taken // mmap.PAGESIZE) * mmap.PAGESIZE
            if self._reserve is not None and begin + size <= self._size:
                self._taken = begin + size
                return memoryview(self._reserve)[begin : begin + size]
            # Weights have their place now: more would lie idle for as long as the service runs.
            self._too_late = True
        return memoryview(_huge_pages(size))[:size]

    def _prepare(self, stored_bytes: Callable[[], int]) -> None:
        try:
            stored = stored_bytes()
            reserve = _huge_pages(2 * stored)
            with self._lock:
                if self._too_late:
                    return
                self._reserve, self._size = reserve, 2 * stored
            _populate(reserve, stored)
        except Exception as error:  # whatever it is, the pull itself tells who is waiting for it
            log.debug("no memory is made ready: %r", error)


def _populate(memory: mmap.mmap, size: int) -> None:
    """Have the kernel back the first `size` bytes with pages. Raises OSError if it cannot."""
    # Not mmap's own madvise: that keeps the interpreter's lock, and an import waiting.
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    # In steps: whoever maps memory meanwhile, as an import does, waits for one of them.
    for begin in range(0, size, _STEP):
        if madvise(address + begin, min(_STEP, size - begin), _POPULATE_WRITE):
            raise OSError(ctypes.get_errno(), "madvise")


def _huge_pages(size: int) -> mmap.mmap:
    # Private: shared memory, the default, gets no huge pages. Never none at all.
    memory = mmap.mmap(-1, size or mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel built without them
            log.debug("no huge pages here")
    return memory
