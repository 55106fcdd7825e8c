"""A plug-in of coverage's (`scripts/coverage`): event loops in threads that Python did not start.

Cog's worker runs `predict` on a loop in a thread of its Rust runtime. Python 3.11 hands a tracer to
the threads that `threading` starts, and to no others: without this, not a line of `predict` counts.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any


def coverage_init(registry: Any, options: dict[str, Any]) -> None:
    """Trace a loop's thread from the loop's start; called by coverage in each process."""
    run_forever = asyncio.BaseEventLoop.run_forever

    def traced(loop: asyncio.BaseEventLoop) -> None:
        tracer = threading.gettrace()
        if sys.gettrace() is None and tracer is not None:
            sys.settrace(tracer)
        run_forever(loop)

    asyncio.BaseEventLoop.run_forever = traced  # type: ignore[method-assign]
