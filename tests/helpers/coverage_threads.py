"""Let coverage measure event loops in threads that Python did not start (a plug-in of coverage).

Cog's worker runs `predict` on an event loop in a thread of its Rust runtime. Python 3.11 passes the
tracer only to threads that `threading` starts, so without this plug-in no line of `predict` counts.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any


def coverage_init(registry: Any, options: dict[str, Any]) -> None:
    """Start tracing when an event loop starts. Called by coverage in each process."""
    run_forever = asyncio.BaseEventLoop.run_forever

    def traced(loop: asyncio.BaseEventLoop) -> None:
        tracer = threading.gettrace()
        if sys.gettrace() is None and tracer is not None:
            sys.settrace(tracer)
        run_forever(loop)

    asyncio.BaseEventLoop.run_forever = traced  # type: ignore[method-assign]
