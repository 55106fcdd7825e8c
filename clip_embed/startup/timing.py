"""Stage times of a start, and a start without garbage collection."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator


class StageTimer:
    """Measures the seconds of each stage of a start. `str()` gives one line for the log."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self.stages: dict[str, float] = {}

    def end_stage(self, name: str) -> None:
        """End the current stage, call it `name`, and begin the next one."""
        now = time.perf_counter()
        self.stages[name] = now - self._last
        self._last = now

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.stages.items())
        return f"setup {self._last - self._started:.2f} s ({stages})"


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Turn garbage collection off in the block, and exempt the objects made in it afterwards.

    Importing torch creates many objects and no garbage; collections took 12% of the import.
    """
    gc.disable()
    try:
        yield
        gc.freeze()  # these objects stay: later collections need not visit them
    finally:
        gc.enable()
