"""Calls made on behalf of threads that an exception may hit at any moment.

Cog 0.23.1 stops the preparation of an input, when its client hangs up, by raising an exception in
the thread that prepares it, wherever that is: a file just opened stays open, a lock just taken
stays taken, a thread being started never runs, and its starter waits for it for ever. (CPython 3.11
lets a thread that has not begun go by the ident of the one that starts it, so the exception meets
the new one.) Here such a thread does nothing but put its question into a queue and wait at another,
both written in C: either happens whole or not at all.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class Proxies:
    """Threads, all started at once, that make others' calls."""

    def __init__(self, count: int) -> None:
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for number in range(count):
            name = f"proxy-{number}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """What `function` returns, or raises; if the caller is hit meanwhile, it is made anyway."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._questions.put((function, arguments, answers))
        result, error = answers.get()
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _serve(self) -> None:
        while True:
            function, arguments, answers = self._questions.get()
            try:
                answers.put((function(*arguments), None))
            except BaseException as error:
                answers.put((None, error))
            del function, arguments, answers  # not until the next question
