"""Run calls in worker threads that Cog's cancellation cannot interrupt.

Cog 0.23.1 stops the preparation of an input, when its client hangs up, by raising an exception in
the preparing thread at any bytecode: a file just opened stays open, a lock just taken stays taken,
and a thread being started never runs, while its starter waits for it for ever. (CPython 3.11 lists
a thread that has not begun under the ident of its starter, so the exception hits the new one.)

Here the preparing thread only puts a call into one queue and waits at another. Both are written in
C: each operation happens completely or not at all.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class CancelSafeExecutor:
    """A fixed number of threads, all started by the constructor."""

    def __init__(self, threads: int) -> None:
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for number in range(threads):
            name = f"cancel-safe-{number}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run `function` in a worker and return its result or raise its exception.

        It completes even if the calling thread is interrupted meanwhile.
        """
        outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((function, arguments, outcome))
        result, error = outcome.get()
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _serve(self) -> None:
        while True:
            function, arguments, outcome = self._calls.get()
            try:
                outcome.put((function(*arguments), None))
            except BaseException as error:
                outcome.put((None, error))
            del function, arguments, outcome  # they may be large, and the next call may be far off
