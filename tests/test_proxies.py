"""Calls for threads that an exception may hit."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest

from clip_embed.proxies import Proxies


def test_what_is_returned_and_what_is_raised_comes_back() -> None:
    """As if the function had been called, in another thread."""
    proxies = Proxies(1)
    assert proxies.call(lambda a, b: (a + b, threading.current_thread().name), 1, 2) == (
        3,
        "proxy-0",
    )
    with pytest.raises(FileNotFoundError, match="absent"):
        proxies.call(Path("absent").read_bytes)
    assert proxies.call(len, "abc") == 3


class Hit(BaseException):
    """What is raised in a waiting thread."""


def test_a_caller_that_is_hit_harms_nobody() -> None:
    """Its call ends, and the only proxy serves the next one."""
    proxies = Proxies(1)
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def slow() -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    def caller() -> None:
        try:
            proxies.call(slow)
        except Hit as error:
            caught.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    assert begun.wait(10)
    assert thread.ident is not None
    hit = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Hit)
    )
    assert hit == 1
    go_on.set()
    thread.join(10)
    assert ended.wait(10)
    assert len(caught) == 1
    assert proxies.call(len, "abc") == 3
