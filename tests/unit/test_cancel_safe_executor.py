"""Calls in worker threads that an exception in the calling thread cannot interrupt."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest

from clip_embed.cog_workarounds.cancel_safe_executor import CancelSafeExecutor


def test_call_returns_the_result_of_a_worker_thread() -> None:
    executor = CancelSafeExecutor(1)
    total, worker = executor.call(lambda a, b: (a + b, threading.get_ident()), 1, 2)
    assert total == 3
    assert worker != threading.get_ident()
    assert executor.call(threading.get_ident) == worker


def test_call_raises_the_exception_of_the_function() -> None:
    """After an exception, the only worker serves the next call."""
    executor = CancelSafeExecutor(1)
    with pytest.raises(FileNotFoundError, match="absent"):
        executor.call(Path("absent").read_bytes)
    assert executor.call(len, "abc") == 3


class Cancelled(BaseException):
    """The exception that is raised in the calling thread."""


def test_call_completes_if_the_caller_is_cancelled() -> None:
    """The function runs to its end, and the only worker serves the next call."""
    executor = CancelSafeExecutor(1)
    started, release, finished = threading.Event(), threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def slow() -> None:
        started.set()
        release.wait(10)
        finished.set()

    def caller() -> None:
        try:
            executor.call(slow)
        except Cancelled as error:
            caught.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    assert started.wait(10)
    assert thread.ident is not None
    threads_changed = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Cancelled)
    )
    assert threads_changed == 1
    release.set()
    thread.join(10)
    assert finished.wait(10)
    assert len(caught) == 1
    assert executor.call(len, "abc") == 3
